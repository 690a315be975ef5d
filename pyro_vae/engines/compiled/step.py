"""A training step as one pure function of tensors: loss, gradients and the estimator's next state."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.errors import InputError
from pyro_vae.base.types import State
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.pathwise import AnalyticKL, SampledKL
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program

REPLACED: dict[type[ELBO], Callable[[int], Estimator]] = {Trace_ELBO: SampledKL, TraceMeanField_ELBO: AnalyticKL}
STOCK = 'engine="svi"'  # runs every program that Pyro can train
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StepResult:
    """One evaluation of the step, before any update; for replicates, every tensor has a first dimension R."""

    loss: Tensor  # scalar, nats, summed over the batch
    norm: Tensor  # scalar, global norm of the gradient before clipping
    gradients: dict[str, Tensor]  # clipped; only of the parameters that the loss depends on
    state: list[Tensor]  # the estimator's next state, in the order of its state_dict

    def flat(self) -> list[Tensor]:
        """Return all tensors in a list, for tracing."""
        return [self.loss, self.norm, *self.gradients.values(), *self.state]

    @classmethod
    def of_flat(cls, flat: Sequence[Tensor], names: Sequence[str]) -> "StepResult":
        """Rebuild a result from :meth:`flat` and the names of the gradients."""
        end = 2 + len(names)
        return cls(flat[0], flat[1], dict(zip(names, flat[2:end], strict=True)), list(flat[end:]))


class Step(Protocol):
    """What an engine needs of a step function, of one program or of replicates."""

    programs: list[Program]  # a single program, or the replicates
    replicated: bool
    kl_weighted: bool  # whether the second argument weights the KL; it is ignored otherwise
    least_kl_weight: float  # the least of the replicates' own weights; 1 for a single program

    def inputs(self) -> list[Tensor]:
        """Return the arguments after the batch and the KL weight: parameters, buffers, the estimator's state."""

    def tensors(self) -> list[Tensor]:
        """Return parameters and buffers, detached; they share storage with the program's."""

    def set_grads(self, result: StepResult) -> None:
        """Set the gradients for the optimiser."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def advance(self, state: Sequence[Tensor]) -> None:
        """Set the estimator's state after a step."""

    def estimator_state(self) -> State:
        """Return the estimator's state for a checkpoint."""

    def load_estimator_state(self, state: State) -> None:
        """Restore the estimator's state from a checkpoint."""

    @property
    def state(self) -> dict[str, Tensor]:
        """The estimator's state, as tensors."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable tensors by name."""

    @property
    def constants(self) -> dict[str, Tensor]:
        """The other tensors by name: buffers and frozen parameters."""

    @property
    def groups(self) -> list[dict[str, list[Tensor]]]:
        """The optimiser's groups of parameters."""

    @property
    def rates(self) -> list[float]:
        """The factor of the learning rate of every group."""


