"""The log-densities of particles, and the runs and sites that they come from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from pyro.distributions import Delta, MaskedDistribution, TorchDistribution, Unit
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from pyro.distributions.util import is_identically_zero, sum_rightmost
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.program.handlers import SampleMessage, Strategy, is_pathwise, strategy
from pyro_vae.program.plates import plates_of
from pyro_vae.program.protocol import Trace
from pyro_vae.program.tracing import Site, check_latents, log_density, sample_sites


@dataclass(frozen=True, eq=False)
class Terms:
    """The log-densities of K particles for B examples, in nats, unscaled; each of shape (K, B)."""

    log_px_z: Tensor
    log_pz: Tensor
    log_qz: Tensor

    @property
    def log_joint(self) -> Tensor:
        """Log p(x, z) = log p(x|z) + log p(z), (K, B)."""
        return self.log_px_z + self.log_pz

    @property
    def log_weight(self) -> Tensor:
        """Log w = log p(x|z) + log p(z) − log q(z|x), (K, B)."""
        return self.log_px_z + self.log_pz - self.log_qz

    def detach(self) -> "Terms":
        """Return the same numbers, detached."""
        return Terms(self.log_px_z.detach(), self.log_pz.detach(), self.log_qz.detach())


@dataclass(frozen=True, eq=False)
class Run:
    """One run of guide and model: all particles in a plate, or one particle.

    ``drawn`` holds the samples with their gradient and ``leaves`` what the densities see in their place, where the two
    differ (:class:`~pyro_vae.program.handlers.Sampled`).
    """

    guide_trace: Trace
    model_trace: Trace
    drawn: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]

    @cached_property
    def guide_latents(self) -> list[Site]:
        """The sites that the guide samples."""
        return [site for _, site in sample_sites(self.guide_trace) if not site["is_observed"]]

    @cached_property
    def guide_factors(self) -> list[Site]:
        """The observed sites of the guide: ``pyro.factor``; not the model's, which a guide that is a messenger runs."""
        models = {site["name"] for site in self.observed}
        return [s for n, s in sample_sites(self.guide_trace) if s["is_observed"] and n not in models]

    @cached_property
    def model_latents(self) -> list[Site]:
        """The latent sites of the model."""
        return [site for _, site in sample_sites(self.model_trace) if not site["is_observed"]]

    @cached_property
    def observed(self) -> list[Site]:
        """The observed sites of the model."""
        return [site for _, site in sample_sites(self.model_trace) if site["is_observed"]]

    @property
    def sites(self) -> list[Site]:
        """Every site of the guide, then of the model."""
        return [*self.guide_latents, *self.guide_factors, *(site for _, site in sample_sites(self.model_trace))]


def density(site: Site) -> Tensor:
    """Return the log-density of a site; the mask counts, the scale does not.

    Raises:
        InputError: a flow without an inverse, at a value that it did not sample itself.
    """
    try:
        return log_density(site)
    except (NotImplementedError, KeyError) as error:  # as torch and as Pyro say that there is no inverse
        raise InputError(
            "a guide whose density is available at any z (this estimator treats the score term of log q by itself)",
            "a flow without an inverse",
            "sampled_kl or iwae, which score a flow only where it has sampled",
        ) from error


def check_shape(site: Site, log_prob: Tensor, particles: int | None, values: Collection[int] = ()) -> None:
    """Refuse a log-density with a dimension to the left of all plates: it would be counted once too often.

    Args:
        site: the site.
        log_prob: its log-density.
        particles: the dimension of the particles.
        values: the dimensions of the values of enumerated sites.

    Raises:
        InputError: as Pyro's validation says it.
    """
    declared = [dim for dim in (particles, *(plate.dim for plate in plates_of(site))) if dim is not None]
    left = range(-log_prob.dim(), min(declared, default=0))
    loose = [dim for dim in left if log_prob.shape[dim] > 1 and dim not in values]
    if loose:
        raise InputError(
            f"site {site['name']!r} with a log-density for each element of its plates",
            f"shape {tuple(log_prob.shape)}, whose dimension {loose[0]} no plate declares",
            f".to_event({-loose[0]}) at this site, or a plate in dimension {loose[0]}",
        )


def check_run(run: Run, strategies: Mapping[str, Strategy]) -> None:
    """Refuse a guide that does not fit its model, or a strategy that does not fit the guide.

    Raises:
        InputError: latents that only one of the two has, or in two event shapes; one enumerated in the model alone;
            a strategy for no site of the guide; a factor that does not say whether its gradient is pathwise.
    """
    _check_enumerated(run.guide_trace, run.model_trace)
    check_latents(run.guide_trace, run.model_trace)
    _check_strategies(run.guide_trace, strategies)
    for factor in run.guide_factors:
        _check_factor(factor)


