"""A batch: one tensor x, or the tensors of one call of model and guide."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Arguments:
    r"""The tensors of one call, ``model(*args, **kwargs)``; each has the examples in its first dimension.

    Slicing, ``split``, ``roll``, ``cpu`` and ``device`` are as those of a tensor, over the examples, so that code that
    cuts a batch serves both.

    Args:
        args: positional arguments, (B, \*event_shape) each.
        kwargs: keyword arguments, likewise; at least one tensor in all.

    Example:
        >>> import torch
        >>> batch = Arguments((torch.zeros(4, 3),), {"y": torch.arange(4)})
        >>> len(batch), batch[1:3].kwargs["y"]
        (4, tensor([1, 2]))
    """

    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return B, the number of examples."""
        return len(self.tensors[0])

    def __getitem__(self, where: slice | Tensor) -> "Arguments":
        """Return the examples of a slice, or at indices (B,)."""
        return self.map(lambda tensor: tensor[where])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, the positional ones first."""
        return [*self.args, *self.kwargs.values()]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.tensors[0].device

    def map(self, function: Callable[[Tensor], Tensor]) -> "Arguments":
        """Return the arguments with a function applied to every tensor."""
        return self.filled([function(tensor) for tensor in self.tensors])

    def filled(self, tensors: Sequence[Tensor]) -> "Arguments":
        """Return the same call with other tensors, in the order of :attr:`tensors`."""
        count = len(self.args)
        return Arguments(tuple(tensors[:count]), dict(zip(self.kwargs, tensors[count:], strict=True)))

    def roll(self, shifts: int, dims: int) -> "Arguments":
        """Roll every tensor."""
        return self.map(lambda tensor: tensor.roll(shifts, dims))

    def to(self, device: torch.device) -> "Arguments":
        """Return the same tensors on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def cpu(self) -> "Arguments":
        """Return the same tensors on the CPU."""
        return self.map(lambda tensor: tensor.cpu())

    def split(self, size: int) -> tuple["Arguments", ...]:
        """Split the examples into chunks of at most ``size``."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))


Batch: TypeAlias = Tensor | Arguments
"""A plain tensor x, (B, \\*event_shape), for ``model(x)``; :class:`Arguments` for every other call."""


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
    """Return positional and keyword arguments of model and guide.

    Example:
        >>> import torch
        >>> arguments(torch.zeros(2))
        ((tensor([0., 0.]),), {})
    """
    return ((batch,), {}) if isinstance(batch, Tensor) else (batch.args, batch.kwargs)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch as a flat list, in the order of the call."""
    return [batch] if isinstance(batch, Tensor) else batch.tensors


def of_first(function: Callable[..., object], batch: Batch) -> Callable[[Tensor], object]:
    """Return a function of the first tensor of a call, which is x; the others stay.

    Example:
        >>> import torch
        >>> from pyro_vae.base import Arguments
        >>> batch = Arguments(kwargs={"x": torch.zeros(2), "y": torch.ones(2)})
        >>> of_first(lambda x, y: x + y, batch)(torch.ones(2))
        tensor([2., 2.])
    """

    def of_x(x: Tensor) -> object:
        args, kwargs = arguments(filled(batch, [x, *tensors_of(batch)[1:]]))
        return function(*args, **kwargs)

    return of_x


def filled(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """Return a batch of the same call with other tensors."""
    return tensors[0] if isinstance(batch, Tensor) else batch.filled(tensors)


def splitter(batch: Batch) -> Callable[[Sequence[Tensor]], tuple[Batch, Sequence[Tensor]]]:
    """Return a function that takes a batch of this call from the front of a flat list; it also returns the rest.

    Example:
        >>> import torch
        >>> from pyro_vae.base import Arguments
        >>> x, y, weight = torch.zeros(2), torch.ones(2), torch.tensor(0.5)
        >>> batch, rest = splitter(Arguments((x,), {"y": y}))([x, y, weight])
        >>> list(batch.kwargs), rest
        (['y'], [tensor(0.5000)])
    """
    count = len(tensors_of(batch))
    return lambda flat: (filled(batch, flat[:count]), flat[count:])


def layout(batch: Batch) -> Iterator[tuple[torch.Size, torch.dtype]]:
    """Yield shape and type of every tensor: what a graph is traced for."""
    return ((tensor.shape, tensor.dtype) for tensor in tensors_of(batch))
