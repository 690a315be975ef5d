"""A user's images: arrays in files, and folders of pictures."""

import builtins
import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.base.errors import InputError
from pyro_vae.data import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 3, 5, 4), dtype=np.uint8)
BITS = RNG.integers(0, 2, (20, 5, 4), dtype=np.uint8)
REAL = RNG.random((20, 5, 4))
CLASSES = np.arange(20) % 3


def write_npy(folder, array):
    np.save(folder / "own.npy", array)
    return folder / "own.npy"


def write_npz(folder, array):
    np.savez_compressed(folder / "own.npz", array)
    return folder / "own.npz"


def write_pt(folder, array):
    torch.save(torch.from_numpy(array), folder / "own.pt")
    return folder / "own.pt"


def whole(data):
    """Return the three splits together as bytes, one image each, sorted."""
    parts = [split.batch(slice(None)).numpy() for split in (data.train, data.validation, data.test)]
    return sorted(map(bytes, np.concatenate(parts)))


def images_of(array):
    return sorted(map(bytes, array.astype(np.float32)))


ARRAYS = {  # array, dtype stored, max_value, default binarization, values in [0, 1]
    "grey": (GREY, torch.uint8, 255, "dynamic", GREY.astype(np.float32) / 255),
    "grey with channel": (GREY[:, None], torch.uint8, 255, "dynamic", GREY[:, None].astype(np.float32) / 255),
    "flat": (GREY.reshape(20, 20), torch.uint8, 255, "dynamic", GREY.reshape(20, 20).astype(np.float32) / 255),
    "colour": (COLOUR, torch.uint8, 255, "none", COLOUR.astype(np.float32) / 255),
    "bool": (BITS.astype(bool), torch.uint8, 1, "none", BITS),
    "uint8 bits": (BITS, torch.uint8, 1, "none", BITS),
    "black and white": (BITS * np.uint8(255), torch.uint8, 255, "none", BITS),
    "floating bits": (BITS.astype(np.float64), torch.uint8, 1, "none", BITS),
    "float32 k/255": (GREY.astype(np.float32) / 255, torch.uint8, 255, "dynamic", GREY.astype(np.float32) / 255),
    "float64 k/255": (GREY / 255, torch.uint8, 255, "dynamic", GREY.astype(np.float32) / 255),
    "float32": (REAL.astype(np.float32), torch.float32, 255, "dynamic", REAL),
    "float64": (REAL, torch.float32, 255, "dynamic", REAL),
    "float16": (REAL.astype(np.float16), torch.float32, 255, "dynamic", REAL.astype(np.float16)),
}


@pytest.mark.parametrize("write", [write_npy, write_npz, write_pt])
@pytest.mark.parametrize(("array", "dtype", "top", "binarize", "values"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_kept_exactly(array, dtype, top, binarize, values, write, tmp_path):
    path = write(tmp_path, array)
    data = load(path)
    assert data.train.pixels.dtype == dtype
    assert data.train.max_value == top
    assert data.train.binarize == binarize
    assert whole(load(path, binarize="none")) == images_of(values)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 2, 2]


@pytest.mark.parametrize(
    "array",
    [GREY.astype(np.float32).astype(">f4") / 255, np.asfortranarray(GREY / 255)],
    ids=["other byte order", "Fortran order"],
)
def test_layouts_torch_cannot_take(array, tmp_path):
    assert whole(load(write_npy(tmp_path, array), binarize="none")) == images_of(GREY.astype(np.float32) / 255)


def test_bfloat16_and_gradients(tmp_path):
    tensor = torch.from_numpy(REAL).bfloat16().requires_grad_()
    torch.save(tensor, tmp_path / "own.pt")
    assert whole(load(tmp_path / "own.pt", binarize="none")) == images_of(tensor.detach().float().numpy())


@pytest.mark.parametrize("valid", ["validation", "valid", "val"])
@pytest.mark.parametrize("save", [np.savez, lambda path, **kw: torch.save(tensors(kw), path)], ids=["npz", "pt"])
def test_named_splits_are_kept(valid, save, tmp_path):
    path = tmp_path / ("own.npz" if save is np.savez else "own.pt")
    content = {"train": GREY[:12], valid: GREY[12:15], "test": GREY[15:], "test_labels": CLASSES[15:]}
    save(path, **content)
    data = load(path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 3, 5]
    assert np.array_equal(data.validation.pixels, GREY[12:15])
    assert data.train.labels is None
    assert data.test.labels.tolist() == CLASSES[15:].tolist()
    assert data.describe()["split"] == "as given"


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_missing_splits_are_drawn_from_train(tmp_path):
    np.savez(tmp_path / "own.npz", train=GREY[:15], test=GREY[15:], train_labels=CLASSES[:15, None])
    data = load(tmp_path / "own.npz", seed=2)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 1, 5]
    assert data.describe()["split"] == "validation by seed 2, the rest as given"
    assert len(data.validation.labels) == 1


