"""Files: checked before long work, written whole or not at all."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vae.base.errors import InputError


def check_output(file: str | None) -> None:
    """Refuse, before long work, a file that could not be written after it.

    Raises:
        InputError: it is a folder, or lies where nothing can be written.
    """
    if file is None:
        return
    path = Path(file).expanduser().absolute()
    there = next((parent for parent in path.parents if parent.exists()), path)  # the root has no parents
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError("a file that can be written", f"{file!r}, which cannot", "another path")


def finite(value: Any) -> Any:
    """Return a value for JSON, which knows neither NaN nor infinity: both become null.

    Example:
        >>> finite({"error": float("nan"), "sizes": [1, 2.5]})
        {'error': None, 'sizes': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; a folder that is not there is made.

    Raises:
        InputError: the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(finite(value), indent=2, sort_keys=False, default=str) + "\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError("a file that can be written", f"{path}: {error.strerror}", "another path") from None


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
