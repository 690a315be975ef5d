"""Splits by seed, and what ``load`` does with names and settings."""

import json

import pytest
import torch

from pyro_vae.base.errors import InputError
from pyro_vae.data import DATASETS, Images, load
from pyro_vae.data.splits import Parts, complete


def numbered(number):
    """Return images that can be told apart."""
    return Images(torch.arange(number, dtype=torch.float32)[:, None])


def numbers(images):
    return images.pixels[:, 0].int().tolist()


GIVEN = {
    "nothing": (Parts(numbered(103)), (83, 10, 10)),
    "test": (Parts(numbered(103), test=numbered(7)), (93, 10, 7)),
    "validation": (Parts(numbered(103), numbered(7)), (93, 7, 10)),
    "both": (Parts(numbered(103), numbered(7), numbered(8)), (103, 7, 8)),
    "size": (Parts(numbered(103), test=numbered(7), validation_size=50), (53, 50, 7)),
    "three images": (Parts(numbered(3)), (1, 1, 1)),
    "one image": (Parts(numbered(1), numbered(1), numbered(1)), (1, 1, 1)),
}


@pytest.mark.parametrize(("parts", "sizes"), GIVEN.values(), ids=GIVEN)
def test_splits_are_disjoint_complete_and_of_the_right_size(parts, sizes):
    splits = complete(parts, seed=0)
    assert tuple(map(len, splits)) == sizes
    given = (None, parts.validation, parts.test)
    drawn = [numbers(split) for split, published in zip(splits, given, strict=True) if published is None]
    assert sorted(number for split in drawn for number in split) == list(range(len(parts.train)))
    assert all(split is published for split, published in zip(splits, given, strict=True) if published)


def test_a_seed_fixes_the_splits_and_another_changes_them():
    first, again, other = ([numbers(s) for s in complete(Parts(numbered(100)), seed)] for seed in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_labels_go_with_their_images():
    parts = Parts(Images(torch.arange(50.0)[:, None], torch.arange(50)))
    for split in complete(parts, seed=3):
        assert numbers(split) == split.labels.tolist()


def test_digits_need_no_files(tmp_path):
    data = load("digits", tmp_path / "nowhere")
    assert data.event_shape == (8, 8)
    assert data.train.max_value == 16
    assert data.train.batch(slice(None)).unique().tolist() == [0, 1]
    assert load("digits", binarize="none").train.batch(slice(None)).unique().tolist() == [k / 16 for k in range(17)]
    assert sum(map(len, (data.train, data.validation, data.test))) == 1797
    assert set(data.train.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("binarize", [None, "dynamic", "threshold", "none"])
def test_binarize_reaches_every_split(binarize):
    data = load("digits", binarize=binarize)
    expected = binarize or DATASETS["digits"].binarize
    assert {split.binarize for split in (data.train, data.validation, data.test)} == {expected}
    assert data.describe()["binarize"] == expected


def test_the_description_is_json_and_says_how_the_set_was_split():
    described = load("digits", seed=4).describe()
    for checksum in ("crc32", "labels"):
        assert load("digits", seed=5).describe()[checksum] != described[checksum]
        assert described.pop(checksum) == load("digits", seed=4, binarize="none").describe()[checksum]
    assert (
        json.loads(json.dumps(described))
        == described
        == {
            "name": "digits",
            "source": "sklearn.datasets.load_digits",
            "binarize": "dynamic",
            "event_shape": [8, 8],
            "sizes": {"train": 1439, "validation": 179, "test": 179},
            "split": "by seed 4",
        }
    )


BAD_CALLS = {
    "misspelt": (("mnits",), {}, r"Expected a data set, one of .*mnist.*; got 'mnits'\. Try 'mnist'"),
    "unknown": (("cifar10",), {}, r"got 'cifar10'\. Try one of the 7 names above"),
    "no name": (("",), {}, r"Expected a data set, .*; got ''"),
    "no file": (("mnits.npy",), {}, r"got 'mnits\.npy', which does not exist\. Try 'mnist'"),
    "no folder": (("no/such/place",), {}, r"got 'no/such/place', which does not exist\. Try an existing path"),
    "binarize": (("digits",), {"binarize": "static"}, r"Expected a binarization, .*; got 'static'"),
    "seed": (("digits",), {"seed": -1}, r"Expected a seed from 0 to .*; got -1\. Try seed=0"),
    "kind of seed": (("digits",), {"seed": 0.5}, r"Expected a seed from 0 to .*; got 0\.5"),
}


@pytest.mark.parametrize(("args", "settings", "match"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_what_cannot_be_loaded_is_refused(args, settings, match):
    with pytest.raises(InputError, match=match):
        load(*args, **settings)


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_images_to_split(number):
    with pytest.raises(InputError, match=rf"Expected at least 3 images to split; got {number}\. Try"):
        complete(Parts(numbered(number)), seed=0)


def test_a_folder_called_like_a_set_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load("digits").source == "sklearn.datasets.load_digits"