@pytest.mark.parametrize("name", ["images", "x", "anything"])
def test_a_sole_array_and_its_labels(name, tmp_path):
    others = {} if name == "anything" else {"thumbnails": GREY[:, :2], "names": np.array(["a"])}
    np.savez(tmp_path / "own.npz", **{name: GREY, "labels": CLASSES, **others})
    data = load(tmp_path / "own.npz")
    for split in (data.train, data.validation, data.test):
        for image, label in zip(split.pixels.numpy(), split.labels.tolist(), strict=True):
            assert CLASSES[(image == GREY).all((1, 2)).argmax()] == label


def test_one_scale_for_all_splits(tmp_path):
    """A test set of only 0 and 1 is not binary if the other splits have grey levels."""
    np.savez(tmp_path / "own.npz", train=GREY, test=BITS)
    assert load(tmp_path / "own.npz", binarize="none").test.batch(slice(None)).max() == pytest.approx(1 / 255)


def test_names_that_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("own.npy", GREY)
    folder_of(tmp_path / "pictures", {f"{i}.png": GREY[i] for i in range(3)})
    assert load("own.npy").name == "own.npy"
    assert load("./own.npy").event_shape == (5, 4)
    assert load("pictures").source == "folder of pictures pictures"


# ---- folders


def folder_of(folder, pictures):
    for name, array in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
        picture.save(folder / name)
    return folder


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "gif"])
def test_a_flat_folder_of_grey_pictures(suffix, tmp_path):
    data = load(folder_of(tmp_path, {f"{i:02}.{suffix}": GREY[i] for i in range(20)}), binarize="none")
    assert data.event_shape == (5, 4)
    assert whole(data) == images_of(GREY.astype(np.float32) / 255)
    assert load(tmp_path).train.binarize == "dynamic"


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_colour_pictures_have_three_channels_first(suffix, tmp_path):
    pictures = {f"{i}.{suffix}": Image.fromarray(COLOUR[i].transpose(1, 2, 0)) for i in range(4)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name, lossless=True)
    data = load(tmp_path)
    assert data.event_shape == (3, 5, 4)
    assert data.train.binarize == "none"
    assert whole(data) == images_of(COLOUR[:4].astype(np.float32) / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_modes_and_jpeg(mode, tmp_path):
    for i in range(3):
        Image.fromarray(GREY[i]).convert(mode).save(tmp_path / f"{i}.png")
    assert load(tmp_path).event_shape == ((5, 4) if mode in ("1", "L", "LA") else (3, 5, 4))


def test_jpeg(tmp_path):
    assert load(folder_of(tmp_path, {f"{i}.jpeg": GREY[i] for i in range(3)})).event_shape == (5, 4)


def test_bilevel_pictures_are_binary(tmp_path):
    data = load(folder_of(tmp_path, {f"{i}.png": BITS[i].astype(bool) for i in range(5)}))
    assert data.train.binarize == "none"
    assert data.train.is_binary


def test_one_folder_per_class(tmp_path):
    pictures = {f"{'cab'[i % 3]}/{i:02}.png": GREY[i] for i in range(20)}
    data = load(folder_of(tmp_path, {**pictures, ".hidden/x.png": GREY[0], "a/.x.png": GREY[0]}))
    seen = {}
    for split in (data.train, data.validation, data.test):
        seen |= {bytes(x): label for x, label in zip(split.pixels.numpy(), split.labels.tolist(), strict=True)}
    assert seen == {bytes(GREY[i]): (2, 0, 1)[i % 3] for i in range(20)}


@pytest.mark.parametrize("classes", [True, False], ids=["classes", "flat"])
def test_folders_called_like_splits(classes, tmp_path):
    pictures = {}
    for split, members in {"train": range(10), "val": range(10, 14), "test": range(14, 20)}.items():
        pictures |= {f"{split}/{f'class{i % 2}/' if classes else ''}{i:02}.png": GREY[i] for i in members}
    data = load(folder_of(tmp_path, pictures))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [10, 4, 6]
    assert np.array_equal(np.sort(data.test.pixels.sum((1, 2))), np.sort(GREY[14:].sum((1, 2))))
    assert data.describe()["split"] == "as given"
    if classes:
        assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def rgba(alpha):
    return Image.fromarray(np.dstack([COLOUR[0].transpose(1, 2, 0), np.full((5, 4), alpha, np.uint8)]))


def moving(folder):
    frames = [Image.fromarray(picture) for picture in GREY[:3]]
    folder.mkdir()
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])


