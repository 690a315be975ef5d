"""A training step as one pure function of tensors, and its trace: Pyro's handlers run while it is traced, never after.

The traced graph is made of ATen operations alone: loss, the gradient of every parameter, its norm and its clipping. It
draws from the device's generator just as the eager program does, so that the two can be compared on the same noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.pathwise import AnalyticKL, SampledKL
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program

REPLACED: dict[type, Callable[[int], Estimator]] = {Trace_ELBO: SampledKL, TraceMeanField_ELBO: AnalyticKL}


STOCK = "--engine svi"  # what takes every program that Pyro takes


@dataclass(frozen=True, eq=False)
class StepResult:
    """What one evaluation of the step gives: nothing is updated yet."""

    loss: Tensor  # scalar, nats, summed over the batch
    norm: Tensor  # scalar, of the whole gradient before clipping
    gradients: list[Tensor]  # clipped; of the parameters that have one
    memory: list[Tensor]  # what the estimator remembers, in the order of its state


class StepFunction:
    """Loss and gradients of an estimator on a program, as a pure function of tensors.

    Called on (x, weight of the KL, parameters, buffers, memory), it returns the tensors of a :class:`StepResult`, flat.

    Args:
        program: the program, an ``nn.Module``.
        estimator: one of ours; :func:`equal_estimator` gives it for Pyro's own.
        clip_norm: largest norm of the whole gradient; infinity for no limit.

    Attributes:
        weighted: whether the KL is weighted by the second argument, which is else not looked at.

    Raises:
        InputError: when called, what the estimator refuses of the program.
    """

    def __init__(self, program: Program, estimator: Estimator, clip_norm: float = math.inf) -> None:
        self.program, self.estimator = program, estimator
        self.clip_norm, self.weighted = clip_norm, False
        trained = {name: p for name, p in program.named_parameters() if p.requires_grad}
        self.parameters: dict[str, Tensor] = dict(trained)
        held = {id(p) for p in trained.values()}
        self.constants = {name: t for name, t in held_tensors(program).items() if id(t) not in held}
        self._tensors = [t.detach() for t in (*self.parameters.values(), *self.constants.values())]
        self._trained: list[str] = []

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the estimator remembers, as tensors."""
        remembered = self.estimator.state_dict()
        if not remembered:
            return {}
        device = next(iter(self.parameters.values())).device
        return {k: torch.as_tensor(v, dtype=torch.float64, device=device) for k, v in remembered.items()}

    def tensors(self) -> list[Tensor]:
        """Return parameters and buffers as they stand, without a gradient; storage is shared."""
        return self._tensors

    def inputs(self) -> list[Tensor]:
        """Return parameters, buffers and memory: what the function is called on, after batch and weight."""
        return [*self.tensors(), *self.memory.values()]

    @property
    def trained(self) -> list[str]:
        """The names of the parameters that the loss depends on, in order; known once the function has been called."""
        return self._trained

    def result(self, flat: Sequence[Tensor]) -> StepResult:
        """Give the flat tensors their names."""
        count = len(self.trained)
        return StepResult(flat[0], flat[1], list(flat[2 : 2 + count]), list(flat[2 + count :]))

    def hand_over(self, result: StepResult) -> None:
        """Put the gradients where an optimiser looks for them."""
        for name, gradient in zip(self.trained, result.gradients, strict=True):
            self.parameters[name].grad = laid_out_as(self.parameters[name], gradient)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What an optimiser is given."""
        return [{"params": list(self.parameters.values())}]

    @property
    def rates(self) -> list[float]:
        """The factor of the learning rate of every group."""
        return [1.0]

    def let_go(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def remember(self, result: StepResult) -> None:
        """Give the estimator what it is to remember."""
        if result.memory:
            self.estimator.load_state_dict(dict(zip(self.memory, result.memory, strict=True)))

    def __call__(self, x: Tensor, kl_weight: Tensor, *tensors: Tensor) -> list[Tensor]:
        """Evaluate the step; the gradient is taken inside."""
        sizes = len(self.parameters), len(self.constants)
        leaves = [t.detach().requires_grad_() for t in tensors[: sizes[0]]]
        constants = tensors[sizes[0] : sum(sizes)]
        before = self.estimator.state_dict()
        names = (*self.parameters, *self.constants)
        try:
            self.estimator.load_state_dict(dict(zip(before, tensors[sum(sizes) :], strict=True)))
            given = dict(zip(names, (*leaves, *constants), strict=True))
            with torch.enable_grad():
                loss, surrogate = self._losses(given, x, kl_weight)
                found = torch.autograd.grad(surrogate, leaves, allow_unused=True)
            memory = [torch.as_tensor(v) for v in self.estimator.state_dict().values()]
        finally:
            self.estimator.load_state_dict(before)
        self._trained = [name for name, g in zip(self.parameters, found, strict=True) if g is not None]
        gradients = [g.detach() for g in found if g is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        if math.isfinite(self.clip_norm):  # as torch.nn.utils.clip_grad_norm_
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [g * factor for g in gradients]
        return [loss.detach(), norm, *gradients, *memory]

    def _losses(self, given: Mapping[str, Tensor], x: Tensor, kl_weight: Tensor) -> tuple[Tensor, Tensor]:
        estimator = Weighted(self.estimator, kl_weight) if self.weighted else self.estimator

        def losses() -> tuple[Tensor, Tensor]:
            with own_store(self.program):
                return estimator.losses(self.program.model, self.program.guide, x)

        return swapped(self.program, given, losses)


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient in the parameter's memory layout, which fused optimisers take for granted."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


T = TypeVar("T")


class _Holder(nn.Module):
    """A module whose forward calls a function: what ``functional_call`` swaps parameters for."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def held_tensors(program: Program) -> dict[str, Tensor]:
    """Return parameters and buffers by name, the tensors themselves."""
    module = cast(nn.Module, program)
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def swapped(program: Program, tensors: Mapping[str, Tensor], function: Callable[[], T]) -> T:
    """Call a function while the program has other tensors in the place of its parameters and buffers."""
    named = {f"program.{name}": tensor for name, tensor in tensors.items()}
    found: T = torch.func.functional_call(_Holder(program), named, (function,))
    return found


def equal_estimator(estimator: Any) -> Estimator:
    """Return an estimator of ours that equals the one given: itself, or what stands for Pyro's own.

    Pyro's ``Trace_ELBO`` waits for the device at every site; ``sampled_kl`` is the same number and gradient without
    that, and so is ``analytic_kl`` for ``TraceMeanField_ELBO``.

    Raises:
        InputError: another ``pyro.infer.ELBO``.

    Example:
        >>> equal_estimator(Trace_ELBO(num_particles=5))
        SampledKL(num_particles=5)
    """
    if isinstance(estimator, Estimator):
        return estimator
    if type(estimator) not in REPLACED:
        got = type(estimator).__name__
        raise InputError("an estimator that engine compiled can trace: one of ESTIMATORS, or a subclass of", got, STOCK)
    return REPLACED[type(estimator)](estimator.num_particles)
