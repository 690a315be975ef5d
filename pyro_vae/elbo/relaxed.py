"""Estimators that relax Bernoulli latents: the concrete distribution, biased, and REBAR, which is not."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast, get_args

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.coupled import CoupledDraw, check_latents
from pyro_vae.elbo.coupling import coupled, of_all_examples
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.estimator import Bound, Estimator, Group, at_least_one
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.elbo.sums import weighted_sum
from pyro_vae.elbo.terms import Terms, carries_density
from pyro_vae.elbo.weighting import ThreeTerms, Weighting, pathwise
from pyro_vae.program.relaxed import Density, HardAndRelaxed, Relaxed


@dataclass(frozen=True)
class Concrete(SampledKL):
    r"""The ELBO of the relaxed program, in place of yours: Bernoulli latents become binary concrete ones. **Biased.**

    .. math:: \mathcal L_\lambda = \frac1K \sum_k \log p(x|s_k) + \log p_\lambda(y_k) - \log q_\lambda(y_k), \qquad
        s = \sigma(y), \ y = (\alpha + \mathrm{logit}(u)) / \lambda

    Value and gradient are those of the relaxed objective, without bias; for the ELBO of your program both are biased.

    - ``density="concrete"``: :math:`p_\lambda, q_\lambda` are densities of concrete distributions with the logits of
      model and guide and one λ. The objective bounds the evidence of the relaxed program. Its KL does not depend on λ
      and is at least that of the Bernoulli distributions, so that the bias stays for λ → 0.
    - ``density="mass"``: the Bernoulli masses, read at s. The objective bounds nothing, and its bias goes to 0 with λ,
      while the variance grows.

    Reparameterized latents stay as they are. What model and guide do with values between 0 and 1 is theirs: a program
    that rounds them has no gradient through them.

    Sources: Maddison, Mnih and Teh, arXiv 1611.00712, section 3.3 and appendix C.3; Jang, Gu and Poole, arXiv
    1611.01144.

    Args:
        num_particles: K.
        temperature: λ, above 0.
        density: ``concrete`` or ``mass``.

    Raises:
        InputError: values outside these ranges; when used, as :class:`DisARM`; a latent that is Bernoulli in the guide
            alone.

    Example:
        >>> Concrete(temperature=0.5)
        Concrete(num_particles=1, temperature=0.5, density='concrete')
    """

    temperature: float = 2 / 3
    density: Density = "concrete"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        if self.density not in get_args(Density):
            raise InputError("a density, one of concrete, mass", repr(self.density), "density='concrete'")

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO of the program itself, by score functions: the bias is measured against it."""
        return SampledKL(max(2, self.num_particles))

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample from the relaxed guide, and score relaxed."""
        relaxed, seen = Relaxed(self.num_particles, self.temperature, self.density), latents or self.gradient.latents
        call, many = (model, guide, args, kwargs), self.vectorize_particles
        return CoupledDraw(relaxed, *call, seen, vectorize_particles=many, strategies=self.strategies)

    def check(self, draw: Draw) -> None:
        """Refuse latents that are neither Bernoulli nor reparameterized."""
        super().check(draw)
        check_latents(draw, type(self).__name__)


@dataclass(frozen=True)
class Rebar(Estimator):
    r"""The ELBO, Bernoulli latents by their score with a relaxation of the program as control variate.

    .. math:: \nabla_\varphi = \frac1K \sum_k \bigl(\log w(b) - \eta\, c(\tilde z)\bigr) \nabla_\varphi \log q(b)
        + \eta \nabla_\varphi c(z) - \eta \nabla_\varphi c(\tilde z), \qquad c(z) = \log w(\sigma(z / \lambda))

    with :math:`z = \alpha + \mathrm{logit}(u)`, :math:`b = 1[z > 0]` and :math:`\tilde z \sim p(z|b)`, all functions of
    φ at uniform noise. log w at relaxed values is that of the Bernoulli masses read between 0 and 1. Unbiased for every
    λ and η, if log w is continuous in the relaxed values: no rounding or comparison of a Bernoulli latent.

    λ and η are given: neither is learned, as the authors do by the gradient of the variance, and there is one η for
    all. RELAX's network is not here.

    Several Bernoulli latents share one control variate, the program relaxed throughout, at the noise u of all; each
    :math:`\tilde u` is drawn given its own b. So a step takes 3 K particles, whatever their number. Reparameterized
    latents have the pathwise gradient without its score term; in the control variate those sampled after a Bernoulli
    latent have noise of their own. The value is the ELBO of the K hard particles, and θ follows these alone.

    Source: Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein, arXiv 1703.07370; one c for several latents: Grathwohl et
    al., arXiv 1711.00123, for any function c.

    Args:
        num_particles: K.
        temperature: λ, above 0.
        eta: η, of any size; 0 is the score function without a baseline.

    Raises:
        InputError: values outside these ranges; when used, as :class:`Concrete`.

    Example:
        >>> Rebar(2).total_particles
        6
    """

    gradient: ClassVar[type[Weighting]] = ThreeTerms
    linear: ClassVar[bool] = True
    num_particles: int = 1
    temperature: float = 0.5
    eta: float = 1.0

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        check_temperature(self.temperature)
        if not abs(self.eta) < float("inf"):
            raise InputError("a finite eta", self.eta, "eta=1")

    @property
    def total_particles(self) -> int:
        """3 K: hard, relaxed, and relaxed given the hard."""
        return 3 * self.num_particles

    def weighting(self, terms: Terms) -> Weighting:
        """Return the ELBO of the hard particles, and the weights of their terms without those of Bernoulli latents."""
        log_w = terms.log_weight
        weight = self._blocks(torch.ones_like(log_w), 1.0, 0.0, 0.0)
        return ThreeTerms(log_w[: self.num_particles].mean(0), weight, weight, None)

    def _blocks(self, like: Tensor, *of: float) -> Tensor:
        """Return 1/K times a factor for the particles of each kind, (3 K, B)."""
        return torch.cat([f / self.num_particles * each for f, each in zip(of, like.chunk(3), strict=True)])

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by score functions."""
        return SampledKL(max(2, self.num_particles))

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample hard and relaxed particles."""
        both, seen = HardAndRelaxed(self.total_particles, self.temperature), latents or self.gradient.latents
        call, many = (model, guide, args, kwargs), self.vectorize_particles
        return CoupledDraw(both, *call, seen, vectorize_particles=many, strategies=self.strategies)

    def check(self, draw: Draw) -> None:
        """Refuse latents that are neither Bernoulli nor reparameterized."""
        super().check(draw)
        check_latents(draw, type(self).__name__)

    def of_draw(self, draw: Draw) -> Bound:
        """Return the bound; of the relaxed particles only what passes through their samples has a gradient."""
        self.check(draw)
        both = cast(CoupledDraw, draw)
        terms, scale = both.terms, both.scale
        scale = scale if isinstance(scale, Tensor) and scale.dim() else 1.0
        log_w = terms.log_weight.detach()
        hard, _, given = log_w.chunk(3)
        signal = (hard - self.eta * given) * scale / self.num_particles
        signal = of_all_examples(signal) if coupled(both) else signal
        score = weighted_sum(signal, both.recorded.chunk(3)[0])
        ones = torch.ones_like(log_w) * scale
        through = weighted_sum(self._blocks(ones, 1.0, self.eta, -self.eta), terms.log_weight) + score
        view = copy.copy(both)
        view.runs = [both.whole]
        even, delta = self._blocks(ones, 1.0, 0.0, 0.0), both.log_q_of(carries_density)
        surrogate = weighted_sum(even, terms.log_joint) + score + pathwise(view, through)
        return Bound(hard.mean(0), surrogate if delta is None else surrogate - weighted_sum(even, delta))


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0, or infinite."""
    if not 0 < temperature < float("inf"):
        raise InputError("a finite temperature above 0", temperature, "temperature=0.5")