BAD_FOLDERS = {
    "no pictures": (lambda f: f.mkdir(), r"Expected pictures \.png, .* in .*own; got none\. Try"),
    "sizes": (
        lambda f: folder_of(f, {"a.png": GREY[0], "b.png": GREY[1, :4]}),
        r"one size and kind; got .*a\.png 5 x 4 grey and .*b\.png 4 x 4 grey\. Try",
    ),
    "kinds": (
        lambda f: folder_of(f, {"a.png": GREY[0], "b.png": COLOUR[1].transpose(1, 2, 0)}),
        r"got .*a\.png 5 x 4 grey and .*b\.png 5 x 4 colour",
    ),
    "depths": (
        lambda f: folder_of(f, {"a.png": GREY[0], "c/b.png": GREY[1]}),
        r"all flat, or all in one folder per class, in .*own; got 'a\.png' and 'c/b\.png'",
    ),
    "too deep": (lambda f: folder_of(f, {"a/b/c.png": GREY[0]}), r"got 'a/b/c\.png'"),
    "broken": (
        lambda f: (folder_of(f, {"a.png": GREY[0]}) / "b.png").write_bytes(b"not a picture"),
        r"a picture in .*b\.png; got UnidentifiedImageError",
    ),
    "truncated": (
        lambda f: (f / "a.png").write_bytes((folder_of(f, {"a.png": GREY[0]}) / "a.png").read_bytes()[:50]),
        r"a picture in .*a\.png; got \w+: ",
    ),
    "transparent": (lambda f: folder_of(f, {"a.png": rgba(9)}), r"opaque picture in .*a\.png; got transparent"),
    "16 bits": (
        lambda f: folder_of(f, {"a.png": GREY[0].astype(np.uint16)}),
        r"8-bit grey or RGB picture in .*a\.png; got mode I;16",
    ),
    "moving": (moving, r"a still picture in .*a\.gif; got 3 frames"),
    "two pictures": (lambda f: folder_of(f, {"a.png": GREY[0], "b.png": GREY[1]}), r"at least 3 images .*got 2"),
}


