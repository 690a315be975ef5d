r"""What every estimator shares: one draw, three log-densities, and weights for three gradient terms.

Noise is sampled in one place (:class:`~pyro_vae.elbo.Draw`); all the rest is arithmetic on tensors of shape (K, B). An
estimator is a function from the :class:`~pyro_vae.elbo.Terms` of a draw to a :class:`Weighting`: the value of its
bound, and for every particle the weights a, b, c of

.. math::

    \nabla = \sum_k a_k \underbrace{\nabla_\theta \log p(x, z_k)}_{\theta\text{ term}}
    + b_k \underbrace{\nabla_z \log w_k \, \frac{dz_k}{d\varphi}}_{\text{pathwise term}}
    + c_k \underbrace{\nabla_\varphi \log q(z_k|x)}_{\text{score term}}

with the θ and score terms at fixed z. Four classes say which weights there are and turn them into a gradient:

========================  =====================  ==========================================================
class                     weights                for
========================  =====================  ==========================================================
:class:`TotalDerivative`  a = b = −c             ELBO, IWAE and their kin: the derivative of Σ a log w
:class:`PathDerivative`   a = b, c = 0           sticking the landing
:class:`ThreeTerms`       a, b, c                DReG, PIWAE
:class:`ScoreFunction`    a, b = 0, c            REINFORCE, VIMCO, wake-sleep, TVO; discrete latents too
========================  =====================  ==========================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, Self

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents, Terms
from pyro_vae.program.protocol import Program

Group = Literal["theta", "phi"]  # the model's parameters, the guide's
EstimatorState = dict[str, Tensor | float]


@dataclass(frozen=True, eq=False)
class Bound:
    """What an estimator computes from a draw.

    ``value``, (B,), nats per example, is printed and detached; the gradient of ``surrogate``, a scalar, is the
    estimator's (upwards). The value of the surrogate means nothing and is never printed.
    """

    value: Tensor
    surrogate: Tensor


@dataclass(frozen=True, eq=False)
class Weighting(ABC):
    """The value of a bound, (B,), in nats, and the weights of its gradient terms, each (K, B)."""

    latents: ClassVar[Latents]  # how the draw must sample its latents
    value: Tensor

    @classmethod
    @abstractmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the weighting by which every term that this class keeps has the weight of Σ weight log w."""

    @abstractmethod
    def surrogate(self, draw: Draw, terms: Terms) -> Tensor:
        """Return a scalar whose gradient is the weighted sum of the terms."""


@dataclass(frozen=True, eq=False)
class TotalDerivative(Weighting):
    r"""The total derivative of :math:`\sum_k a_k \log w_k`: all three terms, weighted a, a and −a."""

    latents: ClassVar[Latents] = "attached"
    theta: Tensor

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the total derivative of Σ weight log w."""
        return cls(value, weight)

    def surrogate(self, draw: Draw, terms: Terms) -> Tensor:
        """Return Σ a log w."""
        return (self.theta * terms.log_weight).sum()

    def three_terms(self) -> "ThreeTerms":
        """Return the weights of the three terms."""
        return ThreeTerms(self.value, self.theta, self.theta, -self.theta)


@dataclass(frozen=True, eq=False)
class PathDerivative(Weighting):
    r"""The total derivative without the score term (sticking the landing): weights a, a and 0.

    log q is scored at detached leaves, so that of its gradient :math:`\nabla_z \log q` alone is kept.
    """

    latents: ClassVar[Latents] = "attached"
    theta: Tensor

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the path derivative of Σ weight log w."""
        return cls(value, weight)

    def surrogate(self, draw: Draw, terms: Terms) -> Tensor:
        """Return Σ a log p(x, z) − Σ a ∇z log q · z(φ)."""
        leaves = {name: z.detach().requires_grad_() for name, z in draw.drawn.items()}
        pathwise = _pathwise(draw, (self.theta * draw.log_q(leaves)).sum(), leaves)
        return (self.theta * terms.log_joint).sum() - pathwise

    def three_terms(self) -> "ThreeTerms":
        """Return the weights of the three terms."""
        return ThreeTerms(self.value, self.theta, self.theta, None)


@dataclass(frozen=True, eq=False)
class ThreeTerms(Weighting):
    """A weight of its own for each term, None for none; the draw's latents are leaves, so that the terms never mix."""

    latents: ClassVar[Latents] = "leaves"
    theta: Tensor
    path: Tensor | None
    score: Tensor | None

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the total derivative of Σ weight log w, term by term."""
        return cls(value, weight, weight, -weight)

    def surrogate(self, draw: Draw, terms: Terms) -> Tensor:
        """Return Σ a log p(x, z) + Σ b ∇z log w · z(φ) + Σ c log q(z|x)."""
        surrogate = (self.theta * terms.log_joint).sum()
        if self.path is not None:
            surrogate = surrogate + _pathwise(draw, (self.path * terms.log_weight).sum(), draw.latents)
        if self.score is not None:
            surrogate = surrogate + (self.score * terms.log_qz).sum()
        return surrogate


@dataclass(frozen=True, eq=False)
class ScoreFunction(Weighting):
    """No pathwise term: log p(x, z) and log q(z|x) at latents that are detached as they are sampled."""

    latents: ClassVar[Latents] = "fixed"
    theta: Tensor
    score: Tensor | None = None

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> NoReturn:
        """Refuse: without a pathwise term the score term's weight does not follow from that of log w."""
        raise TypeError("a score function has a weight for each term: return ScoreFunction(value, theta, score)")

    def surrogate(self, draw: Draw, terms: Terms) -> Tensor:
        """Return Σ a log p(x, z) + Σ c log q(z|x)."""
        surrogate = (self.theta * terms.log_joint).sum()
        return surrogate if self.score is None else surrogate + (self.score * terms.log_qz).sum()


