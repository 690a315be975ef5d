"""MNIST and Fashion-MNIST: IDX files, read in place or downloaded by torchvision."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images
from pyro_vae.data.reading import Array, reading
from pyro_vae.data.splits import Parts

HELD_OUT = 5000  # of the 60000 training images, for validation
SIZES = {"train": 60000, "t10k": 10000}
# What torchvision's download raises: RuntimeError, errors of urllib, disk, HTTP and gzip.
FAILURES = (RuntimeError, OSError, HTTPException, EOFError, zlib.error)


@dataclass(frozen=True)
class Idx:
    """A set of four IDX files, and torchvision's class with its mirrors and md5 sums.

    Args:
        name: the folder below the data root.
        kind: ``torchvision.datasets.MNIST`` or a subclass.
        home: the public page of the set.
    """

    name: str
    kind: type[MNIST]
    home: str

    def read(self, root: Path, download: bool) -> Parts:
        """Read the four files without writing anything; download them first if they are missing.

        Raises:
            InputError: a damaged file, or files that are missing and not downloaded.
        """
        folder = self._find(root)
        if folder is None:
            folder = self._fetch(root) if download else self._refuse(root)
        train, test = (_images(folder, part, self._sums()) for part in ("train", "t10k"))
        return Parts(train, None, test, HELD_OUT, source=f"IDX files in {folder}")

    def folders(self, root: Path) -> tuple[Path, Path]:
        """Return the two folders that may hold the files: one of the set, and torchvision's layout."""
        raw = Path(self.kind.__name__, "raw")
        return root / self.name / raw, root / raw

    def _sums(self) -> dict[str, str]:
        return dict(self.kind.resources)

    def _find(self, root: Path) -> Path | None:
        for folder in self.folders(root):
            if all((folder / name).is_file() or (folder / name[:-3]).is_file() for name in self._sums()):
                return folder
        return None

    def _refuse(self, root: Path) -> Path:
        looked = " and ".join(map(str, self.folders(root)))
        hint = f"download=True, or the four files from {self.home}"
        raise InputError(f"{', '.join(self._sums())}", f"no such files in {looked}", hint)

    def _fetch(self, root: Path) -> Path:
        """Download to a temporary folder and move the complete files, so that a failure leaves nothing behind."""
        folder = self.folders(root)[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".download-", dir=root / self.name) as scratch:
                self.kind(scratch, download=True)
                for name in self._sums():
                    os.replace(Path(scratch, self.kind.__name__, "raw", name), folder / name)
        except FAILURES as error:
            raise self._unfetched(root, error) from error
        return folder

    def _unfetched(self, root: Path, error: Exception) -> InputError:
        looked = " and ".join(map(str, self.folders(root)))
        reason = " ".join(str(error).split()).rstrip(".")
        got = f"no such files in {looked}, and the download failed ({type(error).__name__}: {reason})"
        hint = f"again with a network connection, or put the four files there from {self.home}"
        return InputError(f"{', '.join(self._sums())}", got, hint)


def _images(folder: Path, part: str, sums: dict[str, str]) -> Images:
    pixels = _read(folder / f"{part}-images-idx3-ubyte.gz", sums, (SIZES[part], 28, 28))
    labels = _read(folder / f"{part}-labels-idx1-ubyte.gz", sums, (SIZES[part],))
    return Images(pixels, labels.to(torch.int64))


def _read(archive: Path, sums: dict[str, str], shape: tuple[int, ...]) -> Tensor:
    """Read the published archive after a check of its md5, else the unpacked file of the same name."""
    path = archive if archive.is_file() else archive.with_suffix("")
    with reading(path, "an IDX file") as file:
        if path is archive:
            return _parse(_unpack(file.read(), archive, sums), archive, shape)
        return _parse(file.read(), path, shape)


def _unpack(packed: bytes, archive: Path, sums: dict[str, str]) -> bytes:
    found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if found != sums[archive.name]:
        hint = "deleting that file and loading again, which downloads it"
        raise InputError(f"md5 {sums[archive.name]} of {archive}", f"md5 {found}, a damaged file", hint)
    return gzip.decompress(packed)


def _parse(content: bytes, path: Path, shape: tuple[int, ...]) -> Tensor:
    """Parse an IDX file: 0, 0, 8 (uint8), number of dimensions, each as big-endian uint32, the values."""
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
    expected = len(header) + int(np.prod(shape))
    if not content.startswith(header) or len(content) != expected:
        got = f"{len(content)} bytes that begin with {content[: len(header)].hex()}"
        raise InputError(f"{expected} bytes of uint8 {shape} in IDX form in {path}", got, "a fresh copy")
    values: Array = np.frombuffer(content, dtype=np.uint8, offset=len(header))
    return torch.from_numpy(values.reshape(shape).copy())
