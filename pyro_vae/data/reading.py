"""Finding and reading data files; every failure is an InputError of one line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import scipy.io

from pyro_vae.base.errors import InputError
from pyro_vae.data.splits import Parts

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Format:
    """One published format of a set: its files (all required), a description and a reader."""

    files: tuple[str, ...]
    what: str
    read: Callable[[list[Path]], Parts]


def read_first(root: Path, name: str, formats: Sequence[Format], home: str) -> Parts:
    """Read the first format whose files are all in ``root/name`` or in ``root``.

    Raises:
        InputError: no format is complete; the message names the folders, the files and the set's home page.
    """
    folders = (root / name, root)
    for choice in formats:
        for folder in folders:
            paths = [folder / file for file in choice.files]
            if all(path.is_file() for path in paths):
                return replace(choice.read(paths), source=f"{_names(choice)} ({choice.what}) in {folder}")
    accepted = ", or ".join(_names(choice) for choice in formats)
    looked = " and ".join(map(str, folders))
    raise InputError(f"{accepted}", f"no such files in {looked}", f"downloading {name} from {home}")


def _names(choice: Format) -> str:
    return " + ".join(choice.files)


@contextmanager
def reading(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file, and turn any error of its parser into an InputError.

    Pass the open file, not the path, to parsers that leave their file open when they fail.

    Raises:
        InputError: names the file, what was expected, and the first line of the parser's message.

    Example:
        >>> from pathlib import Path
        >>> with reading(Path("/dev/null"), "an array"):
        ...     raise EOFError("no data")
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected an array in /dev/null; got EOFError: no data. Try a fresh copy.
    """
    try:
        with path.open("rb") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # on damaged bytes parsers raise anything: zlib.error, KeyError, ...
        lines = str(error).splitlines() or ["no details"]
        got = f"{type(error).__name__}: {lines[0][:200].rstrip('.')}"
        raise InputError(f"{what} in {path}", got, "a fresh copy") from error


def check_not_empty(path: Path) -> None:
    """Check that a file is not empty: parsers' messages about that are puzzling."""
    if path.stat().st_size == 0:
        raise InputError(f"data in {path}", "an empty file", "a fresh copy")


def read_npy(path: Path) -> Array:
    """Read one array; pickled objects are rejected, since they can run code."""
    check_not_empty(path)
    with reading(path, "an array without pickled objects") as file:
        array: Array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("an archive of arrays under the name of a single one")
        return array


def read_npz(path: Path) -> dict[str, Array]:
    """Read every array of an archive; pickled objects are rejected, since they can run code."""
    check_not_empty(path)
    with reading(path, "an archive of arrays without pickled objects") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise TypeError("a single array under the name of an archive")
        with archive:
            return {name: archive[name] for name in archive.files}


def read_mat(path: Path) -> dict[str, Array]:
    """Read every array of a MATLAB file (version 7.2 or older)."""
    check_not_empty(path)
    with reading(path, "a MATLAB file"):
        content = scipy.io.loadmat(path)
        return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def pick(arrays: dict[str, Array], name: str, path: Path, shape: tuple[int, ...], kinds: str = "u") -> Array:
    """Return ``arrays[name]`` if its shape and dtype kind are those of the published file.

    Args:
        arrays: the content of ``path``.
        name: the name of the array.
        path: the file, for the message.
        shape: the published shape; -1 matches any size.
        kinds: accepted numpy dtype kinds: b bool, u unsigned, i signed, f floating.

    Raises:
        InputError: the array is missing, or differs in shape or dtype kind.
    """
    if name not in arrays:
        raise InputError(f"{name!r} in {path}", f"{sorted(arrays)}", "the published file")
    array = arrays[name]
    if not fits(array.shape, shape):
        raise InputError(f"{name!r} of shape {shape} in {path}", f"{array.shape}", "the published file")
    if array.dtype.kind not in kinds:
        raise InputError(f"{name!r} of dtype kind {kinds} in {path}", f"{array.dtype}", "the published file")
    return array


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Compare shapes; -1 matches any size.

    Example:
        >>> fits((5, 3), (-1, 3))
        True
    """
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def check_top(array: Array, top: int, path: Path) -> None:
    """Check that no level is above ``top``, as in the published file."""
    if array.max() > top:
        raise InputError(f"levels from 0 to {top} in {path}", f"{array.max()}", "the published file")
