"""Finished chunks in files: a killed evaluation resumes where it stopped."""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TypeVar, cast, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.files import atomic_write
from pyro_vae.base.statistics import chunk_sizes

R = TypeVar("R")
Packed = dict[str, object]  # a result as nested dictionaries of tensors and plain values
Tick = Callable[[int], None]


class ChunkStore:
    """Finished chunks in a folder, one file each, under a fingerprint of everything that determines them.

    Chunks of other fingerprints lie in other folders; they are neither used nor removed. A chunk is the result of a
    part, a frozen dataclass of tensors and plain values; its file holds dictionaries and loads with
    ``weights_only=True``.

    Args:
        folder: where to save; None saves nothing.
        part: the part of the evaluation.
        determined_by: everything that the chunks depend on, as JSON values.
    """

    def __init__(self, folder: Path | None, part: str, determined_by: Mapping[str, object]) -> None:
        text = json.dumps(determined_by, sort_keys=True, indent=2, default=str)
        self._text = text + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = None if folder is None else folder / "chunks" / f"{part}-{digest}"

    def load(self, start: int, stop: int) -> Packed | None:
        """Return a finished chunk, or None.

        Raises:
            InputError: the file is damaged.
        """
        if self.folder is None or not (path := self._path(start, stop)).is_file():
            return None
        try:
            values: Packed = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes raise anything
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise InputError("a whole chunk of an evaluation", f"{path}: {reason}", "removing that file") from None
        return values

    def save(self, start: int, stop: int, values: Packed) -> None:
        """Save a finished chunk.

        Raises:
            InputError: the folder cannot be written.
        """
        if self.folder is None:
            return
        with atomic_write(self.folder / "determined_by.json", parents=True, durable=True) as partial:
            partial.write_text(self._text)
        with atomic_write(self._path(start, stop), durable=True) as partial:
            torch.save(values, partial)

    def _path(self, start: int, stop: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{start:08d}-{stop:08d}.pt"


def in_chunks(
    store: ChunkStore,
    total: int,
    chunk: int,
    work: Callable[[slice, int], R],
    result: type[R],
    tick: Tick = lambda done: None,
) -> R:
    """Work on examples chunk by chunk and join the results along the examples.

    Args:
        store: finished chunks are loaded from it and saved to it.
        total: number of examples.
        chunk: examples in a chunk.
        work: (where, number of the chunk) -> a dataclass of tensors, the examples in their first dimension.
        result: the type of that dataclass.
        tick: called with the number of examples done, after every chunk.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Doubled:
        ...     twice: Tensor
        >>> def double(where, number):
        ...     return Doubled(2 * torch.arange(5)[where])
        >>> in_chunks(ChunkStore(None, "doubled", {}), 5, 2, double, Doubled)
        Doubled(twice=tensor([0, 2, 4, 6, 8]))
    """
    joined: Packed = {}
    for number, size in enumerate(chunk_sizes(total, chunk)):
        start = number * chunk
        stop = start + size
        values = store.load(start, stop)
        if values is None:
            values = pack(work(slice(start, stop), number))
            store.save(start, stop, values)
        if chunk >= total:  # a single chunk: its tensors may have any shape
            joined = values
        else:
            _put(joined, values, start, total)
        tick(stop)
    return unpack(result, joined)


def pack(result: object) -> Packed:
    """Return a dataclass as nested dictionaries of tensors on the CPU and plain values."""
    return cast(Packed, _packed(result))


def _packed(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _packed(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value


def unpack(kind: type[R], values: Packed) -> R:
    """Return the dataclass that :func:`pack` took apart, from the types of its fields."""
    hints = get_type_hints(kind)
    return kind(**{name: _unpacked(hints[name], values[name]) for name in values})


def _unpacked(kind: type[object], value: object) -> object:
    if is_dataclass(kind):
        return unpack(kind, cast(Packed, value))
    if isinstance(value, dict):
        item = get_args(kind)[1]
        return {key: _unpacked(item, part) for key, part in value.items()}
    if NoneType in get_args(kind) and value is not None:
        return _unpacked(next(k for k in get_args(kind) if k is not NoneType), value)
    return value


def _put(joined: Packed, values: Packed, start: int, total: int) -> None:
    """Write a chunk's tensors into one tensor for all examples.

    Small tensors that outlive their chunk would fragment the heap, and the memory of chunks would not be freed.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            _put(cast(Packed, joined.setdefault(name, {})), value, start, total)
        elif isinstance(value, Tensor):
            whole = joined.setdefault(name, value.new_empty((total, *value.shape[1:])))
            assert isinstance(whole, Tensor)
            whole[start : start + len(value)] = value
        else:
            assert joined.setdefault(name, value) == value, f"{name} differs between chunks"


def chunk_seed(seed: int, part: str, number: int) -> int:
    """Return the seed of a chunk, a function of (seed, part, number): chunks do not depend on earlier ones.

    Example:
        >>> chunk_seed(0, "bounds", 3) == chunk_seed(0, "bounds", 3) != chunk_seed(0, "bounds", 4)
        True
    """
    key = (seed, zlib.crc32(part.encode()), number)
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 2)


def crc(tensors: Mapping[str, object]) -> str:
    """Return a checksum of named tensors, their names and shapes; of other values, of their ``repr``.

    Example:
        >>> crc({"a": torch.zeros(2)}) == crc({"a": torch.zeros(2)}) != crc({"a": torch.zeros(3)})
        True
    """
    total = 0
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            total = zlib.crc32(f"{name} {tuple(value.shape)} {value.dtype}".encode(), total)
            total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().tobytes(), total)
        else:
            total = zlib.crc32(f"{name} {value!r}".encode(), total)
    return f"{total:08x}"


@functools.cache
def code() -> str:
    """Return a checksum of this package's sources: other code, other figures."""
    package = Path(__file__).parents[1]
    total = 0
    for file in sorted(package.rglob("*.py")):
        total = zlib.crc32(file.read_bytes(), zlib.crc32(file.relative_to(package).as_posix().encode(), total))
    return f"{total:08x}"
