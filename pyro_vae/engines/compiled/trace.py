"""Tracing a step: Pyro's handlers run during the trace and never again.

The traced graph consists of ATen operations: loss, gradients, their norm and its clipping. It samples from the
device's generator in the order of the eager program, so the two can be compared on the same noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from pyro_vae.engines.compiled.shapes import refuse_varying_shapes
from pyro_vae.engines.compiled.step import STOCK, Step, StepFunction, StepResult
from pyro_vae.program.explain import program_error
from pyro_vae.program.handlers import LastSite

Flat = Callable[..., list[Tensor]]
AFTER = " after the step"  # what a step has left in its inputs


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

    def what() -> str:
        site = f"; this one got as far as site {visited.name!r}" if visited.name else ""
        return f"that can be traced once (no branch on a sampled value, no .item()){site}"

    with refusing(what), isolated_rng(x.device), visited, pyro.validation_enabled(False):
        graph: GraphModule = make_fx(flat)(*tensors_of(x), kl_weight, *(t.clone() for t in function.inputs()))
    first = len(tensors_of(x)) + 1 + len(function.parameters)
    refuse_varying_shapes(graph, range(first, first + len(function.constants)))
    return TracedStep(graph, tuple(trained))


@contextmanager
def refusing(what: Callable[[], str], hint: str = STOCK) -> Iterator[None]:
    """Turn any error of a block into an InputError that says what a program should be, where it was raised, and why.

    Tracing, and a graph that runs, raise whatever the program's own code or torch raises.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise program_error(error, what(), hint) from error


def reference_run(function: StepFunction, x: Batch, kl_weight: Tensor, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Take the :func:`eager_step` with Pyro's validation on.

    Raises:
        InputError: an invalid argument of a distribution; the estimator does not support the program.
    """
    with refusing(
        lambda: "whose distributions get valid arguments", "running model and guide on a small batch by hand"
    ):
        return eager_step(function, x, kl_weight, inputs, validate=True)


def eager_step(
    function: StepFunction, x: Batch, kl_weight: Tensor, inputs: Sequence[Tensor], *, validate: bool = False
) -> dict[str, Tensor]:
    """Run the eager program on a rolled batch and other noise than the trace's; the inputs stay as they are.

    Returns what the step computed and what it left in copies of its inputs, by name.
    """
    trained: list[str] = []

    def call(*tensors: Tensor) -> list[Tensor]:
        result = function(x.roll(1, 0), kl_weight, *tensors)
        trained[:] = result.gradients
        return result.flat()

    found = on_fixed_noise(call, inputs, validate=validate)
    return dict(zip(output_names(function, trained), found, strict=True))


def output_names(function: Step, trained: Sequence[str]) -> list[str]:
    """Return the names of what :func:`on_fixed_noise` returns of a step, in its order."""
    names = ["the loss", "the gradient's norm", *(f"the gradient of {name}" for name in trained)]
    names += [f"the estimator's {name}" for name in function.state]
    return names + [f"{name}{AFTER}" for name in (*function.parameters, *function.constants, *function.state)]


def trace_checked(function: StepFunction, x: Batch, kl_weight: Tensor, reference: Mapping[str, Tensor]) -> TracedStep:
    """Trace the program once, and compare the trace with a :func:`reference_run` on the same data.

    Raises:
        InputError: the program cannot be traced, or the trace differs from it.
    """
    step = traced(function, x, kl_weight)
    check_step(step, function, x, kl_weight, list(reference.values()))
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
    with refusing(lambda: "whose graph runs on other data and noise than those of its trace"):
        found = on_fixed_noise(lambda *t: step.flat(*tensors_of(x.roll(1, 0)), kl_weight, *t), function.inputs())
    return check_same(found, reference, output_names(function, step.trained))
