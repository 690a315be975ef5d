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
:class:`ScoreFunction`    a, b = 0, c            REINFORCE, VIMCO, wake-sleep, TVO
========================  =====================  ==========================================================

Sites without reparameterization have no pathwise term. Under the last class nothing is special about them; under the
others they have a score term of their own, weighted by :meth:`Estimator.advantage`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NoReturn

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import mean_of_others
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.coupling import check_measured, check_sums, coupled, of_all_examples
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.local import LocalAdvantage, has_local_scores
from pyro_vae.elbo.measured import MeasuredAdvantage, plainly_measured
from pyro_vae.elbo.sums import is_each, scaled_sum, weighted_sum
from pyro_vae.elbo.terms import Terms, is_measured
from pyro_vae.elbo.weighting import Advantage, ScoreFunction, TotalDerivative, Weighting
from pyro_vae.program.handlers import Strategy
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


@dataclass(frozen=True)
class Estimator(ELBO):
    """The abstract base of all estimators; a frozen value that is a ``pyro.infer.ELBO``.

    A subclass is a frozen dataclass that defines

    * :meth:`weighting`, a pure function of (K, B) tensors;
    * ``gradient``, the class of :class:`Weighting` that it returns; by default :class:`TotalDerivative`;
    * :meth:`reference`, the plain estimator with the same expectation;
    * ``kl_weightable = True`` if its KL may be weighted. Subclasses do not inherit this: the derivation of DReG, a
      subclass of IWAE, does not hold for a weighted KL;
    * ``linear = True`` if its value is linear in log w, so that any scales of sites hold;
    * ``mixed = False`` if it refuses sites without reparameterization.

    An estimator that needs more than the three log-densities also overrides :meth:`of_draw`.
    """

    gradient: ClassVar[type[Weighting]] = TotalDerivative
    kl_weightable: ClassVar[bool] = False  # whether the derivation holds with β KL (:class:`~pyro_vae.elbo.Weighted`)
    linear: ClassVar[bool] = False  # whether the bound is linear in log w: any scale of a site, and subsampling, hold
    closed: ClassVar[bool] = False  # whether log q has no weight: the KL is in closed form, or autograd takes the value
    mixed: ClassVar[bool] = True  # whether sites without reparameterization may stand beside others
    max_plate_nesting = math.inf  # found from each program
    vectorize_particles: bool = field(default=True, kw_only=True)
    strategies: Mapping[str, Strategy] = field(default_factory=dict, kw_only=True, hash=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kl_weightable = vars(cls).get("kl_weightable", False)
        cls.__repr__ = Estimator.__repr__  # type: ignore[method-assign]  # a dataclass leaves one that is there

    def __repr__(self) -> str:
        common = {"vectorize_particles": not self.vectorize_particles, "strategies": bool(self.strategies)}
        names = [f.name for f in fields(self) if f.repr and common.get(f.name, True)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def vectorized(self) -> bool:
        """Whether several particles are run in a plate."""
        return self.vectorize_particles

    @property
    def by_site(self) -> Mapping[str, Strategy]:
        """How sites get their gradient, by name, in the place of their own marks."""
        return self.strategies

    @property
    def total_particles(self) -> int:
        """The number of particles that a step samples per example: ``num_particles`` times the number of bounds."""
        return int(self.num_particles)

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
        call, seen = (model, guide, args, kwargs), latents or self.gradient.latents
        how, vectorized = self.by_site, self.vectorized
        return Draw(*call, self.total_particles, seen, vectorize_particles=vectorized, strategies=how)

    def of_draw(self, draw: Draw) -> Bound:
        """Return value and surrogate of one draw.

        Raises:
            InputError: scales of sites, or sites without reparameterization, for which the estimator does not hold.
        """
        self.check(draw)
        terms = draw.terms
        weights = self.weighting(terms.detach())
        if type(weights) is not self.gradient:  # the latents were sampled for another class
            got = f"{type(weights).__name__} where gradient = {self.gradient.__name__}"
            raise TypeError(f"{type(self).__name__}.weighting returned {got}")
        advantage = self.advantage_of(draw, terms)
        if weights.needs_independence and coupled(draw):
            advantage = self._of_all(weights)
        surrogate = weights.scaled(draw.weight).surrogate(draw, terms, advantage)
        return Bound(draw.marginal(weights.value), surrogate)

    def check(self, draw: Draw) -> None:
        """Refuse a program for which this estimator does not hold.

        Raises:
            InputError: scales that differ between sites; sites without reparameterization.
        """
        linear = self.linear or self.total_particles == 1  # a log of one weight is linear in it
        if draw.scales.kind == "sites" and not linear:
            raise InputError(
                "one scale for all sites, or one for all latents (a log of a mean is no mean of logs: subsampling "
                "beside a global latent, or scales of single sites, would bias this bound)",
                "scales that differ",
                "sampled_kl, analytic_kl or stl; or no subsampling",
            )
        if draw.values is not None:
            check_sums(draw, self.by_element(draw))
        if draw.scales.kind == "kl" and not (linear or self.kl_weightable):
            raise InputError(
                "one scale for latents and data (this estimator holds for w = p/q itself)", "two scales", "iwae"
            )

    def advantage_of(self, draw: Draw, terms: Terms) -> Advantage | None:
        """Return what each particle adds to the bound, (K, B), times the scale, if the draw has sites that need it."""
        measured = any(is_measured(site) for site in draw.runs[0].guide_latents)
        if measured:
            check_measured(draw, type(self).__name__)
        elif self.by_element(draw):
            return LocalAdvantage()
        if draw.latents == "fixed" or draw.log_score is None:
            return None
        if not self.mixed:
            raise InputError(
                "reparameterized latents (this estimator differentiates through z)",
                "a site without reparameterization, or marked as score",
                "reinforce, vimco, rws or tvo for all sites, or iwae for a mixture",
            )
        advantage, weight = self.advantage(terms.detach()), draw.weight
        advantage = advantage * weight if is_each(weight) else advantage
        if measured:
            return self._measured(draw, advantage)
        return of_all_examples(advantage) if coupled(draw) else advantage

    def by_element(self, draw: Draw) -> bool:
        """Whether scores are weighted by the terms of their own element of a plate (:mod:`pyro_vae.elbo.local`)."""
        return self.linear and not self.closed and has_local_scores(draw)

    def _measured(self, draw: Draw, advantage: Tensor) -> MeasuredAdvantage:
        each, weight = self.of_particles(draw).detach(), draw.weight

        def replaced(rows: slice, others: Tensor) -> Tensor:
            changed = each.clone()
            changed[rows] = others
            bound = self.followed.with_replaced(each, changed)[rows]
            if own is not None and not self.linear:
                bound = bound - self.followed.own_weight(each, changed)[rows]
            return bound * weight if is_each(weight) else bound

        log_q = draw.log_q_of(is_measured)
        own = None if self.closed or log_q is None or not (self.linear or plainly_measured(draw)) else log_q
        if own is None:
            return MeasuredAdvantage(advantage, replaced, self.of_particles, torch.zeros(()))
        kept = self.weighting(draw.terms.detach()).of_log_q  # in the bound that is replaced, it has no noise of its own
        dropped = weighted_sum(kept * weight if is_each(weight) else kept, own)
        return MeasuredAdvantage(advantage, replaced, self.of_particles, dropped)

    @property
    def followed(self) -> "Estimator":
        """The estimator of the bound that φ follows."""
        return self

    def of_particles(self, draw: Draw) -> Tensor:
        """Return what the bound is a function of, for each particle: log w, (K, B)."""
        return draw.terms.log_weight

    def _of_all(self, weights: Weighting) -> Tensor:
        """Return the weight of the score where examples depend on each other's latents.

        Raises:
            InputError: the score's weight is not only what a particle adds to the bound.
        """
        if self.linear and isinstance(weights, ScoreFunction) and weights.score is not None:
            return of_all_examples(weights.score)
        raise InputError(
            "a model whose examples are independent given their latents (this estimator weights each by its own bound)",
            "one whose log-densities change with the latents of other examples",
            "iwae, stl, sampled_kl or reinforce, which take the bound of all; or normalisation in evaluation mode",
        )

    def advantage(self, terms: Terms) -> Tensor:
        r"""Return what each particle adds to the bound, (K, B): :math:`\mathcal L - \mathcal L_{-k}`.

        In :math:`\mathcal L_{-k}` the weight of particle k is replaced by the geometric mean of the others, so that it
        does not depend on particle k: the leave-one-out baseline. With one particle it is the bound itself.
        Source: Mnih and Rezende, arXiv 1602.06725.
        """
        log_w = terms.log_weight
        if self.linear:
            return (log_w - mean_of_others(log_w)) / len(log_w) if len(log_w) > 1 else log_w
        if len(log_w) == 1:
            return self.weighting(terms).value.unsqueeze(0)
        return self.weighting(terms).value - self.with_replaced(log_w, mean_of_others(log_w))

    def with_replaced(self, log_w: Tensor, others: Tensor) -> Tensor:
        """Return the bound with one particle replaced by another, (K, B): in row k particle k is.

        Args:
            log_w: of the particles, (K, B).
            others: what stands in the place of each, (K, B).
        """
        count, batch = log_w.shape
        if self.linear:
            return log_w.mean(0) + (others - log_w) / count
        return self._side_by_side(log_w, others).value.reshape(count, batch)

    def own_weight(self, log_w: Tensor, others: Tensor) -> Tensor:
        """Return the weight of −log q of particle k where it is replaced, (K, B); arguments as above."""
        count, batch = log_w.shape
        return self._side_by_side(log_w, others).of_log_q.reshape(count, count, batch).diagonal().T

    def _side_by_side(self, log_w: Tensor, others: Tensor) -> Weighting:
        count, batch = log_w.shape
        own = torch.eye(count, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
        replaced = torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0))
        side_by_side = replaced.transpose(0, 1).reshape(count, count * batch)
        zero = torch.zeros_like(side_by_side)
        return self.weighting(Terms(side_by_side, zero, zero))

    def bound(self, program: Program, x: Tensor) -> Bound:
        """Sample particles for a batch x (B, *event_shape) and return the bound; the program's store must be active."""
        return self.of_draw(self.draw(program.model, program.guide, (x,), {}))

    def loss(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> float:
        """Return minus the bound, summed over the batch and scaled as the program scales it."""
        with torch.no_grad():
            draw = self.draw(model, guide, args, kwargs, "fixed")
            self.check(draw)
            return float(-scaled_sum(draw.scale, draw.marginal(self.value(draw))))

    def value(self, draw: Draw) -> Tensor:
        """Return the bound alone, (B,), nats per example; with enumerated values, of every combination, (C^K B,)."""
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
        loss = -scaled_sum(draw.scale, found.value.detach())
        return loss, -found.surrogate if is_each(draw.weight) else -draw.scale * found.surrogate

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