def _check_enumerated(guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a latent that is enumerated in the model and that the guide does not have.

    Raises:
        InputError: names the site.
    """
    for name, site in sample_sites(model_trace):
        if site["infer"].get("enumerate") and not site["is_observed"] and name not in guide_trace.nodes:
            raise InputError(
                f"a guide that has site {name!r}, which the model enumerates",
                "none",
                "pyro.infer.TraceEnum_ELBO, or infer={'enumerate': 'parallel'} at a site of the guide",
            )


def _check_strategies(guide_trace: Trace, strategies: Mapping[str, Strategy]) -> None:
    """Refuse a strategy for a site that the guide does not have.

    Raises:
        InputError: names the site.
    """
    for name in strategies:
        if name not in guide_trace.nodes:
            latents = [n for n, site in sample_sites(guide_trace) if not site["is_observed"]]
            raise InputError(f"strategies for latents of the guide, {', '.join(latents)}", repr(name), "their names")


def _check_factor(site: Site) -> None:
    """Refuse a factor in a guide that does not say whether its gradient is pathwise.

    Raises:
        InputError: ``has_rsample`` is missing, which Pyro refuses, too.
    """
    if isinstance(site["fn"], Unit) and "has_rsample" not in vars(site["fn"]):
        raise InputError(
            f"has_rsample at factor {site['name']!r} of the guide",
            "none",
            "pyro.factor(..., has_rsample=True) where it depends on reparameterized samples",
        )


def whole_score(site: Site) -> Tensor | None:
    """Return the log-density of a detached latent as a score, neither scaled nor masked; None for a point estimate."""
    if site["fn"].has_rsample and isinstance(innermost(site["fn"]), Delta):
        return None
    log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_prob


def score_function(site: Site) -> Tensor | None:
    """Return the part of a site's log-density that Pyro's ``score_parts`` call its score function; None for zero."""
    if not is_pathwise(cast(SampleMessage, site)):
        return site["fn"].log_prob(site["value"])
    base = _unwrapped(site)
    if _has_default_score(base):
        return None
    try:
        part = base.score_parts(site["value"]).score_function  # Pyro's to_event would lose that of a Rejector
    except AssertionError:  # Pyro's augmented gamma scores only its own samples
        kind = type(base).__name__
        raise InputError(
            f"a density at site {site['name']!r} that is available at any z (this estimator splits its gradient)",
            f"{kind}, which scores only its own samples",
            "sampled_kl or iwae",
        ) from None
    wrapped = len(site["fn"].event_shape) - len(base.event_shape)
    return None if is_identically_zero(part) else sum_rightmost(part, wrapped)


def _unwrapped(site: Site) -> TorchDistribution:
    base: TorchDistribution = site["fn"]
    while isinstance(base, Independent | ExpandedDistribution | MaskedDistribution):
        base = cast(TorchDistribution, base.base_dist)
    return base


def _has_default_score(base: TorchDistribution) -> bool:
    """Whether a distribution is reparameterized, and has no score function of its own as a ``Rejector`` has."""
    return bool(base.has_rsample) and type(base).score_parts is TorchDistributionMixin.score_parts


def is_score(site: Site) -> bool:
    """Whether a latent has no pathwise gradient: it is not reparameterized, or marked as ``score``."""
    return not site["is_observed"] and not is_pathwise(cast(SampleMessage, site))


def is_measured(site: Site) -> bool:
    """Whether a site's gradient is measure-valued."""
    return not site["is_observed"] and strategy(cast(SampleMessage, site)) == "measure_valued"


def is_single(guide_trace: Trace) -> bool:
    """Whether a guide has one site: a latent whose gradient is pathwise and whose density is a function of it."""
    sites = [site for _, site in sample_sites(guide_trace)]
    if len(sites) != 1 or sites[0]["is_observed"] or is_score(sites[0]) or isinstance(innermost(sites[0]["fn"]), Delta):
        return False
    return _has_default_score(_unwrapped(sites[0]))


def carries_density(site: Site) -> bool:
    """Whether a site is a ``Delta`` with a density that is differentiable."""
    fn = innermost(site["fn"])
    return isinstance(fn, Delta) and isinstance(fn.log_density, Tensor) and fn.log_density.requires_grad


def check_scores(trace: Trace) -> None:
    """Refuse a guide whose latents are no draws of a density: a score function needs one, a value alone does not."""
    if not torch.is_grad_enabled():
        return
    for name, site in sample_sites(trace):
        fn = innermost(site["fn"])
        if not site["is_observed"] and isinstance(fn, Delta):
            parts = [part for part in (fn.v, fn.log_density) if isinstance(part, Tensor)]
            if any(part.requires_grad for part in parts):
                raise InputError(
                    f"a density at site {name!r}, for a score function",
                    "a Delta: a transformed draw, or a point estimate",
                    "sampled_kl or iwae, which differentiate through it",
                )
