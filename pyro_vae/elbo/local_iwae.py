"""The importance-weighted bound of each example, given latents that all examples share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import log_mean_exp, mean_of_others
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.estimator import Bound, Estimator, Group, at_least_one
from pyro_vae.elbo.importance import IWAE, MIWAE
from pyro_vae.elbo.local_draw import Given, LocalDraw
from pyro_vae.elbo.sums import weighted_sum
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import Weighting, added_by_each
from pyro_vae.program.inside import EVERYWHERE
from pyro_vae.program.locality import plates_of_examples


@dataclass(frozen=True)
class LocalIWAE(Estimator):
    r"""The ELBO of global latents g, with an importance-weighted bound of each example's local latents inside.

    .. math:: \mathcal L = \frac1M \sum_m \Bigl( \log \frac{p(g_m)}{q(g_m)}
        + \frac NB \sum_b \log \frac1K \sum_k w_{mkb} \Bigr), \qquad
        w_{mkb} = \frac{p(x_b, z_{mkb} \mid g_m)}{q(z_{mkb} \mid x_b, g_m)}

    A global latent is one outside the plate of the examples: the weights of a Bayesian decoder. Each example has K
    weights of its own, and K particles share a draw of g, whose density counts once. So K particles gain once for each
    example, where the joint weights of :class:`IWAE` gain once for all. A plate's N/B is outside the logarithm: a
    subsample estimates the bound without bias. In expectation ELBO ≤ L ≤ log p(x): by Jensen's inequality for each
    example given g, and once more for g, which has no importance weights: for K → ∞ the gap is KL(q(g) ‖ p(g|x)).

    Without global latents it is the bound of :class:`IWAE`, of :class:`MIWAE` for M > 1, example by example; without
    local ones the ELBO. With global latents the value is one bound of all examples, (1,), scales inside; its gradient
    is the derivative of the value. Latents without reparameterization have a score: local ones weighted by what a
    particle adds to its example's bound, global ones by the whole bound, less the mean of the others of the M.
    Source of the bound inside: Burda, Grosse and Salakhutdinov, arXiv 1509.00519.

    Args:
        num_particles: K, of the local latents, for each draw of the global ones.
        num_globals: M, each a run of the program.
        plate: the name of the plate of the examples; None finds the one with all observed sites and local latents.

    Raises:
        InputError: counts that are not positive; when used, a global site that depends on local latents, examples that
            depend on each other given g, scales that differ between local sites, but for one of their latents beside
            one of the data, and no plate, or several, that could be that of the examples.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> def model(x):
        ...     g = pyro.sample("g", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(g, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     g = pyro.sample("g", dist.Normal(x.sum() / 5, 0.4**0.5))  # the posterior
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal((g + x) / 2, 0.5**0.5))
        >>> round(LocalIWAE(3).loss(model, guide, torch.tensor([0.5, 1.0, -1.0])), 4)  # −log p(x)
        4.8047
    """

    kl_weightable: ClassVar[bool] = True
    num_particles: int = 5
    num_globals: int = 1
    plate: str | None = None

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        at_least_one("num_globals", self.num_globals)

    @property
    def total_particles(self) -> int:
        """M K."""
        return self.num_particles * self.num_globals

    @property
    def without_globals(self) -> Estimator:
        """The same bound of a program without global latents."""
        if self.num_globals == 1:
            return IWAE(self.num_particles)
        return MIWAE(self.num_particles, self.num_globals)

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound and the weights of a program without global latents."""
        return self.without_globals.weighting(terms)

    def advantage(self, terms: Terms) -> Tensor:
        """Return what each particle adds to the bound of a program without global latents, (M K, B)."""
        return self.without_globals.advantage(terms)

    def reference(self, group: Group) -> Estimator:
        """Return the derivative of the bound with one draw of g, whose gradient has the same expectation."""
        return LocalIWAE(self.num_particles, plate=self.plate)

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample g, and K local particles given it, M times; without global latents M K particles."""
        plates = plates_of_examples(model, guide, args, kwargs, self.plate)
        if plates == EVERYWHERE:
            return super().draw(model, guide, args, kwargs, latents)
        seen, counts = latents or self.gradient.latents, (self.num_particles, self.num_globals)
        call, vectorize = (model, guide, args, kwargs), self.vectorized
        return LocalDraw(*call, *counts, seen, plates, vectorize_particles=vectorize, strategies=self.by_site)

    def check(self, draw: Draw) -> None:
        """Refuse scales that would be inside a logarithm."""
        if not isinstance(draw, LocalDraw):
            super().check(draw)
        elif draw.local_scales.kind == "sites" and self.num_particles > 1:
            raise InputError(
                "one scale for all sites in the plate of the examples, or one for their latents and one for the data "
                "(a log of a mean is no mean of logs)",
                "scales that differ",
                "sampled_kl or stl",
            )

    def value(self, draw: Draw) -> Tensor:
        """Return the bound: (1,) of all examples, with global latents; else (B,)."""
        return _mean([given.bound for given in draw.given]) if isinstance(draw, LocalDraw) else super().value(draw)

    def of_draw(self, draw: Draw) -> Bound:
        """Return the bound; with global latents it is its own surrogate, but for the score of sites that have one."""
        if not isinstance(draw, LocalDraw):
            return super().of_draw(draw)
        self.check(draw)
        value = self.value(draw)
        scores = [_local_score(given) / self.num_globals for given in draw.given]
        return Bound(value, value.sum() + sum(scores) + _global_score(draw.given))


def _mean(bounds: list[Tensor]) -> Tensor:
    return torch.stack(bounds).mean(0, keepdim=True)


def _local_score(given: Given) -> Tensor:
    """Return Σ advantage log q of the local sites with a score: what a particle adds to the bound of its example."""
    if given.score is None:
        return torch.zeros_like(given.shared)
    log_w = given.terms.log_weight.detach()
    added = added_by_each(log_w) if len(log_w) > 1 else log_mean_exp(log_w).unsqueeze(0)
    return weighted_sum(given.scale * added, given.score)


def _global_score(given: list[Given]) -> Tensor:
    """Return Σ advantage log q of the global sites with a score: the whole bound less the mean of the other draws'."""
    scores = [each.shared_score for each in given if each.shared_score is not None]
    if not scores:
        return torch.zeros_like(given[0].shared)
    bounds = torch.stack([each.bound for each in given]).detach()
    added = (bounds - mean_of_others(bounds)) / len(bounds) if len(bounds) > 1 else bounds
    return weighted_sum(added, torch.stack(scores))
