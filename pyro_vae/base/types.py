"""Types that every package shares: states for checkpoints, values for JSON, callbacks, and Pyro functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

State: TypeAlias = dict[str, Any]
"""Tensors and plain values by name: what ``torch.load(weights_only=True)`` reads back."""

Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | Sequence[Json] | None"
"""A value of a JSON file; :func:`~pyro_vae.base.files.write_json` turns NaN and infinity into null."""


PyroFunction: TypeAlias = Callable[..., object]
"""A Pyro model or guide; what it returns is not used."""


class Progress(Protocol):
    """A callback that reports the progress of long work."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of ``what`` are done."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing: the default :class:`Progress`."""
