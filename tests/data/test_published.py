"""The published sets: the real files if available, and small files of every format."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from pyro_vae.base.errors import InputError
from pyro_vae.data import DATASETS, load, omniglot, published
from pyro_vae.data.omniglot import area_means

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
SIZES = {
    "mnist": ((28, 28), (55000, 5000, 10000), 10),
    "fashion-mnist": ((28, 28), (55000, 5000, 10000), 10),
    "frey-face": ((28, 20), (1573, 196, 196), None),
    "omniglot": ((28, 28), (17352, 1928, 13180), 1623),
    "binarized-mnist": ((28, 28), (50000, 10000, 10000), None),
    "caltech101-silhouettes": ((28, 28), (4100, 2264, 2307), 101),
}


def shared(folder):
    """Return a folder of real files, or skip."""
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no files in {SHARED / folder}")
    return SHARED / folder


def splits(data):
    return data.train, data.validation, data.test


@pytest.mark.parametrize("name", SIZES)
def test_real_set(name):
    shared(name)
    data = load(name, SHARED, download=False)
    event, sizes, classes = SIZES[name]
    assert data.event_shape == event
    assert tuple(map(len, splits(data))) == sizes
    x = data.train.batch(torch.arange(100), torch.Generator().manual_seed(0))
    assert x.shape == (100, *event)
    assert 0 <= x.min() < x.max() <= 1
    assert data.train.is_binary == (name != "frey-face")
    assert data.train.binarize == DATASETS[name].binarize
    labels = [split.labels for split in splits(data) if split.labels is not None]
    assert not labels if classes is None else torch.cat(labels).unique().tolist() == list(range(classes))


@pytest.mark.parametrize("name", ["frey-face", "caltech101-silhouettes"])
def test_the_files_may_lie_in_the_root_itself(name):
    data = load(name, shared(name))
    assert torch.equal(data.test.pixels, load(name, SHARED).test.pixels)


def test_every_set_has_a_row_above():
    assert SIZES.keys() | {"digits"} == DATASETS.keys()


def test_means_of_the_whole_sets_are_the_known_ones():
    """MNIST's mean grey level is quoted everywhere as 0.1307, Fashion-MNIST's as 0.2860."""
    for name, mean in (("mnist", 0.1307), ("fashion-mnist", 0.2860)):
        shared(name)
        data = load(name, SHARED, download=False)
        levels = torch.cat([data.train.pixels, data.validation.pixels]).flatten()
        assert round(levels.sum().item() / levels.numel() / 255, 4) == mean


def test_silhouettes_are_upright_and_white_on_black():
    """Umbrellas are wide at the top, pyramids at the bottom: rotated or inverted images fail."""
    path = shared("caltech101-silhouettes") / "caltech101_silhouettes_28_split1.mat"
    names = [str(name[0]).strip().lower() for name in scipy.io.loadmat(path)["classnames"][0]]
    train = load("caltech101-silhouettes", SHARED).train
    for name, sign in (("umbrella", 1), ("pyramid", -1)):
        x = train.pixels[train.labels == names.index(name)].double()
        lead = sign * (x[:, :14].mean((1, 2)) - x[:, 14:].mean((1, 2)))
        assert lead.mean() > 5 * lead.std() / len(lead) ** 0.5


# ---- Frey Face


@pytest.fixture
def frey(tmp_path):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, published.FREY_SHAPE, dtype=np.uint8), tmp_path


def test_frey_face_from_the_published_matlab_file_equals_the_array(frey):
    frames, root = frey
    scipy.io.savemat(root / "frey_rawface.mat", {"ff": frames.reshape(1965, 560).T})
    matlab = load("frey-face", root)
    assert "frey_rawface.mat" in matlab.source
    (root / "frey-face").mkdir()
    np.save(root / "frey-face" / "freyfaces.npy", frames)
    array = load("frey-face", root)
    assert "freyfaces.npy" in array.source
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(splits(matlab), splits(array), strict=True))
    whole = np.concatenate([split.pixels.numpy() for split in splits(array)])
    assert sorted(map(bytes, whole)) == sorted(map(bytes, frames))


# ---- binarized MNIST


@pytest.fixture
def tiny_binarized(monkeypatch):
    monkeypatch.setattr(published, "BINARIZED_SIZES", {"train": 6, "valid": 3, "test": 2})
    rng = np.random.default_rng(1)
    return {split: rng.integers(0, 2, (n, 784), dtype=np.uint8) for split, n in published.BINARIZED_SIZES.items()}


def amat(bits, newline="\n"):
    return newline.join(" ".join(map(str, row)) for row in bits) + newline


@pytest.mark.parametrize("newline", ["\n", " \r\n"], ids=["as published", "blanks and CRLF"])
def test_binarized_mnist_from_text_and_from_packed_bits(newline, tiny_binarized, tmp_path):
    for split, bits in tiny_binarized.items():
        (tmp_path / f"binarized_mnist_{split}.amat").write_text(amat(bits, newline), newline="")
    text = load("binarized-mnist", tmp_path)
    assert "binarized_mnist_train.amat" in text.source
    packed = {split: np.packbits(bits, axis=1) for split, bits in tiny_binarized.items()}
    np.savez(tmp_path / "binarized_mnist_packed.npz", **packed)
    bits = load("binarized-mnist", tmp_path)
    assert "binarized_mnist_packed.npz" in bits.source
    for ours, theirs, original in zip(splits(text), splits(bits), tiny_binarized.values(), strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert np.array_equal(ours.pixels.flatten(1), original)
        assert ours.is_binary


def test_real_text_of_binarized_mnist(tmp_path, monkeypatch):
    """A few rows of the real set, written in the format of the files' README, and read again."""
    path = shared("binarized-mnist") / "binarized_mnist_packed.npz"
    bits = np.unpackbits(np.load(path)["test"][:50], axis=1, count=784)
    monkeypatch.setattr(published, "BINARIZED_SIZES", dict.fromkeys(published.SPLITS, 50))
    for split in published.SPLITS:
        (tmp_path / f"binarized_mnist_{split}.amat").write_text(amat(bits))
    test = load("binarized-mnist", tmp_path).test
    assert torch.equal(test.pixels, load_real_binarized().pixels[:50])


