"""Types that every package shares: states for checkpoints, values for JSON, callbacks, and Pyro functions."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

State: TypeAlias = dict[str, Any]
"""Tensors and plain values by name: what ``torch.load(weights_only=True)`` reads back."""

Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | list[Json] | tuple[Json, ...] | None"
"""What a JSON file holds; :func:`~pyro_vae.base.files.write_json` turns NaN and infinity into null."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` while something long runs."""

PyroFunction: TypeAlias = Callable[..., object]
"""A Pyro model or guide; what it returns is not used."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing: the default :data:`Progress`."""
