"""Tracing a step: Pyro's handlers run during the trace and never again.

The traced graph consists of ATen operations: loss, gradients, their norm and its clipping. It samples from the
device's generator in the order of the eager program, so the two can be compared on the same noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.base.batch import Batch, splitter, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.engines.compiled.compare import check_same, on_fixed_noise
from pyro_vae.engines.compiled.step import STOCK, Step, StepFunction, StepResult
from pyro_vae.program.explain import explained, program_error
from pyro_vae.program.handlers import LastSite

Flat = Callable[..., list[Tensor]]


@dataclass(frozen=True, eq=False)
class TracedStep:
    """A step as a graph of tensors, those of the batch first, and the names of the parameters that have a gradient."""

    flat: Flat
    trained: tuple[str, ...]

    def __call__(self, x: Batch, kl_weight: Tensor, *tensors: Tensor) -> StepResult:
        """Evaluate the graph."""
        return StepResult.of_flat(self.flat(*tensors_of(x), kl_weight, *tensors), self.trained)

    def by(self, flat: Flat) -> "TracedStep":
        """Return the same step, evaluated by another graph."""
        return replace(self, flat=flat)

    @property
    def graph(self) -> GraphModule:
        """The traced graph, before it is compiled."""
        assert isinstance(self.flat, GraphModule)
        return self.flat


@torch.no_grad()
def traced(function: StepFunction, x: Batch, kl_weight: Tensor) -> TracedStep:
    """Trace the step on a batch; random states and global switches are restored.

    Raises:
        InputError: the program cannot be traced (it branches on a sampled value, asks for a number with ``.item()``),
            with the place and the site; the estimator does not support the program.
    """
    visited, trained, split = LastSite(), list[str](), splitter(x)

    def flat(*inputs: Tensor) -> list[Tensor]:
        batch, rest = split(inputs)
        result = function(batch, *rest)
        trained[:] = result.gradients
        return result.flat()

    try:
        with isolated_rng(x.device), visited, pyro.validation_enabled(False):
            graph: GraphModule = make_fx(flat)(*tensors_of(x), kl_weight, *(t.clone() for t in function.inputs()))
    except InputError:
        raise
    except Exception as error:  # make_fx raises whatever the program's own code raises
        site = f"; this one got as far as site {visited.name!r}" if visited.name else ""
        what = f"that can be traced once (no branch on a sampled value, no .item()){site}"
        raise program_error(error, what, STOCK) from error
    return TracedStep(graph, tuple(trained))


def reference_run(function: StepFunction, x: Batch, kl_weight: Tensor) -> list[Tensor]:
    """Run the eager program with Pyro's validation on, on a rolled batch and other noise than the trace's.

    Raises:
        InputError: an invalid argument of a distribution; the estimator does not support the program.
    """
    with explained("whose distributions get valid arguments"):
        return on_fixed_noise(lambda *t: function(x.roll(1, 0), kl_weight, *t).flat(), function.inputs(), validate=True)


def trace_checked(function: StepFunction, x: Batch, kl_weight: Tensor) -> TracedStep:
    """Run the eager program once (:func:`reference_run`), trace it once, and compare the two.

    Raises:
        InputError: the program cannot be traced, or the trace differs from it.
    """
    reference = reference_run(function, x, kl_weight)
    step = traced(function, x, kl_weight)
    check_step(step, function, x, kl_weight, reference)
    return step


def check_compiled(compiled: TracedStep, step: TracedStep, function: Step, x: Batch, kl_weight: Tensor) -> float:
    """Compare a compiled step with the traced one on the same noise and data; return the largest error.

    Raises:
        InputError: they differ.
    """
    reference = on_fixed_noise(lambda *t: step.flat(*tensors_of(x.roll(1, 0)), kl_weight, *t), function.inputs())
    return check_step(compiled, function, x, kl_weight, reference)


def check_step(step: TracedStep, function: Step, x: Batch, kl_weight: Tensor, reference: list[Tensor]) -> float:
    """Compare a graph with a :func:`reference_run` on the same noise and data; return the largest error.

    Raises:
        InputError: they differ: the trace froze a number (sampled by NumPy, counted in Python).
    """
    found = on_fixed_noise(lambda *t: step.flat(*tensors_of(x.roll(1, 0)), kl_weight, *t), function.inputs())
    names = ["the loss", "the gradient's norm", *(f"the gradient of {name}" for name in step.trained)]
    names += ["the estimator's state"] * len(function.state)
    names += [f"{name} after the step" for name in (*function.parameters, *function.constants, *function.state)]
    return check_same(found, reference, names)