def load_real_binarized():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "BINARIZED_SIZES", {"train": 50000, "valid": 10000, "test": 10000})
        return load("binarized-mnist", SHARED).test


# ---- OMNIGLOT


def test_area_means_of_the_original_drawings_equal_the_reduced_set():
    folder = shared("omniglot")
    small = np.load(folder / "omniglot_28x28.npz")
    for split in ("background", "evaluation"):
        paper = np.load(folder / f"images_{split}.npz")["images"].reshape(-1, 105, 105)
        assert np.array_equal(area_means(~paper), small[split])


def test_area_means_keep_the_amount_of_ink():
    ink = np.random.default_rng(0).random((4, 105, 105)) < 0.3
    grey = area_means(ink).mean((1, 2)) / 255
    assert np.abs(grey - ink.mean((1, 2))).max() < 0.5 / 255  # rounding is all that is lost


@pytest.fixture
def tiny_omniglot(monkeypatch):
    """Make the readers expect three characters for background and two for evaluation."""
    monkeypatch.setattr(omniglot, "CHARACTERS", {"background": 3, "evaluation": 2})
    rng = np.random.default_rng(2)
    return {split: rng.random((n, 20, 105, 105)) < 0.9 for split, n in omniglot.CHARACTERS.items()}


def write_pair(folder, drawings):
    for split, paper in drawings.items():
        labels = np.repeat(np.arange(len(paper)), 20).reshape(-1, 20)
        np.savez(folder / f"images_{split}.npz", images=paper, labels=labels)


def write_zips(folder, drawings):
    """Write PNG files as they were published: the numbering does not follow the alphabets' names."""
    first = 1
    for split, paper in drawings.items():
        with zipfile.ZipFile(folder / f"images_{split}.zip", "w") as archive:
            archive.writestr(f"images_{split}/", b"")
            for number, character in enumerate(paper, first):
                place = f"images_{split}/Alphabet_{9 - number}/character{number:02}"
                for drawer, drawing in enumerate(character, 1):
                    archive.writestr(f"{place}/{number:04}_{drawer:02}.png", png(drawing))
        first += len(paper)


def png(bits):
    buffer = io.BytesIO()
    Image.fromarray(bits).save(buffer, "PNG")
    return buffer.getvalue()


def write_small(folder, drawings):
    first, content = 0, {}
    for split, paper in drawings.items():
        content[split] = area_means(~paper.reshape(-1, 105, 105))
        content[f"{split}_labels"] = np.repeat(np.arange(first, first + len(paper)), 20).astype(np.int16)
        first += len(paper)
    np.savez(folder / "omniglot_28x28.npz", **content)