def _pathwise(draw: Draw, of_leaves: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
    """Return Σ g · z(φ), g the detached gradient of a function of the leaves: the chain rule through z."""
    names = list(leaves)
    found = torch.autograd.grad(of_leaves, [leaves[n] for n in names], retain_graph=True, materialize_grads=True)
    parts = [(g.detach() * draw.drawn[n]).sum() for n, g in zip(names, found, strict=True)]
    return torch.stack(parts).sum()


class Estimator(ELBO):
    """The abstract base of all estimators; a frozen value that is a ``pyro.infer.ELBO``.

    A subclass is a frozen dataclass that defines

    * :meth:`weighting`, a pure function of (K, B) tensors;
    * ``gradient``, the class of :class:`Weighting` that it returns; by default :class:`TotalDerivative`;
    * :meth:`reference`, the plain estimator with the same expectation;
    * ``kl_weightable = True`` if its KL may be weighted. Subclasses do not inherit this: the derivation of DReG, a
      subclass of IWAE, does not hold for a weighted KL.

    An estimator that needs more than the three log-densities also overrides :meth:`of_draw`.
    """

    gradient: ClassVar[type[Weighting]] = TotalDerivative
    kl_weightable: ClassVar[bool] = False  # whether the derivation holds with β KL (:class:`~pyro_vae.elbo.Weighted`)
    num_particles: int
    vectorize_particles = True
    max_plate_nesting = 2  # particles, examples

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kl_weightable = vars(cls).get("kl_weightable", False)

    @property
    def total_particles(self) -> int:
        """The number of particles that a step samples per example: ``num_particles`` times the number of bounds."""
        return self.num_particles

    @abstractmethod
    def weighting(self, terms: Terms) -> Weighting:
        """Return the value and the weights of the gradient terms from detached log-densities."""

    def reference(self, group: Group) -> "Estimator | None":
        """Return the plain estimator whose gradient has the same expectation, against which bias is measured.

        Args:
            group: ``theta``, the model's parameters, or ``phi``, the guide's.

        Returns:
            An estimator; :class:`~pyro_vae.elbo.ByAutograd` of this one for the total derivative of a bound that no
            other estimator maximises. None where none is known: no bias is reported.

        Raises:
            InputError: the estimator does not define it. A missing reference must not read as a bias of 0.
        """
        raise InputError(
            "an estimator that defines its reference, the plain estimator with the same expectation",
            f"{type(self).__name__}, which does not",
            "def reference(self, group), returning IWAE(self.num_particles), say, or None if none is known",
        )

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample the particles of one step; latents are as the gradient's class needs them, or as asked for."""
        return Draw(model, guide, args, kwargs, self.total_particles, latents or self.gradient.latents)

    def of_draw(self, draw: Draw) -> Bound:
        """Return value and surrogate of one draw."""
        terms = draw.terms
        weights = self.weighting(terms.detach())
        if type(weights) is not self.gradient:  # the latents were sampled for another class
            got = f"{type(weights).__name__} where gradient = {self.gradient.__name__}"
            raise TypeError(f"{type(self).__name__}.weighting returned {got}")
        return Bound(weights.value, weights.surrogate(draw, terms))

    def bound(self, program: Program, x: Tensor) -> Bound:
        """Sample particles for a batch x (B, *event_shape) and return the bound; the program's store must be active."""
        return self.of_draw(self.draw(program.model, program.guide, (x,), {}))

    def loss(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> float:
        """Return minus the bound, summed over the batch and scaled as the program scales it."""
        with torch.no_grad():
            draw = self.draw(model, guide, args, kwargs, "fixed")
            return float(-draw.scale * self.value(draw).sum())

    def value(self, draw: Draw) -> Tensor:
        """Return the bound alone, (B,), nats per example."""
        return self.weighting(draw.terms.detach()).value

    def state_dict(self) -> EstimatorState:
        """Return the state between steps: empty, but for running baselines."""
        return {}

    def load_state_dict(self, state: EstimatorState) -> None:
        """Restore a state."""

    def losses(
        self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, detached, and the surrogate loss, whose gradient is the estimator's."""
        draw = self.draw(model, guide, args, kwargs)
        found = self.of_draw(draw)
        return -draw.scale * found.value.detach().sum(), -draw.scale * found.surrogate

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> Tensor:
        """Return the loss, with the gradient of the surrogate."""
        loss, surrogate_loss = self.losses(model, guide, *args, **kwargs)
        return loss + (surrogate_loss - surrogate_loss.detach())

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> float:
        """Return the loss, and add its gradient to ``.grad`` of every parameter."""
        loss, surrogate_loss = self.losses(model, guide, *args, **kwargs)
        if surrogate_loss.requires_grad:
            surrogate_loss.backward()
        return float(loss)

    def _get_trace(self, *args: object) -> NoReturn:  # Pyro's base class asks for it; nothing here calls it
        raise TypeError("estimators sample by pyro_vae.elbo.Draw")


def at_least_one(name: str, value: object) -> None:
    """Refuse a count that is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"a {name} that is a whole number of at least 1", repr(value), f"{name}=1")
