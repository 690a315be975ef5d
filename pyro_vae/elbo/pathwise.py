"""Estimators of the ELBO that differentiate through the latents."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.information import closed_form_kl
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Bound, Estimator, Group, at_least_one
from pyro_vae.elbo.scales import differ
from pyro_vae.elbo.sums import is_each, scaled_sum
from pyro_vae.elbo.terms import Run, Terms
from pyro_vae.elbo.weighting import PathDerivative, Weighting, scored
from pyro_vae.program.tracing import Site


@dataclass(frozen=True)
class SampledKL(Estimator):
    r"""The ELBO with every term sampled (AEVB's SGVB-A).

    .. math:: \mathcal L = \frac1K \sum_k \log w_k, \qquad
        \log w_k = \log p(x|z_k) + \log p(z_k) - \log q(z_k|x), \quad z_k \sim q

    Unbiased for the gradient of the ELBO. Source: Kingma and Welling, arXiv 1312.6114, equation 6.

    Args:
        num_particles: K.

    Raises:
        InputError: K is not positive.

    Example:
        >>> import torch
        >>> SampledKL().weighting(Terms(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), torch.tensor([[-2.0]]))).value
        tensor([-2.])
    """

    kl_weightable: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    num_particles: int = 1

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms: Terms) -> Weighting:
        """Return the mean of log w; every particle has weight 1/K."""
        log_w = terms.log_weight
        return self.gradient.of(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)))

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by its total derivative."""
        return SampledKL(self.num_particles)


@dataclass(frozen=True)
class STL(SampledKL):
    r"""Sticking the landing: the ELBO, its gradient without the score term.

    .. math:: \nabla_\varphi = \frac1K \sum_k \nabla_z \log w_k \, \frac{dz_k}{d\varphi}

    The score term has mean zero, so the gradient stays unbiased. Where q is the posterior, log w does not depend on z
    and the gradient of φ is zero for every draw. In hierarchies the paths through earlier latents are kept.
    Source: Roeder, Wu and Duvenaud, arXiv 1703.09194.
    """

    gradient: ClassVar[type[Weighting]] = PathDerivative
    kl_weightable: ClassVar[bool] = True  # the score term has mean zero with a weighted KL, too


@dataclass(frozen=True)
class AnalyticKL(Estimator):
    r"""The ELBO with the KL in closed form (AEVB's SGVB-B).

    .. math:: \mathcal L = \frac1K \sum_k \log p(x|z_k) - \sum_s \mathrm{KL}(q_s \,\|\, p_s)

    The sum is over latent sites s. With several, each KL is conditioned on the other sites' samples and averaged over
    the particles, which holds if the latents that a site depends on in the model come before it in the guide's order of
    sampling (the mean-field condition of Pyro's ``TraceMeanField_ELBO``).
    Source: Kingma and Welling, arXiv 1312.6114, equation 7.

    Args:
        num_particles: K.
        free_bits: λ in nats: a site's KL below λ counts as λ, per example, so it has no gradient below λ (after Kingma
            et al., arXiv 1606.04934, appendix C.8, who average over the batch first). The value is then at or below the
            bound.

    Raises:
        InputError: a negative λ; when used, a pair of distributions without a KL in closed form
            (``TraceMeanField_ELBO`` silently samples that term), a site that the model lacks, latents in another order
            than the model's, two masks or two scales of a site.
    """

    kl_weightable: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    closed: ClassVar[bool] = True
    num_particles: int = 1
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not 0 <= self.free_bits < math.inf:
            raise InputError("free_bits of at least 0 nats", self.free_bits, "free_bits=0")

    def weighting(self, terms: Terms) -> Weighting:
        """Refuse: the closed form is no function of sampled log-densities."""
        raise TypeError("AnalyticKL is not made of sampled terms; of_draw has its closed form")

    def reference(self, group: Group) -> Estimator | None:
        """Return the sampled ELBO; with free bits, which change the objective, no plain estimator is known."""
        return None if self.free_bits else SampledKL(self.num_particles)

    def of_draw(self, draw: Draw) -> Bound:
        """Return the bound; it is its own surrogate, but for the score of sites without reparameterization."""
        self.check(draw)
        each, weight = self._each(draw), draw.weight
        value = each.mean(0)
        surrogate = scaled_sum(weight, value) if is_each(weight) else value.sum()
        value = draw.marginal(value)
        if draw.log_score is None:
            return Bound(value, surrogate)
        advantage = self.advantage_of(draw, Terms(each, *(torch.zeros_like(each),) * 2))
        return Bound(value, surrogate + scored(draw, advantage))

    def of_particles(self, draw: Draw) -> Tensor:
        """Return the bound of every particle, (K, B)."""
        return self._each(draw)

    def value(self, draw: Draw) -> Tensor:
        """Return the bound, (B,), differentiable; with enumerated values, of every combination."""
        return self._each(draw).mean(0)

    def _each(self, draw: Draw) -> Tensor:
        """Return the bound of every particle, (K, B)."""
        kl = draw.joined([self._kl(draw, run) for run in draw.runs])
        return draw.terms.log_px_z - draw.beta * kl

    def _kl(self, draw: Draw, run: Run) -> Tensor:
        _check_order(run)
        parts = [closed_kl(draw, run, site, self.free_bits) for site in run.guide_latents]
        return sum(parts[1:], parts[0]) if parts else draw.expanded(torch.zeros(()))