@pytest.mark.parametrize("write", [write_pair, write_zips], ids=["arrays", "zip"])
def test_every_form_of_the_original_drawings_gives_the_same(write, tiny_omniglot, tmp_path):
    write(tmp_path, tiny_omniglot)
    ours = load("omniglot", tmp_path)
    (tmp_path / "omniglot").mkdir()
    write_small(tmp_path / "omniglot", tiny_omniglot)
    reduced = load("omniglot", tmp_path)
    assert "omniglot_28x28.npz" in reduced.source
    assert "reduced to 28 x 28" in ours.source
    for a, b in zip(splits(ours), splits(reduced), strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.labels, b.labels)
    assert ours.test.labels.unique().tolist() == [3, 4]


@pytest.mark.parametrize("targets", [True, False], ids=["alphabets", "no alphabets"])
@pytest.mark.parametrize("whole_levels", [True, False], ids=["k/255", "floating"])
def test_chardata_comes_first_and_is_upright(targets, whole_levels, tiny_omniglot, tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, "CHARDATA_SIZES", {"": 30, "test": 8})
    rng, content, images = np.random.default_rng(3), {}, {}
    for prefix, number in omniglot.CHARDATA_SIZES.items():
        grey = rng.integers(0, 256, (number, 28, 28)) / 255 if whole_levels else rng.random((number, 28, 28))
        images[prefix], content[f"{prefix}data"] = grey, grey.transpose(0, 2, 1).reshape(number, 784).T
        if targets:
            content[f"{prefix}target"] = np.eye(50)[:, rng.integers(0, 50, number)]
    scipy.io.savemat(tmp_path / "chardata.mat", content)
    write_pair(tmp_path, tiny_omniglot)
    data = load("omniglot", tmp_path, binarize="none")
    assert "chardata.mat (28 x 28 of the IWAE paper)" in data.source
    assert data.test.pixels.dtype == (torch.uint8 if whole_levels else torch.float32)
    np.testing.assert_allclose(data.test.batch(slice(None)), images["test"], rtol=0, atol=1e-7)
    expected = content["testtarget"].argmax(0).tolist() if targets else None
    assert (data.test.labels.tolist() if targets else data.test.labels) == expected
    assert tuple(map(len, splits(data))) == (27, 3, 8)


# ---- files that are not what they should be


@pytest.mark.parametrize(("name", "file", "home"), [
    ("frey-face", r"freyfaces\.npy, or frey_rawface\.mat", r"cs\.nyu\.edu/~roweis"),
    ("omniglot", r"chardata\.mat, or .*images_background\.zip \+ images_evaluation\.zip", "brendenlake/omniglot"),
    ("binarized-mnist", r"packed\.npz, or .*train\.amat \+ .*valid\.amat \+ .*test\.amat", r"cs\.toronto\.edu"),
    ("caltech101-silhouettes", r"caltech101_silhouettes_28_split1\.mat", r"umass\.edu/~marlin"),
])  # fmt: skip
def test_missing_files_say_where_they_were_looked_for_and_where_to_get_them(name, file, home, tmp_path):
    with pytest.raises(InputError, match=rf"{file}; got no such files in {tmp_path}/{name} and {tmp_path}\..*{home}"):
        load(name, tmp_path)


def mat(**content):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**content):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def silhouettes(**changed):
    sizes = {"train": 3, "val": 2, "test": 2}
    content = {f"{split}_data": np.ones((n, 784), np.uint8) for split, n in sizes.items()}
    content |= {f"{split}_labels": np.ones((n, 1), np.uint8) for split, n in sizes.items()}
    return mat(**content | changed)


