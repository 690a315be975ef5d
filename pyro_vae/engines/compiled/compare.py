"""Comparing a graph with the eager program on the same noise."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.engines.compiled.step import STOCK

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}  # of a tensor's largest entry; a wrong trace is off by far more


NEGLIGIBLE = 1e-2  # of the largest gradient


@torch.no_grad()
def check_trace(
    graph: Callable[..., Any],
    function: Any,
    x: Tensor,
    kl_weight: Tensor,
    reference: Callable[..., Any] | None = None,
) -> float:
    """Compare a graph with the eager program on noise and data that it was not traced on; return the largest error.

    Args:
        graph: what is checked.
        function: the step, a :class:`StepFunction` or the like of it.
        x: a batch.
        kl_weight: a scalar.
        reference: what to compare with; the eager function itself by default.

    The error of a tensor is relative to its largest entry.

    Raises:
        InputError: they differ: the trace has frozen a number (drawn by numpy, counted in Python).
    """
    one, other = (partial(call, x.roll(1, 0), kl_weight) for call in (graph, reference or function))
    names = ["the loss", "the gradient's norm", *(f"the gradient of {name}" for name in function.trained)]
    names += ["the estimator's memory"] * len(function.memory)
    names += [f"{name} after the step" for name in (*function.parameters, *function.constants, *function.memory)]
    return check_same(one, other, function.inputs(), names)


@torch.no_grad()
def check_same(
    graph: Callable[..., Any], reference: Callable[..., Any], inputs: Sequence[Tensor], names: Sequence[str]
) -> float:
    """Call both on copies of the same tensors and the same noise; return the largest error of outputs and inputs.

    Raises:
        InputError: they differ.
    """
    device, results = inputs[0].device, []
    for evaluate in (graph, reference):
        given = [t.clone() for t in inputs]
        with isolated_rng(device, seed=20_000), pyro.validation_enabled(False):  # numpy's and Python's noise, too
            results.append([t.clone() for t in evaluate(*given)] + given)
    errors = tensor_errors(*results)
    worst = max(range(len(errors)), key=lambda i: errors[i])
    if not errors[worst] <= TOLERANCES.get(results[1][0].dtype, 1e-3):
        raise InputError(
            "a trace that equals the program on the same noise",
            f"{names[worst]} off by {errors[worst]:.2g} of its size: something that changes is not torch's own",
            STOCK,
        )
    return errors[worst]


def tensor_errors(values: Sequence[Tensor], references: Sequence[Tensor]) -> list[float]:
    """Return each tensor's largest difference, relative to its reference's largest entry.

    A reference below :data:`NEGLIGIBLE` of the largest of all counts as that large: some gradients are nothing but the
    rounding of what cancels (a bias before a batch normalisation). A number that is finite in one alone: infinite.
    """
    finite = [r.double().abs().nan_to_num(nan=0.0, posinf=0.0) for r in references]
    sizes = [float(r.max()) if r.numel() else 0.0 for r in finite]
    least = NEGLIGIBLE * max(sizes[1:], default=0.0)  # the first is the loss, a sum over data
    return [_error(v, r, max(size, least)) for v, r, size in zip(values, references, sizes, strict=True)]


def _error(value: Tensor, reference: Tensor, size: float) -> float:
    if value.shape != reference.shape:
        return math.inf
    value, reference = value.double(), reference.double()
    same = (value == reference) | (value.isnan() & reference.isnan())
    difference = torch.where(same, 0.0, (value - reference).abs()).nan_to_num(nan=math.inf)
    largest = float(difference.max()) if difference.numel() else 0.0
    return largest / size if largest else 0.0
