"""Digits, Frey Face, statically binarized MNIST and Caltech 101 Silhouettes, from their published files."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images
from pyro_vae.data.reading import (
    Array,
    Format,
    check_top,
    fits,
    pick,
    read_first,
    read_mat,
    read_npy,
    read_npz,
    reading,
)
from pyro_vae.data.splits import Parts

FREY_SHAPE = (1965, 28, 20)
SPLITS = ("train", "valid", "test")
BINARIZED_SIZES = {"train": 50000, "valid": 10000, "test": 10000}
CALTECH_SIZES = {"train": 4100, "val": 2264, "test": 2307}


def read_digits(root: Path, download: bool) -> Parts:
    """Return scikit-learn's 1797 digits of 8 x 8 pixels, levels 0 to 16, which are part of its package.

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    digits = load_digits()
    pixels = torch.from_numpy(digits.images.astype(np.uint8))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Parts(Images(pixels, labels, max_value=16), source="sklearn.datasets.load_digits")


def read_frey(root: Path, download: bool) -> Parts:
    """Return the 1965 video frames of Frey Face, 28 x 20, grey, in video order.

    References:
        S. Roweis, L. Saul and G. Hinton, Global Coordination of Local Linear Models, NIPS 2001.
    """
    formats = (
        Format(("freyfaces.npy",), "array", _frey_npy),
        Format(("frey_rawface.mat",), "as published", _frey_mat),
    )
    return read_first(root, "frey-face", formats, "https://cs.nyu.edu/~roweis/data.html")


def _frey_npy(paths: list[Path]) -> Parts:
    array = read_npy(paths[0])
    if not fits(array.shape, FREY_SHAPE) or array.dtype != np.uint8:
        got = f"{array.dtype} {array.shape}"
        raise InputError(f"uint8 {FREY_SHAPE} in {paths[0]}", got, "the published file")
    return Parts(Images(torch.from_numpy(np.ascontiguousarray(array))))


def _frey_mat(paths: list[Path]) -> Parts:
    number, height, width = FREY_SHAPE
    columns = pick(read_mat(paths[0]), "ff", paths[0], (height * width, number))
    return Parts(Images(torch.from_numpy(columns.T.reshape(FREY_SHAPE).copy())))


def read_binarized_mnist(root: Path, download: bool) -> Parts:
    """Return MNIST binarized once: 50000, 10000 and 10000 images, without labels.

    References:
        R. Salakhutdinov and I. Murray, On the quantitative analysis of deep belief networks, ICML 2008.
        H. Larochelle and I. Murray, The Neural Autoregressive Distribution Estimator, AISTATS 2011.
    """
    formats = (
        Format(("binarized_mnist_packed.npz",), "eight pixels per byte", _binarized_packed),
        Format(tuple(f"binarized_mnist_{split}.amat" for split in SPLITS), "as published", _binarized_text),
    )
    home = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
    return read_first(root, "binarized-mnist", formats, home)


def _binary(pixels: Array, labels: Array | None = None) -> Images:
    classes = None if labels is None else torch.from_numpy(labels)
    return Images(torch.from_numpy(pixels.reshape(-1, 28, 28).copy()), classes, max_value=1)


def _binarized_packed(paths: list[Path]) -> Parts:
    arrays = read_npz(paths[0])
    packed = [pick(arrays, split, paths[0], (BINARIZED_SIZES[split], 98)) for split in SPLITS]
    train, valid, test = (_binary(np.unpackbits(bits, axis=1, count=784)) for bits in packed)
    return Parts(train, valid, test)


def _binarized_text(paths: list[Path]) -> Parts:
    train, valid, test = (
        _binary(_read_amat(path, BINARIZED_SIZES[split])) for split, path in zip(SPLITS, paths, strict=True)
    )
    return Parts(train, valid, test)


def _read_amat(path: Path, rows: int) -> Array:
    """Read lines of 784 blank-separated digits 0 or 1; numpy.loadtxt would need a minute for 110 MB."""
    with reading(path, "lines of digits") as file:
        lines = file.read().translate(None, b" \t\r").split()
    widths = {len(line) for line in lines}
    if len(lines) != rows or widths != {784}:
        got = f"{len(lines)} lines of {', '.join(map(str, sorted(widths)[:3])) or 0}"
        raise InputError(f"{rows} lines of 784 digits in {path}", got, "a fresh copy")
    pixels = np.frombuffer(b"".join(lines), dtype=np.uint8) - ord("0")
    check_top(pixels, 1, path)
    return pixels


def read_caltech(root: Path, download: bool) -> Parts:
    """Return the outlines of Caltech 101 objects, white on black, 28 x 28; labels 0 to 100.

    References:
        B. Marlin, K. Swersky, B. Chen and N. de Freitas, Inductive Principles for Restricted Boltzmann
        Machine Learning, AISTATS 2010.
    """
    formats = (Format(("caltech101_silhouettes_28_split1.mat",), "as published", _caltech_mat),)
    return read_first(root, "caltech101-silhouettes", formats, "https://people.cs.umass.edu/~marlin/data.shtml")


def _caltech_mat(paths: list[Path]) -> Parts:
    arrays = read_mat(paths[0])
    train, val, test = (_silhouettes(arrays, split, paths[0]) for split in CALTECH_SIZES)
    return Parts(train, val, test)


def _silhouettes(arrays: dict[str, Array], split: str, path: Path) -> Images:
    size = CALTECH_SIZES[split]
    pixels = pick(arrays, f"{split}_data", path, (size, 784))
    check_top(pixels, 1, path)
    labels = pick(arrays, f"{split}_labels", path, (size, 1)).reshape(-1).astype(np.int64) - 1
    # In the file the object is 0, and pixels are column-major.
    return _binary(1 - pixels.reshape(-1, 28, 28).transpose(0, 2, 1), labels)