ROW = b"0 1 " * 392 + b"\n"
FREY, FREY_MAT, PACKED = "freyfaces.npy", "frey_rawface.mat", "binarized_mnist_packed.npz"
SILHOUETTES, CHARDATA, PAIR = "caltech101_silhouettes_28_split1.mat", "chardata.mat", "images_background.npz"
REDUCED, ARCHIVE, TEXT = "omniglot_28x28.npz", "images_background.zip", "binarized_mnist_train.amat"
BAD_FILES = {
    "frey shape": (FREY, npy(np.zeros((9, 560), np.uint8)), r"uint8 \(1965, 28, 20\) in .*npy; got uint8 \(9, 560\)"),
    "frey dtype": (FREY, npy(np.zeros((1965, 28, 20), np.int8)), r"got int8 \(1965, 28, 20\)"),
    "frey empty": (FREY, b"", r"Expected data in .*freyfaces\.npy; got an empty file\. Try"),
    "frey truncated": (FREY, npy(np.zeros((1965, 28, 20), np.uint8))[:5000], r"an array .*freyfaces\.npy; got"),
    "frey pickle": (FREY, npy(np.array([{}])), r"without pickled objects in .*; got ValueError: Object arrays"),
    "matlab name": (FREY_MAT, mat(gg=np.zeros(3)), r"'ff' in .*frey_rawface\.mat; got .*'gg'"),
    "matlab shape": (FREY_MAT, mat(ff=np.zeros((560, 9), np.uint8)), r"'ff' of shape \(560, 1965\).*got \(560, 9\)"),
    "matlab kind": (FREY_MAT, mat(ff=np.zeros((560, 1965))), r"'ff' of dtype kind u in .*; got float64"),
    "matlab garbage": (FREY_MAT, b"garbage" * 99, r"a MATLAB file in .*frey_rawface\.mat; got \w+: "),
    "matlab truncated": (FREY_MAT, mat(ff=np.zeros((560, 1965), np.uint8))[:999], r"a MATLAB file in .*; got"),
    "packed shape": (PACKED, npz(train=np.zeros((5, 98), np.uint8)), r"'train' of shape \(6, 98\) .*; got \(5, 98\)"),
    "packed truncated": (PACKED, npz(train=np.zeros((6, 98), np.uint8))[:-40], r"an archive of .*; got BadZipFile"),
    "text rows": (TEXT, ROW * 5, r"6 lines of 784 digits in .*train\.amat; got 5 lines of 784\. Try"),
    "text width": (TEXT, ROW * 5 + ROW[2:], r"got 6 lines of 783, 784"),
    "text values": (TEXT, ROW * 5 + ROW.replace(b"1", b"2"), r"levels from 0 to 1 in .*train\.amat; got 2"),
    "text empty": (TEXT, b"", r"got 0 lines of 0"),
    "silhouette values": (SILHOUETTES, silhouettes(val_data=np.full((2, 784), 7, np.uint8)), r"0 to 1 in .*; got 7"),
    "silhouette labels": (SILHOUETTES, silhouettes(val_labels=np.ones((3, 1), np.uint8)), r"'val_labels' of shape"),
    "chardata range": (CHARDATA, mat(data=np.full((784, 30), 2.0)), r"from 0 to 1 in .*chardata\.mat; got 2 to 2"),
    "chardata NaN": (CHARDATA, mat(data=np.full((784, 30), np.nan)), r"finite pixels in .*chardata\.mat"),
    "pair shape": (PAIR, npz(images=np.ones((3, 20, 28, 28), bool)), r"'images' of shape \(3, 20, 105, 105\)"),
    "pair kind": (PAIR, npz(images=np.ones((3, 20, 105, 105), np.uint8)), r"dtype kind b .*; got uint8"),
    "reduced labels": (REDUCED, npz(background=np.zeros((60, 28, 28), np.uint8)), r"'background_labels' in .*got"),
    "zip garbage": (ARCHIVE, b"garbage", r"a zip archive of PNG files in .*; got BadZipFile"),
}  # fmt: skip
NEEDS = {TEXT: [f"binarized_mnist_{split}.amat" for split in ("valid", "test")],
         PAIR: ["images_evaluation.npz"], ARCHIVE: ["images_evaluation.zip"]}  # fmt: skip
SET_OF = {FREY: "frey-face", FREY_MAT: "frey-face", SILHOUETTES: "caltech101-silhouettes",
          PACKED: "binarized-mnist", TEXT: "binarized-mnist"}  # fmt: skip


@pytest.mark.parametrize(("file", "content", "match"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(file, content, match, tmp_path, tiny_omniglot, tiny_binarized, monkeypatch):
    monkeypatch.setattr(published, "CALTECH_SIZES", {"train": 3, "val": 2, "test": 2})
    monkeypatch.setattr(omniglot, "CHARDATA_SIZES", {"": 30, "test": 8})
    for other in NEEDS.get(file, []):
        (tmp_path / other).write_bytes(b"")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        load(SET_OF.get(file, "omniglot"), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_archive_with_a_drawing_missing_or_of_another_size(tiny_omniglot, tmp_path):
    short = {split: paper[:, :, :50] for split, paper in tiny_omniglot.items()}
    write_zips(tmp_path, short)
    with pytest.raises(InputError, match=r"105 x 105 pixels in .*0001_01\.png; got \(50, 105\)"):
        load("omniglot", tmp_path)
    write_zips(tmp_path, {split: paper[:-1] for split, paper in tiny_omniglot.items()})
    with pytest.raises(InputError, match=r"60 drawings NNNN_DD\.png in .*zip; got 40\. Try the published"):
        load("omniglot", tmp_path)
