"""Comparing a graph with the eager program on the same noise."""

import math
from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.engines.compiled.step import STOCK

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative to the largest entry; a wrong trace is off by more
NEGLIGIBLE = 1e-2  # of the largest gradient
SEED = 20_000  # seeds the noise on which graph and program are compared


@torch.no_grad()
def on_fixed_noise(
    call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], *, validate: bool = False
) -> list[Tensor]:
    """Call a function on copies of tensors, with torch, NumPy and Python seeded; return its outputs, then the copies.

    The copies show what the call changed in place (buffers).
    """
    given = [t.clone() for t in inputs]
    with isolated_rng(inputs[0].device, SEED), pyro.validation_enabled(validate):
        return [t.clone() for t in call(*given)] + given


def check_same(found: Sequence[Tensor], reference: Sequence[Tensor], names: Sequence[str]) -> float:
    """Compare the tensors of two calls on the same noise; return the largest relative error (:func:`tensor_errors`).

    Raises:
        InputError: they differ.
    """
    errors = tensor_errors(found, reference)
    worst = max(range(len(errors)), key=lambda i: errors[i])
    if not errors[worst] <= TOLERANCES.get(reference[0].dtype, 1e-3):
        raise InputError(
            "a trace that equals the program on the same noise",
            f"{names[worst]} off by {errors[worst]:.2g} of its size: it uses noise or state that is not torch's own",
            STOCK,
        )
    return errors[worst]


def tensor_errors(values: Sequence[Tensor], references: Sequence[Tensor]) -> list[float]:
    """Return each tensor's largest difference, relative to its reference's largest entry.

    The scale of a reference is at least :data:`NEGLIGIBLE` of the largest gradient's: some gradients are pure rounding
    error (a bias before a batch normalisation). An entry that is finite in only one of the two counts as infinite.
    """
    finite = [r.double().abs().nan_to_num(nan=0.0, posinf=0.0) for r in references]
    sizes = [float(r.max()) if r.numel() else 0.0 for r in finite]
    counted = [size for r, size in zip(references, sizes, strict=True) if r.is_floating_point()]  # no counts of steps
    least = NEGLIGIBLE * max(counted[1:], default=0.0)  # the first is the loss, a sum over examples
    return [_error(v, r, max(size, least)) for v, r, size in zip(values, references, sizes, strict=True)]


def _error(value: Tensor, reference: Tensor, size: float) -> float:
    if value.shape != reference.shape:
        return math.inf
    value, reference = value.double(), reference.double()
    same = (value == reference) | (value.isnan() & reference.isnan())
    difference = torch.where(same, 0.0, (value - reference).abs()).nan_to_num(nan=math.inf)
    largest = float(difference.max()) if difference.numel() else 0.0
    return largest / size if largest else 0.0