class StepFunction:
    """Loss and gradients of an estimator on a program, as a pure function of tensors.

    Called on (batch, KL weight, parameters, buffers, estimator's state), it returns a :class:`StepResult`.

    Args:
        program: the program, an ``nn.Module``.
        estimator: one of ours; :func:`equal_estimator` gives it for Pyro's own.
        clip_norm: largest global norm of the gradient; infinity for no clipping.
        kl_weighted: whether the second argument weights the KL; it is ignored otherwise.

    Raises:
        InputError: when called, the estimator does not support the program.
    """

    replicated = False
    least_kl_weight = 1.0

    def __init__(
        self, program: Program, estimator: Estimator, clip_norm: float = math.inf, *, kl_weighted: bool = False
    ) -> None:
        self.program, self.estimator, self.programs = program, estimator, [program]
        self.singles = [self]
        self.clip_norm, self.kl_weighted = clip_norm, kl_weighted
        trainable = {name: p for name, p in program.named_parameters() if p.requires_grad}
        self._parameters: dict[str, Tensor] = dict(trainable)
        held = {id(p) for p in trainable.values()}
        self._constants = {name: t for name, t in held_tensors(program).items() if id(t) not in held}
        self._tensors = [t.detach() for t in (*self.parameters.values(), *self.constants.values())]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable tensors by name."""
        return self._parameters

    @property
    def constants(self) -> dict[str, Tensor]:
        """The other tensors by name: buffers and frozen parameters."""
        return self._constants

    @property
    def state(self) -> dict[str, Tensor]:
        """The estimator's state, as tensors."""
        state = self.estimator.state_dict()
        if not state:
            return {}
        device = next(iter(self.parameters.values())).device
        return {k: torch.as_tensor(v, dtype=torch.float64, device=device) for k, v in state.items()}

    def tensors(self) -> list[Tensor]:
        """Return parameters and buffers, detached; they share storage with the program's."""
        return self._tensors

    def inputs(self) -> list[Tensor]:
        """Return the arguments after the batch and the KL weight: parameters, buffers, the estimator's state."""
        return [*self.tensors(), *self.state.values()]

    def names(self) -> list[str]:
        """Return the names of :meth:`inputs`."""
        return [*self.parameters, *self.constants, *self.state]

    def set_grads(self, result: StepResult) -> None:
        """Set the gradients for the optimiser."""
        for name, gradient in result.gradients.items():
            self.parameters[name].grad = laid_out_as(self.parameters[name], gradient)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def advance(self, state: Sequence[Tensor]) -> None:
        """Set the estimator's state after a step."""
        if state:
            self.estimator.load_state_dict(dict(zip(self.state, state, strict=True)))

    def estimator_state(self) -> State:
        """Return the estimator's state for a checkpoint."""
        return dict(self.estimator.state_dict())

    def load_estimator_state(self, state: State) -> None:
        """Restore the estimator's state from a checkpoint."""
        self.estimator.load_state_dict(state)

    @property
    def groups(self) -> list[dict[str, list[Tensor]]]:
        """The optimiser's groups of parameters."""
        return [{"params": list(self.parameters.values())}]

    @property
    def rates(self) -> list[float]:
        """The factor of the learning rate of every group."""
        return [1.0]

    def __call__(self, x: Batch, kl_weight: Tensor, *tensors: Tensor) -> StepResult:
        """Evaluate loss, gradients and the estimator's next state."""
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
            state = [torch.as_tensor(v) for v in self.estimator.state_dict().values()]
        finally:
            self.estimator.load_state_dict(before)
        gradients = {n: g.detach() for n, g in zip(self.parameters, found, strict=True) if g is not None}
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]).norm()
        if math.isfinite(self.clip_norm):  # as torch.nn.utils.clip_grad_norm_
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: g * factor for name, g in gradients.items()}
        return StepResult(loss.detach(), norm, gradients, state)

    def _losses(self, given: Mapping[str, Tensor], x: Batch, kl_weight: Tensor) -> tuple[Tensor, Tensor]:
        estimator = Weighted(self.estimator, kl_weight) if self.kl_weighted else self.estimator

        args, kwargs = arguments(x)

        def losses() -> tuple[Tensor, Tensor]:
            with own_store(self.program):
                return estimator.losses(self.program.model, self.program.guide, *args, **kwargs)

        return swapped(self.program, given, losses)


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient in the parameter's memory layout, which fused optimisers assume without a check."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class _Holder(nn.Module):
    """A module whose ``forward`` calls a function, so that ``functional_call`` can swap the program's parameters."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, function: Callable[[], T], tensors: Mapping[str, Tensor]) -> T:
        found = function()
        for name, buffer in cast(nn.Module, self.program).named_buffers():
            if name in tensors and buffer is not tensors[name]:  # assigned anew; the swap would lose it
                tensors[name].detach().copy_(buffer.detach())
        return found


def held_tensors(program: Program) -> dict[str, Tensor]:
    """Return parameters and buffers by name; not copies."""
    module = cast(nn.Module, program)
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def swapped(program: Program, tensors: Mapping[str, Tensor], function: Callable[[], T]) -> T:
    """Call a function with other tensors in place of the program's parameters and buffers.

    A buffer that the program assigns anew (``self.mean = 0.9 * self.mean + ...``) is changed in place instead.
    """
    named = {f"program.{name}": tensor for name, tensor in tensors.items()}
    found: T = torch.func.functional_call(_Holder(program), named, (function, tensors))
    return found


def equal_estimator(estimator: ELBO) -> Estimator:
    """Return an :class:`Estimator` equal in value and gradient: the one given, or the equivalent of Pyro's own.

    Pyro's ``Trace_ELBO`` synchronises with the device at every site; ``SampledKL`` does not. ``AnalyticKL`` replaces
    ``TraceMeanField_ELBO``; where Pyro samples a KL, it has a closed form of its own or refuses.

    Raises:
        InputError: any other ``pyro.infer.ELBO``.

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
