"""OMNIGLOT in the four published formats, 28 x 28, ink bright."""

import io
import re
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images
from pyro_vae.data.levels import to_levels
from pyro_vae.data.reading import Array, Format, pick, read_first, read_mat, read_npz, reading
from pyro_vae.data.splits import Parts

CHARACTERS = {"background": 964, "evaluation": 659}
DRAWINGS = 20  # per character
CHARDATA_SIZES = {"": 24345, "test": 8070}
SIDE, SMALL = 105, 28
DRAWING = re.compile(r"(\d{4})_(\d{2})\.png")  # number of the character from 0001, number of the drawer
CHUNK = 1000  # images reduced at a time: 44 MB of float32


def read_omniglot(root: Path, download: bool) -> Parts:
    """Return 1623 handwritten characters: background for training, evaluation for testing.

    ``chardata.mat`` is the IWAE paper's reduction and split, which differ from the others': log-likelihoods on it and
    on the other formats cannot be compared. ``DataSet.source`` says which was used.

    References:
        B. Lake, R. Salakhutdinov and J. Tenenbaum, Human-level concept learning through probabilistic
        program induction, Science 350, 2015.
        Y. Burda, R. Grosse and R. Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016.
    """
    pair = ("images_background", "images_evaluation")
    formats = (
        Format(("chardata.mat",), "28 x 28 of the IWAE paper", _chardata),
        Format(("omniglot_28x28.npz",), "28 x 28 area means", _small),
        Format((f"{pair[0]}.npz", f"{pair[1]}.npz"), "105 x 105, reduced to 28 x 28 area means", _large),
        Format((f"{pair[0]}.zip", f"{pair[1]}.zip"), "as published, reduced to 28 x 28 area means", _drawings),
    )
    return read_first(root, "omniglot", formats, "https://github.com/brendenlake/omniglot")


def area_means(ink: Array) -> Array:
    r"""Reduce drawings to 28 x 28 by the exact mean of the 3.75 x 3.75 area that each pixel covers.

    With :math:`W_{ij}` the quarter-pixels shared by source column j and target column i (15 for each i),
    :math:`s = W\,\text{ink}\,W^\top \le 225` is an integer, and the level is :math:`255 s / 225 = 17 s / 15`,
    rounded; it is never halfway between two integers.

    Args:
        ink: (N, 105, 105) bool, True where there is ink.

    Returns:
        (N, 28, 28) uint8, ink 255.

    Example:
        >>> import numpy as np
        >>> area_means(np.ones((1, 105, 105), dtype=bool))[0, 0, :3]
        array([255, 255, 255], dtype=uint8)
    """
    overlap = _overlap()
    return np.concatenate([_reduce(ink[i : i + CHUNK], overlap) for i in range(0, len(ink), CHUNK)])


def _reduce(ink: Array, overlap: Array) -> Array:
    # float32 is exact here, since every partial sum is an integer below 2^24, and its matmul is fast.
    area = (overlap @ ink.astype(np.float32) @ overlap.T).astype(np.int64)  # (N, 28, 28)
    return ((34 * area + 15) // 30).astype(np.uint8)


def _overlap() -> Array:
    """Return W, (28, 105), in quarters: target i covers [15 i, 15 i + 15), source j [4 j, 4 j + 4)."""
    target, source = np.arange(SMALL)[:, None] * 15, np.arange(SIDE)[None, :] * 4
    shared = np.minimum(target + 15, source + 4) - np.maximum(target, source)
    overlap: Array = shared.clip(min=0).astype(np.float32)
    return overlap


def _images(pixels: Array, labels: Array) -> Images:
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _chardata(paths: list[Path]) -> Parts:
    arrays = read_mat(paths[0])
    train, test = (_chardata_split(arrays, prefix, paths[0]) for prefix in CHARDATA_SIZES)
    return Parts(train, test=test)


def _chardata_split(arrays: dict[str, Array], prefix: str, path: Path) -> Images:
    size = CHARDATA_SIZES[prefix]
    columns = pick(arrays, f"{prefix}data", path, (SMALL * SMALL, size), "fub")
    upright = columns.T.reshape(size, SMALL, SMALL).transpose(0, 2, 1)  # the file is column-major
    pixels, top = to_levels(upright, str(path))
    return Images(pixels, _alphabets(arrays, f"{prefix}target", path, size), top)


def _alphabets(arrays: dict[str, Array], name: str, path: Path, size: int) -> torch.Tensor | None:
    """Return each drawing's alphabet, 0 to 49; the published file has it one-hot."""
    if name not in arrays:
        return None
    return torch.from_numpy(pick(arrays, name, path, (-1, size), "fubi").argmax(axis=0).astype(np.int64))


def _small(paths: list[Path]) -> Parts:
    arrays = read_npz(paths[0])
    train, test = (_small_split(arrays, split, paths[0]) for split in CHARACTERS)
    return Parts(train, test=test)


def _small_split(arrays: dict[str, Array], split: str, path: Path) -> Images:
    size = CHARACTERS[split] * DRAWINGS
    pixels = pick(arrays, split, path, (size, SMALL, SMALL))
    return _images(pixels, pick(arrays, f"{split}_labels", path, (size,), "iu"))


def _large(paths: list[Path]) -> Parts:
    background, evaluation = CHARACTERS.values()
    train = _large_split(paths[0], background, 0)
    return Parts(train, test=_large_split(paths[1], evaluation, background))


def _large_split(path: Path, characters: int, first: int) -> Images:
    arrays, shape = read_npz(path), (characters, DRAWINGS)
    paper = pick(arrays, "images", path, (*shape, SIDE, SIDE), "b").reshape(-1, SIDE, SIDE)
    labels = pick(arrays, "labels", path, shape, "iu").reshape(-1)
    return _images(area_means(~paper), labels.astype(np.int64) + first)


def _drawings(paths: list[Path]) -> Parts:
    background, evaluation = CHARACTERS.values()
    train, test = _zip_split(paths[0], background), _zip_split(paths[1], evaluation)
    return Parts(train, test=test)


def _zip_split(path: Path, characters: int) -> Images:
    """Read the PNG files of a published archive, in the order of the original numbering."""
    with reading(path, "a zip archive of PNG files") as file, zipfile.ZipFile(file) as archive:
        members = sorted(_members(archive), key=lambda member: PurePosixPath(member).name)
        if len(members) != characters * DRAWINGS:
            expected = f"{characters * DRAWINGS} drawings NNNN_DD.png in {path}"
            raise InputError(expected, f"{len(members)}", "the published archive")
        ink = np.stack([_ink(archive.read(member), f"{path}:{member}") for member in members])
    numbers = [int(PurePosixPath(member).name[:4]) - 1 for member in members]
    return _images(area_means(ink), np.array(numbers))


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if DRAWING.fullmatch(PurePosixPath(name).name)]


def _ink(content: bytes, where: str) -> Array:
    with Image.open(io.BytesIO(content)) as picture:
        paper: Array = np.asarray(picture.convert("L")) > 127
    if paper.shape != (SIDE, SIDE):
        raise InputError(f"{SIDE} x {SIDE} pixels in {where}", f"{paper.shape}", "the published archive")
    return ~paper
