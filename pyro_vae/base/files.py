"""Files: checked before long work, and written atomically."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_vae.base.errors import InputError


def check_output(file: str | None) -> None:
    """Check, before long work, that its result can be written to ``file``.

    Raises:
        InputError: ``file`` is a folder, or its folder cannot be written.
    """
    if file is None:
        return
    path = Path(file).expanduser().absolute()
    existing = next((parent for parent in path.parents if parent.exists()), path)  # the root has no parents
    if path.is_dir() or not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("a file that can be written", f"{file!r}, which cannot", "another path")


def finite(value: object) -> object:
    """Return a value for JSON, which has neither NaN nor infinity: both become null.

    Example:
        >>> finite({"error": float("nan"), "sizes": [1, 2.5]})
        {'error': None, 'sizes': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def atomic_write(path: Path, *, parents: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` when the block ends without an error.

    At any time ``path`` is the complete old file or the complete new one.

    Args:
        path: the file.
        parents: make the folder of the file if it does not exist.
        durable: flush file and folder to the disk, so that the new file survives a power failure.

    Raises:
        InputError: the file cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> with atomic_write(path, parents=True) as partial:
        ...     _ = partial.write_text("whole")
        >>> path.read_text(), [file.name for file in path.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            _flush(partial)
        partial.replace(path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        raise InputError("a file that can be written", f"{path}: {error.strerror}", "another path") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically (:func:`atomic_write`), making the folder; NaN and infinity become null."""
    with atomic_write(path, parents=True) as partial:
        partial.write_text(json.dumps(finite(value), indent=2, sort_keys=False, default=str) + "\n")


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
