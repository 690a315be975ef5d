"""Replicates: R copies of a program trained together, which show the spread of a result over seeds."""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.program.adapter import as_program
from pyro_vae.program.protocol import Program


class Replicates(nn.Module):
    """R programs of one architecture, each with its own parameters; a container, not a program.

    ``fit(Replicates(programs), data)`` trains them in one graph, batched over parameters: the same batches, separate
    noise. Evaluation and figures take one of ``programs``.

    Args:
        programs: modules with ``model`` and ``guide`` that differ only in parameter values.
        rates: a factor of the learning rate for each; 1 by default.
        kl_weights: a weight of the KL for each (β of a β-VAE); 1 by default.

    Raises:
        InputError: no program; different architectures; shared parameters; not one rate or weight per program.

    Example:
        >>> from pyro_vae import VAE
        >>> len(Replicates([VAE((4,), latent_dim=2) for _ in range(3)], kl_weights=[0.5, 1.0, 2.0]).programs)
        3
    """

    def __init__(
        self,
        programs: Iterable[nn.Module],
        rates: Sequence[float] | None = None,
        kl_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.programs = nn.ModuleList(programs)
        if not len(self.programs):
            raise InputError("at least one program", "none", "Replicates([program, ...])")
        self.rates = _one_each("rates", rates, len(self.programs))
        self.kl_weights = _one_each("kl_weights", kl_weights, len(self.programs))
        layouts = [_layout(program) for program in self.programs]
        if any(layout != layouts[0] for layout in layouts):
            raise InputError("programs of one architecture", "parameters of other names or shapes", "one constructor")
        if len({id(p) for program in self.programs for p in program.parameters()}) < sum(
            len(list(program.parameters())) for program in self.programs
        ):
            raise InputError("programs with their own parameters", "shared ones", "a new program for each replicate")

    def __len__(self) -> int:
        """Return R."""
        return len(self.programs)


def members(thing: Program | Replicates) -> list[Program]:
    """Return the programs of replicates, or a list of the single program."""
    return cast(list[Program], list(thing.programs)) if isinstance(thing, Replicates) else [thing]


def first_of(thing: object) -> object:
    """Return the first of replicates, anything else unchanged."""
    return thing.programs[0] if isinstance(thing, Replicates) else thing


def as_trainable(thing: object, example: Batch) -> Program | Replicates:
    """Return replicates unchanged, anything else as a program (:func:`~pyro_vae.program.as_program`)."""
    return thing if isinstance(thing, Replicates) else as_program(thing, example)


def _layout(program: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
    """Return name, shape, type and whether it is trained, of every tensor."""
    tensors = [*program.named_parameters(), *program.named_buffers()]
    return [(name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors]


def _one_each(name: str, values: Sequence[float] | None, count: int) -> tuple[float, ...]:
    found = (1.0,) * count if values is None else tuple(values)
    if len(found) != count or not all(math.isfinite(value) and value > 0 for value in found):
        raise InputError(f"{name}: {count} finite numbers above 0, one per program", values, f"{name}=None")
    return found