def _check_order(run: Run) -> None:
    """Refuse a guide that samples several latents in another order than the model: the closed KL would be wrong."""
    guide = [site["name"] for site in run.guide_latents]
    model = [site["name"] for site in run.model_latents]
    if [name for name in guide if name in model] != model:
        got = f"{', '.join(guide)} in place of {', '.join(model)}"
        raise InputError(
            "a guide that samples its latents in the model's order, for a KL in closed form", got, "sampled_kl"
        )


def closed_kl(draw: Draw, run: Run, site: Site, free_bits: float = 0.0) -> Tensor:
    """Return KL(q‖p) of one latent site in closed form, (K of the run, B), at least ``free_bits`` unless masked.

    Raises:
        InputError: no closed form for the pair, masks or scales that differ, or a ``Delta`` with a density.
    """
    name = site["name"]
    prior = {each["name"]: each for each in run.model_latents}.get(name)
    q, mask = _unmasked(site)
    p, other = _unmasked(prior) if prior else (None, mask)
    kl = None if p is None or _has_density(q) else closed_form_kl(q, p)
    if prior is None or p is None or kl is None:
        pair = f"{_kind(q)}{' with a density' if _has_density(q) else ''} and {_kind(p) if p else 'nothing'}"
        raise InputError(f"a KL in closed form at site {name!r}", f"none for {pair}", "sampled_kl")
    if differ(mask, other):
        raise InputError(f"one mask for model and guide at site {name!r}", "two that differ", "sampled_kl")
    if draw.scales.latent is None and differ(site["scale"], prior["scale"]):
        raise InputError(f"one scale for model and guide at site {name!r}", "two that differ", "sampled_kl")
    total = draw.kept(scale_and_mask(kl, scale=1.0, mask=mask))
    if free_bits:  # a KL is never below 0
        total = total.clamp(min=free_bits)
        if mask is not True:
            counted = draw.kept(scale_and_mask(torch.ones_like(kl), scale=1.0, mask=mask))
            total = torch.where(counted > 0, total, 0.0)
    factor = draw.scales.latent if draw.scales.latent is not None else site["scale"]
    return total if isinstance(factor, float) and factor == 1.0 else factor * total


def _unmasked(site: Site) -> tuple[Distribution, Tensor | bool]:
    """Return the distribution of a site without masks, and the mask of site and distribution together."""
    fn, mask = site["fn"], True if site["mask"] is None else site["mask"]
    while isinstance(fn, dist.MaskedDistribution):
        inner: Tensor | bool = fn._mask
        mask = torch.logical_and(torch.as_tensor(mask), torch.as_tensor(inner)) if mask is not True else inner
        fn = fn.base_dist
    return fn, mask


def _has_density(fn: Distribution) -> bool:
    base = innermost(fn)
    return isinstance(base, dist.Delta) and bool((torch.as_tensor(base.log_density) != 0).any())


def _kind(fn: Distribution) -> str:
    while isinstance(fn, dist.Independent | ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return type(fn).__name__
