"""Work in chunks that are kept as they are finished: a killed evaluation goes on where it stood."""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.files import atomic_write

Values = dict[str, Tensor]
Tick = Callable[[int], None]


class ChunkStore:
    """Finished chunks in a folder, a file each, under a fingerprint of all that determines them.

    Chunks of another fingerprint lie in folders of their own: they are neither used nor removed. A file is written
    whole under another name and renamed.

    Args:
        folder: where; None keeps nothing.
        part: the part of the evaluation.
        determined_by: all that the chunks depend on, ready for JSON.
    """

    def __init__(self, folder: Path | None, part: str, determined_by: Mapping[str, Any]) -> None:
        text = json.dumps(determined_by, sort_keys=True, indent=2, default=str)
        self._text = text + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = None if folder is None else folder / "chunks" / f"{part}-{digest}"

    def load(self, start: int, stop: int) -> Values | None:
        """Return a finished chunk; None where it is not there.

        Raises:
            InputError: the file is damaged.
        """
        if self.folder is None or not (path := self._path(start, stop)).is_file():
            return None
        try:
            values: Values = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes raise anything
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise InputError("a whole chunk of an evaluation", f"{path}: {reason}", "removing that file") from None
        return values

    def save(self, start: int, stop: int, values: Values) -> None:
        """Keep a finished chunk.

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
    work: Callable[[slice, int], Values],
    tick: Tick = lambda done: None,
) -> Values:
    """Do work on data chunk by chunk and join the results along the data.

    Args:
        store: finished chunks are read from it and kept in it.
        total: number of data.
        chunk: data in a chunk.
        work: (where, number of the chunk) -> name -> values, the data in their first dimension.
        tick: called with the number of data done, after every chunk.

    Example:
        >>> nowhere = ChunkStore(None, "doubled", {})
        >>> in_chunks(nowhere, 5, 2, lambda where, number: {"twice": 2 * torch.arange(5)[where]})
        {'twice': tensor([0, 2, 4, 6, 8])}
    """
    joined: Values = {}
    for number, start in enumerate(range(0, total, chunk)):
        stop = min(start + chunk, total)
        values = store.load(start, stop)
        if values is None:
            values = {name: value.cpu() for name, value in work(slice(start, stop), number).items()}
            store.save(start, stop, values)
        if chunk >= total:  # a single chunk: its values need not be of data
            joined = values
        else:
            _put(joined, values, start, total)
        tick(stop)
    return joined


def _put(joined: Values, values: Values, start: int, total: int) -> None:
    """Write a chunk's values into one tensor for all data.

    Small tensors that outlive their chunk, one by one, would keep the heap from giving back what chunks used.
    """
    for name, value in values.items():
        whole = joined.setdefault(name, value.new_empty((total, *value.shape[1:])))
        whole[start : start + len(value)] = value


def chunk_seed(seed: int, part: str, number: int) -> int:
    """Return the seed of a chunk: a function of (seed, part, number), so that no chunk needs those before it.

    Example:
        >>> chunk_seed(0, "bounds", 3) == chunk_seed(0, "bounds", 3) != chunk_seed(0, "bounds", 4)
        True
    """
    key = (seed, zlib.crc32(part.encode()), number)
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 2)


def crc(tensors: Mapping[str, Any]) -> str:
    """Return a checksum of named tensors, names and shapes included; other values by their text.

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
    """Return a checksum of this package's sources: figures of other code are other figures."""
    package = Path(__file__).parents[1]
    total = 0
    for file in sorted(package.rglob("*.py")):
        total = zlib.crc32(file.read_bytes(), zlib.crc32(file.relative_to(package).as_posix().encode(), total))
    return f"{total:08x}"
