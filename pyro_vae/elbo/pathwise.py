"""Estimators of the ELBO that differentiate through the samples."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import Draw, Terms, differ
from pyro_vae.elbo.estimator import Bound, Estimator, Form, Weighting, at_least_one
from pyro_vae.program.tracing import sample_sites


@dataclass(frozen=True)
class SampledKL(Estimator):
    r"""The ELBO, every term by the sample (AEVB's SGVB-A).

    .. math:: \mathcal L = \frac1K \sum_k \log w_k, \qquad
        \log w_k = \log p(x|z_k) + \log p(z_k) - \log q(z_k|x), \quad z_k \sim q

    Unbiased for the gradient of the ELBO. Source: Kingma and Welling, arXiv 1312.6114, equation 6.

    Args:
        num_particles: K.

    Raises:
        InputError: K is not positive; when used, a guide without reparameterization.

    Example:
        >>> SampledKL().weighting(Terms(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), torch.tensor([[-2.0]]))).value
        tensor([-2.])
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms: Terms) -> Weighting:
        """Return the mean of log w; every particle weighs 1/K."""
        log_w = terms.log_weight
        return Weighting.total(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)))


@dataclass(frozen=True)
class STL(SampledKL):
    r"""Sticking the landing: the ELBO, its gradient without the score of log q.

    .. math:: \nabla_\varphi = \frac1K \sum_k \nabla_z \log w_k \, \frac{dz_k}{d\varphi}

    The score :math:`\nabla_\varphi \log q(z|x)` at fixed z has mean zero, so that the gradient stays unbiased; and
    where q is the posterior, log w does not depend on z and the gradient is zero draw by draw. In hierarchies the
    paths through earlier latents are kept. Source: Roeder, Wu and Duvenaud, arXiv 1703.09194.
    """

    form: ClassVar[Form] = "sticking"

    def weighting(self, terms: Terms) -> Weighting:
        """Return the mean of log w; the path weighs 1/K, the score nothing."""
        log_w = terms.log_weight
        weight = torch.full_like(log_w, 1 / len(log_w))
        return Weighting(log_w.mean(0), theta=weight, path=weight, score=None)


@dataclass(frozen=True)
class AnalyticKL(Estimator):
    r"""The ELBO with the KL in closed form (AEVB's SGVB-B).

    .. math:: \mathcal L = \frac1K \sum_k \log p(x|z_k) - \sum_s \mathrm{KL}(q_s \,\|\, p_s)

    The sum is over latent sites s; with several, each is conditioned on the others as drawn, and averaged over the
    particles. That is right where the latents that a site depends on in the model are among those that it may depend on
    in the guide's order of sampling (the mean-field condition of Pyro's ``TraceMeanField_ELBO``).
    Source: Kingma and Welling, arXiv 1312.6114, equation 7.

    Args:
        num_particles: K.
        free_bits: λ in nats: a site's KL below it counts as λ, datum by datum, so that nothing is gained by pressing it
            further down (after Kingma et al., arXiv 1606.04934, appendix C.8, who average over the batch first). The
            value then lies at or below the bound.

    Raises:
        InputError: a negative λ; when used, a pair of distributions without a KL in closed form
            (``TraceMeanField_ELBO`` would sample that term without a word), a guide without reparameterization, a
            site that the model lacks.
    """

    num_particles: int = 1
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not 0 <= self.free_bits < math.inf:
            raise InputError("free_bits of at least 0 nats", self.free_bits, "free_bits=0")

    def weighting(self, terms: Terms) -> Weighting:
        """Refuse: the three terms do not hold the closed form."""
        raise TypeError("AnalyticKL is not made of sampled terms; of_draw has its closed form")

    def of_draw(self, draw: Draw) -> Bound:
        """Return the bound; it is its own surrogate."""
        value = self.value(draw)
        return Bound(value, value.sum())

    def value(self, draw: Draw) -> Tensor:
        """Return the bound, (B,), differentiable."""
        _check_order(draw)
        parts = [closed_kl(draw, name, site) for name, site in sample_sites(draw.guide_trace)]
        kl = torch.stack(parts).clamp(min=self.free_bits).sum(0)  # a KL is never below 0
        return (draw.terms.log_px_z - draw.beta * kl).mean(0)


def _check_order(draw: Draw) -> None:
    """Refuse a guide that draws several latents in another order than the model: the closed KL would be another's."""
    guide = [name for name, _ in sample_sites(draw.guide_trace)]
    model = [name for name, site in sample_sites(draw.model_trace) if not site["is_observed"]]
    if [name for name in guide if name in model] != model:
        got = f"{', '.join(guide)} in place of {', '.join(model)}"
        raise InputError(
            "a guide that draws its latents in the model's order, for a KL in closed form", got, "sampled_kl"
        )


def closed_kl(draw: Draw, name: str, site: Any) -> Tensor:
    """Return KL(q‖p) of one latent site in closed form, (K, B).

    Raises:
        InputError: there is no closed form for the pair, or their masks differ.
    """
    prior: Any = draw.model_trace.nodes.get(name)
    try:
        kl = kl_divergence(site["fn"], prior["fn"])
    except (NotImplementedError, TypeError) as error:
        pair = f"{_kind(site['fn'])} and {_kind(prior['fn']) if prior else 'nothing'}"
        raise InputError(f"a KL in closed form at site {name!r}", f"none for {pair}", "sampled_kl") from error
    if differ(*(True if mask is None else mask for mask in (site["mask"], prior["mask"]))):
        raise InputError(f"one mask for model and guide at site {name!r}", "two that differ", "sampled_kl")
    unscaled: Tensor = scale_and_mask(kl, scale=1.0, mask=site["mask"])
    return unscaled.expand(draw.num_particles, draw.batch)


def _kind(fn: Any) -> str:
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
