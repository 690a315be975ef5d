"""The published data sets by name, and ``load``, which also takes a path."""

import difflib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import MNIST, FashionMNIST

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.data.images import BINARIZATIONS, Binarization, Images
from pyro_vae.data.mnist import Idx
from pyro_vae.data.omniglot import read_omniglot
from pyro_vae.data.published import read_binarized_mnist, read_caltech, read_digits, read_frey
from pyro_vae.data.splits import Parts, complete, how_split
from pyro_vae.data.user_files import default_binarization, read_user_files


@dataclass(frozen=True)
class Source:
    """A published set: its reader, its default binarization and a description.

    ``read(root, download)`` reads the set below the data root; only sets that torchvision can download use
    ``download``.
    """

    read: Callable[[Path, bool], Parts]
    binarize: Binarization
    what: str


_MNIST = Idx("mnist", MNIST, "http://yann.lecun.com/exdb/mnist/")
_FASHION = Idx("fashion-mnist", FashionMNIST, "https://github.com/zalandoresearch/fashion-mnist")

DATASETS: dict[str, Source] = {
    "digits": Source(read_digits, "dynamic", "1797 digits, 8 x 8, part of scikit-learn"),
    "mnist": Source(_MNIST.read, "dynamic", "70000 digits, 28 x 28"),
    "fashion-mnist": Source(_FASHION.read, "dynamic", "70000 pieces of clothing, 28 x 28"),
    "frey-face": Source(read_frey, "none", "1965 video frames of a face, 28 x 20"),
    "omniglot": Source(read_omniglot, "dynamic", "32460 handwritten characters, 28 x 28"),
    "binarized-mnist": Source(read_binarized_mnist, "none", "70000 digits, 28 x 28, binarized once"),
    "caltech101-silhouettes": Source(read_caltech, "none", "8671 outlines of objects, 28 x 28, binary"),
}


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training, validation and test images of one event shape, and their source.

    Args:
        name: a key of ``DATASETS``, or the name of the user's file or folder.
        train: images to fit.
        validation: images for model selection.
        test: images for final figures.
        source: files and format, one line.
        split: how the splits were made.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    source: str
    split: str = "as published"

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image."""
        return self.train.event_shape

    def describe(self) -> dict[str, object]:
        """Return what a run records about its data, as JSON values.

        Example:
            >>> from pyro_vae import load
            >>> load("digits").describe()["sizes"]
            {'train': 1439, 'validation': 179, 'test': 179}
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "source": self.source,
            "binarize": self.train.binarize,
            "event_shape": list(self.event_shape),
            "sizes": {split: len(images) for split, images in splits.items()},
            "split": self.split,
            "crc32": _digest([images.pixels for images in splits.values()]),
            "labels": None if self.train.labels is None else _digest([images.labels for images in splits.values()]),
        }


def load(
    name: str | Path,
    root: str | Path | None = None,
    *,
    binarize: Binarization | None = None,
    seed: int = 0,
    download: bool = True,
) -> DataSet:
    """Load a published set by name, or your own images by path.

    Args:
        name: a key of ``DATASETS``; or a path to ``.npy``, ``.npz``, ``.pt`` or a folder of pictures.
        root: the data root, in which each published set has a folder; None means ``data``.
        binarize: one of ``BINARIZATIONS``; None means the default of the set.
        seed: seed of the splits that are not published; the same seed gives the same splits.
        download: whether to download sets that torchvision provides (MNIST, Fashion-MNIST) if they are missing.

    Raises:
        InputError: an unknown name, missing or damaged files, or unusable images.

    Example:
        >>> import torch
        >>> from pyro_vae import load
        >>> data = load("digits", seed=0)
        >>> data.train.batch(torch.arange(100), torch.Generator().manual_seed(0)).shape
        torch.Size([100, 8, 8])
    """
    if binarize is not None:
        lookup({known: known for known in BINARIZATIONS}, binarize, "binarization")
    if is_path(name):
        path = _existing(Path(name).expanduser())
        parts = read_user_files(path)
        return _data_set(path.name, parts, binarize or default_binarization(parts.train), seed)
    source = lookup(DATASETS, str(name), "data set")
    folder = Path("data" if root is None else root).expanduser().absolute()
    return _data_set(str(name), source.read(folder, download), binarize or source.binarize, seed)


def _digest(parts: Sequence[Tensor | None]) -> str:
    """Return a checksum of all pixels, or of all labels, by which a run recognises its data."""
    total = 0
    for part in parts:
        total = total if part is None else zlib.crc32(part.cpu().contiguous().numpy().tobytes(), total)
    return f"{total:08x}"


def _data_set(name: str, parts: Parts, binarize: Binarization, seed: int) -> DataSet:
    train, validation, test = (replace(images, binarize=binarize) for images in complete(parts, seed))
    return DataSet(name, train, validation, test, parts.source, how_split(parts, seed))


def is_path(name: str | Path) -> bool:
    """Tell a path from a name; the name of a published set is a name even where a folder has that name."""
    if isinstance(name, Path):
        return True
    if name in DATASETS or not name:
        return False
    return "/" in name or os.sep in name or Path(name).suffix != "" or Path(name).expanduser().exists()


def _existing(path: Path) -> Path:
    if not path.exists():
        near = difflib.get_close_matches(path.stem.lower(), DATASETS, n=1, cutoff=0.6)
        hint = f"{near[0]!r}, if you mean that data set" if near else "an existing path"
        raise InputError("a file or folder of images", f"{str(path)!r}, which does not exist", hint)
    return path
