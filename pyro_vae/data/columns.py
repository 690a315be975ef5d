"""A data set of several tensors: what model and guide take beside x (labels, lengths, masks)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_vae.base.batch import Arguments
from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images

Column: TypeAlias = Images | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Columns:
    r"""N examples in several tensors: a batch is a call, ``model(*args, **kwargs)``.

    Images are scaled and binarized batch by batch; a tensor reaches the program as it is, in its own type.

    Args:
        args: positional arguments: :class:`Images`, or tensors (N, \*event_shape); (N,) for labels and lengths.
        kwargs: keyword arguments, likewise.

    Raises:
        InputError: no column; numbers of examples that differ; a uint8 tensor, which may mean grey levels or counts;
            NaN or infinity.

    Example:
        >>> import torch
        >>> data = Columns((torch.arange(6.0).reshape(3, 2),), {"y": torch.tensor([4, 5, 6])})
        >>> batch = data.batch(torch.tensor([2, 0]))
        >>> batch.args[0], batch.kwargs["y"]
        (tensor([[4., 5.],
                [0., 1.]]), tensor([6, 4]))
    """

    args: tuple[Column, ...] = ()
    kwargs: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the columns once, so that batches need no checks."""
        if not self.columns:
            raise InputError("at least one tensor", "an empty tuple or mapping", "fit(program, (x, y))")
        for name, column in self.columns.items():
            _check_column(name, column)
        sizes = {name: len(column) for name, column in self.columns.items()}
        if len(set(sizes.values())) > 1:
            raise InputError("tensors of one number of examples", sizes, "the same first dimension in all")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {_shape(column)}" for name, column in self.columns.items())
        return f"Columns({len(self)} of {shapes}, {self.device})"

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return len(next(iter(self.columns.values())))

    @property
    def columns(self) -> dict[int | str, Column]:
        """Every column: by its position, or by its name."""
        found: dict[int | str, Column] = dict(enumerate(self.args))
        return found | dict(self.kwargs)

    @property
    def device(self) -> torch.device:
        """The device of the tensors, and of the batches."""
        return next(iter(self.columns.values())).device

    def to(self, device: torch.device | str) -> "Columns":
        """Return the same examples on another device."""
        return self._map(lambda column: column.to(device))

    def subset(self, index: Tensor) -> "Columns":
        """Return the examples at ``index``, (B,)."""
        where = index.to(self.device)
        return self._map(lambda column: column.subset(where) if isinstance(column, Images) else column[where])

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Arguments:
        """Gather the examples of a batch; images are scaled and binarized, one after the other.

        Args:
            index: indices (B,), or a slice.
            generator: a generator on the same device, used by ``dynamic`` images only; None: torch's global one.
        """
        where = index if isinstance(index, slice) else index.to(self.device)

        def taken(column: Column) -> Tensor:
            return column.batch(where, generator) if isinstance(column, Images) else column[where]

        return Arguments(tuple(map(taken, self.args)), {name: taken(column) for name, column in self.kwargs.items()})

    def binarized(self, seed: int) -> Arguments:
        """Return all examples, images binarized once by the seed, for held-out bounds."""
        return self.batch(slice(None), torch.Generator(self.device).manual_seed(seed))

    def _map(self, function: Callable[[Column], Column]) -> "Columns":
        return Columns(
            tuple(map(function, self.args)), {name: function(column) for name, column in self.kwargs.items()}
        )


Data: TypeAlias = Images | Columns
"""What a program is trained on, ready for batches."""


def event_shapes(data: Data) -> dict[int | str, tuple[int, ...]]:
    """Return the shape of one example, of every argument: what training and validation data must share.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Columns
        >>> event_shapes(Columns((torch.zeros(5, 3),), {"y": torch.zeros(5)}))
        {0: (3,), 'y': ()}
    """
    columns = data.columns if isinstance(data, Columns) else {0: data}
    return {name: _shape(column) for name, column in columns.items()}


def _shape(column: Column) -> tuple[int, ...]:
    return tuple(column.event_shape if isinstance(column, Images) else column.shape[1:])


def _check_column(name: int | str, column: Column) -> None:
    which = f"argument {name!r}" if isinstance(name, str) else f"argument {name + 1}"
    if isinstance(column, Images):
        return
    if not isinstance(column, Tensor):
        raise InputError(f"a tensor, an array or Images as {which}", type(column).__name__, "torch.as_tensor(...)")
    if column.dim() == 0 or len(column) == 0:
        got = f"shape {tuple(column.shape)}"
        raise InputError(f"{which} of shape (N, ...), with examples", got, "examples in the first dimension")
    if column.dtype == torch.uint8:
        hint = "Images(x) for grey levels, x.long() for labels or counts"
        raise InputError(f"{which} of a type that says what its numbers are", "torch.uint8", hint)
    if column.is_complex():
        raise InputError(f"real numbers as {which}", f"{column.dtype}", "torch.view_as_real(x)")
    if column.is_floating_point() and not bool(torch.isfinite(column).all()):
        raise InputError(f"finite numbers as {which}", "NaN or infinity", "zeros there, and a mask beside them")