@pytest.mark.parametrize(("make", "match"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folders(make, match, tmp_path):
    make(tmp_path / "own")
    with pytest.raises(InputError, match=match):
        load(tmp_path / "own")


# ---- bad arrays


class Planted:
    """A pickle that leaves a mark if it is run."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.planted_ran = True",)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


BAD_ARRAYS = {
    "int64": (
        GREY.astype(np.int64),
        r"uint8, bool or floating pixels in .*; got dtype int64, 0 to 25[0-5], whole numbers: counts, or grey levels of "
        r"another dtype\. Try fit.* with a Poisson .*, for counts; array\.astype\('uint8'\) for grey levels\.$",
    ),
    "counts": (17 * GREY.astype(np.int32), r"got dtype int32, .*counts, or .* for counts; array / array\.max\(\) for grey"),
    "counts as floats": (17.0 * GREY, r"got 0 to 4\d+, whole numbers: counts, or .* Try fit.*Poisson"),
    "integers below zero": (GREY.astype(np.int64) - 300, r"got dtype int64, -300 to .*, measurements or unscaled"),
    "bits as integers": (BITS.astype(np.int64), r"got dtype int64, 0 to 1, binary values\. Try array\.astype\('uint8'\)"),
    "uint16": (GREY.astype(np.uint16), r"got dtype uint16"),
    "complex": (GREY.astype(np.complex64), r"got dtype complex64"),
    "0-d": (np.array(0.5), r"images of shape \(N, \.\.\.\) in .*; got shape \(\)"),
    "1-d": (np.zeros(5), r"got shape \(5,\)\. Try array\[None\]"),
    "no image": (GREY[:0], r"at least one image in .*; got shape \(0, 5, 4\)"),
    "one image": (GREY[:1], r"at least 3 images to split; got 1"),
    "NaN": (np.where(GREY > 100, np.nan, 0.5), r"finite pixels in .*; got NaN or infinity"),
    "infinite": (np.full((5, 2), np.inf), r"finite pixels in .*; got NaN or infinity"),
    "above one": (GREY * 1.0, r"floating pixels from 0 to 1 in .*; got 0 to 25[0-5], whole numbers: counts, or grey"),
    "measurements": (REAL * 3, r"got .* to 2\.9\d*, measurements or unscaled pixels\. Try fit.*in Python, which takes any"),
    "below zero": (REAL - 2, r"from 0 to 1 in .*; got -2 to -1|got -1\.9\d+ to -1\.0\d+"),
}


@pytest.mark.parametrize("write", [write_npy, write_npz, write_pt])
@pytest.mark.parametrize(("array", "match"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(array, match, write, tmp_path):
    with pytest.raises(InputError, match=match):
        load(write(tmp_path, array))


BAD_ARCHIVES = {
    "two arrays": ({"a": GREY, "b": GREY}, r"one array, or one called images, or train in .*; got a, b\. Try"),
    "nothing": ({}, r"one array, or .*; got none"),
    "labels alone": ({"labels": CLASSES}, r"got labels"),
    "images and x": ({"images": GREY, "x": GREY}, r"one of images, x in .*; got images and x"),
    "no train": ({"valid": GREY, "test": GREY}, r"train, validation, test, .*; got valid, test"),
    "misspelt split": ({"train": GREY, "vaild": GREY}, r"train, validation, test, .*; got train, vaild"),
    "two validations": ({"train": GREY, "val": GREY, "valid": GREY}, r"got valid and val\. Try leaving one out"),
    "two shapes": ({"train": GREY, "test": GREY[:, :2]}, r"one image shape in .*got train uint8 \(5, 4\); test"),
    "two dtypes": ({"train": GREY, "test": REAL}, r"one dtype and .*; got train uint8 .*; test float64"),
    "empty test": ({"train": GREY, "test": GREY[:0]}, r"at least one image in test of .*; got shape \(0, 5, 4\)"),
    "number of labels": ({"x": GREY, "y": CLASSES[:5]}, r"integer labels of shape \(20,\) in .*; got int64 \(5,\)"),
    "kind of labels": ({"x": GREY, "y": CLASSES * 1.0}, r"integer labels .*; got float64 \(20,\)"),
    "one in train": ({"train": GREY[:1], "test": GREY}, r"at least 2 images to split; got 1"),
}


@pytest.mark.parametrize(("content", "match"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_bad_archives(content, match, tmp_path):
    np.savez(tmp_path / "own.npz", **content)
    with pytest.raises(InputError, match=match):
        load(tmp_path / "own.npz")


def pickled(path):
    np.save(path, np.array([Planted()]), allow_pickle=True)


BAD_FILES = {
    "empty npy": ("a.npy", lambda p: p.touch(), r"Expected data in .*a\.npy; got an empty file"),
    "empty npz": ("a.npz", lambda p: p.touch(), r"Expected data in .*a\.npz; got an empty file"),
    "empty pt": ("a.pt", lambda p: p.touch(), r"Expected data in .*a\.pt; got an empty file"),
    "text npy": ("a.npy", lambda p: p.write_text("1 2 3"), r"an array without pickled objects in .*a\.npy; got"),
    "cut npy": ("a.npy", lambda p: (np.save(p, GREY), cut(p, 300)), r"an array without .*a\.npy; got ValueError"),
    "cut npz": ("a.npz", lambda p: (np.savez(p, GREY), cut(p, 300)), r"an archive .*a\.npz; got BadZipFile"),
    "cut pt": ("a.pt", lambda p: (torch.save(torch.ones(9, 9), p), cut(p, 300)), r"a tensor or a dict .*a\.pt; got"),
    "text pt": ("a.pt", lambda p: p.write_text("1 2 3"), r"a tensor or a dict of tensors in .*a\.pt; got"),
    "pickle npy": ("a.npy", pickled, r"without pickled objects in .*; got ValueError: Object arrays"),
    "pickle pt": ("a.pt", lambda p: torch.save(Planted(), p), r"dict of tensors in .*; got UnpicklingError"),
    "npz as npy": (
        "a.npy",
        lambda p: write_npz(p.parent, GREY).rename(p),
        r"got TypeError: an archive of arrays under",
    ),
    "npy as npz": (
        "a.npz",
        lambda p: write_npy(p.parent, GREY).rename(p),
        r"got TypeError: a single array under the name",
    ),
    "list in pt": ("a.pt", lambda p: torch.save([1, 2], p), r"got TypeError: a list where a tensor should be"),
    "nested pt": ("a.pt", lambda p: torch.save({"x": {"y": 1}}, p), r"got TypeError: a dict where a tensor should"),
    "suffix": ("a.csv", lambda p: p.write_text("1"), r"a file \.npy, \.npz, \.pt; got '.*a\.csv'\. Try numpy\.save"),
}


@pytest.mark.parametrize(("name", "make", "match"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(name, make, match, tmp_path):
    make(tmp_path / name)
    with pytest.raises(InputError, match=match) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not hasattr(builtins, "planted_ran")
