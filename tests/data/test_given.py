"""Data as users have them: arrays, data sets and loaders of torch."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_vae import Images, InputError
from pyro_vae.data import Columns, as_data, as_images

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)


class Rows(Dataset):
    """A map-style data set: whatever ``make`` returns for a number."""

    def __init__(self, make, count=10):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return self.make(number)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def plain(data):
    assert isinstance(data, Images)
    return data.batch(slice(None))


ARRAYS = {
    "float64": (X.double().numpy(), X),
    "float16": (X.half().numpy(), X),
    "big-endian": (X.numpy().astype(">f4"), X),
    "Fortran order": (np.asfortranarray(X.numpy()), X),
    "levels": (np.array([[0, 255], [51, 204]], dtype=np.uint8), torch.tensor([[0.0, 1.0], [0.2, 0.8]])),
    "bool": (np.array([[True, False]]), torch.tensor([[1.0, 0.0]])),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_data(name):
    array, wanted = ARRAYS[name]
    for found in (as_data(array), as_images(array)):
        assert torch.equal(plain(found), wanted)
        assert plain(found).dtype == torch.float32


def test_arrays_of_labels_keep_their_numbers():
    columns = as_data((X.numpy(), Y.numpy().astype(np.uint16)))
    assert torch.equal(columns.args[1], Y)
    assert columns.args[1].dtype == torch.int64


BAD_ARRAYS = {
    "objects": (np.array([np.zeros(2), np.zeros(3)], dtype=object), r"array of numbers; got dtype object\. Try np\.stack"),
    "text": (np.array([["a", "b"]]), r"array of numbers; got dtype <U1\. Try array\.astype\('float32'\)"),
    "dates": (np.zeros((2, 2), "datetime64[s]"), r"array of numbers; got dtype datetime64"),
    "complex": (np.zeros((2, 2), complex), r"array of numbers; got dtype complex128"),
    "counts": (np.zeros((2, 2), np.int32), r"floating pixels; got torch\.int32\. Try x\.float\(\) for counts"),
    "one dimension": (np.zeros(3), r"images of shape \(N, \.\.\.\)"),
    "nan": (np.full((2, 2), np.nan), "finite pixels"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_numbers_are_refused(name):
    array, message = BAD_ARRAYS[name]
    with pytest.raises(InputError, match=message):
        as_data(array)


def test_lists_of_numbers_are_no_data():
    for given in ([[0.0, 1.0]], [1.0], "text", None, 3):
        with pytest.raises(InputError, match="images, a tensor or an array; got"):
            as_data(given)


READABLE = {
    "tensors": Rows(lambda n: X[n]),
    "tuples of one": Rows(lambda n: (X[n],)),
    "arrays": Rows(lambda n: X[n].numpy()),
    "part": Subset(TensorDataset(torch.cat([X, X])), range(10)),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_data_set_of_single_tensors_is_the_plain_tensor(name):
    assert torch.equal(plain(as_data(READABLE[name])), X)


def test_a_data_set_gives_arguments_as_its_examples_do():
    pairs = as_data(Rows(lambda n: (X[n], n)))
    assert [list(pairs.columns), pairs.args[1].tolist()] == [[0, 1], list(range(10))]
    named = as_data(Rows(lambda n: {"x": X[n], "y": n % 3}))
    assert isinstance(named, Columns)
    assert named.kwargs["y"].tolist() == [n % 3 for n in range(10)]


def test_a_loader_puts_examples_together_as_it_says():
    def padded(rows):
        lengths = torch.tensor([len(row) for row in rows])
        return {"x": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), "lengths": lengths}

    ragged = Rows(lambda n: torch.ones(1 + n % 4))
    data = as_data(DataLoader(ragged, batch_size=5, shuffle=True, collate_fn=padded), batch_size=5)
    assert data.kwargs["x"].shape == (10, 4)
    assert torch.equal(data.kwargs["x"].sum(1).long(), data.kwargs["lengths"])
    with pytest.raises(InputError, match=r"examples of Rows that can be put together; got stack expects .*collate_fn"):
        as_data(ragged)


NOISY = {
    "torch": Rows(lambda n: X[n] + torch.rand(2)),
    "numpy": Rows(lambda n: X[n].numpy() + np.random.rand(2)),
    "sometimes": Rows(lambda n: X[n] if torch.rand(()) < 0.7 else -X[n]),
    "labels": Rows(lambda n: {"x": X[n], "y": torch.randint(99, ())}),
}


@pytest.mark.parametrize("name", NOISY)
def test_a_data_set_that_changes_is_refused(name):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(InputError, match=r"examples that stay the same; got Rows, another .*binarize='dynamic'"):
        as_data(NOISY[name])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


BAD_SETS = {
    "stream": (Stream(), r"a length, whose examples can be taken in any order; got Stream\. Try torch\.stack"),
    "loader of a stream": (DataLoader(Stream(), batch_size=5), r"any order; got Stream"),
    "empty": (Rows(lambda n: X[n], count=0), "at least one example; got Rows of none"),
    "strings": (Rows(lambda n: (X[n], "label")), r"as argument 2; got (tuple|list)"),
    "objects": (Rows(lambda n: object()), r"examples of Rows that can be put together; got default_collate"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_sets_that_cannot_be_read_are_refused(name):
    given, message = BAD_SETS[name]
    with pytest.raises(InputError, match=message):
        as_data(given)


def loader(**options):
    return DataLoader(TensorDataset(X), **{"batch_size": 5, "shuffle": True, **options})


REFUSED = {
    "batch size": (loader(batch_size=4), r"a loader of the batch_size of fit, 5; got 4\. Try fit\(\.\.\., batch_size=4\)"),
    "order": (loader(shuffle=False), r"a fresh order each epoch; got shuffle=False\. Try DataLoader\(\.\.\., shuffle=T"),
    "no batches": (loader(batch_size=None, shuffle=False), "a loader with a batch_size; got batches of its own"),
    "a part": (loader(shuffle=None, sampler=SubsetRandomSampler([1, 2])), "every example once; got SubsetRandomSampler"),
    "weights": (
        loader(shuffle=None, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        r"every example once; got WeightedRandomSampler\. Try fit\(program, loader\.dataset\)",
    ),
    "replacement": (
        loader(shuffle=None, sampler=RandomSampler(X, replacement=True)),
        "every example once; got RandomSampler with replacement",
    ),
    "fewer": (loader(shuffle=None, sampler=RandomSampler(X, num_samples=5)), "every example once; got RandomSampler"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loader_of_other_batches_is_refused(name):
    given, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        as_data(given, batch_size=5)


def test_a_loader_that_drops_examples_is_refused():
    with pytest.raises(InputError, match=r"every example; got drop_last=True\. Try drop_last=False"):
        as_data(loader(batch_size=4, drop_last=True), batch_size=4)
    assert len(as_data(loader(drop_last=True), batch_size=5)) == 10  # there is none to drop


def test_a_loader_of_held_out_data_has_any_batches_of_all_examples():
    for given in (loader(), loader(shuffle=False), loader(batch_size=3)):
        assert torch.equal(plain(as_data(given)), X)
    for given in (loader(batch_size=3, drop_last=True), REFUSED["a part"][0]):
        with pytest.raises(InputError, match="every example"):
            as_data(given)


def test_reading_leaves_examples_and_order_alone():
    """What a loader gives in an epoch is what is read, whatever order it takes."""
    given = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    data = as_data(given, batch_size=5)
    with torch.random.fork_rng():
        rows = [(tuple(x.tolist()), int(y)) for xs, ys in given for x, y in zip(xs, ys, strict=True)]
    read = data.batch(slice(None)).args
    assert sorted(rows) == sorted((tuple(x.tolist()), int(y)) for x, y in zip(*read, strict=True))
