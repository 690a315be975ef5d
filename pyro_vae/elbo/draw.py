"""One draw of particles and its log-densities: the one place where noise is sampled, and what it refuses."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.handlers import DetachSamples
from pyro_vae.program.protocol import PARTICLES, Program
from pyro_vae.program.tracing import Site, check_latents, sample_sites, total_log_prob

Latents = Literal["attached", "leaves", "fixed"]


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


class Draw:
    """K particles sampled from a guide for B examples, and their densities.

    Args:
        model: p(x, z), x observed.
        guide: q(z|x).
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K; an outermost plate in dimension −2 holds the particles.
        latents: how the densities see the latents: ``attached`` to the guide that sampled them; ``leaves``, detached
            tensors whose own gradient can be taken; or ``fixed``, detached as they are sampled.
        beta: weight of log p(z) and log q(z|x) in the terms (:class:`~pyro_vae.elbo.Weighted`).

    Raises:
        InputError: a site outside the one batch plate (dimension −1), a latent that only one of model and guide
            has, an enumerated site, scales that differ between sites or examples, or, where latents are not fixed, a
            site without reparameterization.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        num_particles: int,
        latents: Latents = "attached",
        beta: float | Tensor = 1.0,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.num_particles, self.beta = num_particles, beta
        with DetachSamples() if latents == "fixed" else nullcontext():
            self._guide_run = self._trace(guide)  # holds the plate's subsample, which every later run must share
        self.guide_trace = prune_subsample_sites(self._guide_run)
        self.drawn: dict[str, Tensor] = {name: site["value"] for name, site in sample_sites(self.guide_trace)}
        if latents != "fixed":
            _check_reparameterized(self.guide_trace)
        self.latents = (
            {n: z.detach().requires_grad_() for n, z in self.drawn.items()} if latents == "leaves" else self.drawn
        )
        given = _substituted(self._guide_run, self.latents)
        self.model_trace = prune_subsample_sites(self._trace(poutine.replay(model, trace=given)))
        check_latents(self.guide_trace, self.model_trace)
        self.batch = _batch(self.model_trace)
        self.scale = _shared_scale([*sample_sites(self.guide_trace), *sample_sites(self.model_trace)])

    @property
    def terms(self) -> Terms:
        """The densities at the latents, those of the latents times beta."""
        sites = sample_sites(self.model_trace)
        observed = [site for _, site in sites if site["is_observed"]]
        latent = [site for _, site in sites if not site["is_observed"]]
        return Terms(self._total(observed), self.beta * self._total(latent), self.log_q(self.latents))

    def log_q(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return beta log q(z|x), (K, B), at latents that may be others than those sampled.

        A single site is scored by the distribution that sampled it. Of several, later ones depend on earlier ones, so
        the guide runs again on the latents given: it must be a function of them alone (dropout in it would use another
        mask).

        Raises:
            InputError: a normalizing flow without an inverse, at latents that it did not sample itself.
        """
        sites = sample_sites(self.guide_trace)
        others = any(latents[name] is not z for name, z in self.drawn.items())
        if others and len(sites) > 1:
            given = _substituted(self._guide_run, latents)
            sites = sample_sites(prune_subsample_sites(self._trace(poutine.replay(self.guide, trace=given))))
        try:
            return self.beta * self._total([{**site, "value": latents[name]} for name, site in sites])
        except (NotImplementedError, KeyError) as error:  # as torch and as Pyro say that there is no inverse
            raise InputError(
                "a guide whose density is available at any z (this estimator treats the score term of log q by itself)",
                "a flow without an inverse",
                "sampled_kl or iwae, which score a flow only where it has sampled",
            ) from error

    def _trace(self, function: PyroFunction) -> poutine.Trace:
        plate = pyro.plate(PARTICLES, self.num_particles, dim=-2)
        trace = poutine.trace(plate(function)).get_trace(*self.args, **self.kwargs)
        _check_sites(prune_subsample_sites(trace))
        return trace

    def _total(self, sites: Sequence[Site]) -> Tensor:
        return total_log_prob(sites).expand(self.num_particles, self.batch)


@torch.no_grad()
def draw_terms(program: Program, x: Tensor, num_particles: int = 1) -> Terms:
    """Sample K particles from the guide and score them, (K, B): evaluation is made of these.

    Several latent sites add up. Masks count, scales do not. The program's store must be active
    (:func:`pyro_vae.program.own_store`).
    """
    return Draw(program.model, program.guide, (x,), {}, num_particles, "fixed").terms


def differ(left: Tensor | float, right: Tensor | float) -> bool:
    """Whether two scales or two masks differ anywhere; plain numbers are compared without reading a tensor."""
    unequal: Tensor | bool = left != right
    return bool(unequal.any()) if isinstance(unequal, Tensor) else unequal


def _substituted(trace: poutine.Trace, latents: Mapping[str, Tensor]) -> poutine.Trace:
    """Return a copy of a trace that holds other values."""
    copy = trace.copy()
    for name, value in latents.items():
        copy.nodes[name] = {**copy.nodes[name], "value": value}
    return copy


def _check_sites(trace: poutine.Trace) -> None:
    for name, site in sample_sites(trace):
        dims = [frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
        if dims != [-1]:
            raise InputError(
                f"site {name!r} inside one batch plate, in dimension -1: the bound is kept per example",
                f"plates in dimensions {dims}" if dims else "no plate",
                "pyro.infer.Trace_ELBO, which takes latents that the examples share",
            )
        if site["infer"].get("enumerate"):
            raise InputError(
                f"site {name!r} sampled", "infer={'enumerate': ...}", "pyro.infer.TraceEnum_ELBO, or no enumeration"
            )


def _check_reparameterized(trace: poutine.Trace) -> None:
    for name, site in sample_sites(trace):
        if not site["fn"].has_rsample:
            raise InputError(
                f"a reparameterized distribution at site {name!r} (this estimator differentiates through z)",
                type(site["fn"]).__name__,
                "reinforce, vimco, wake_sleep, rws or tvo",
            )


def _batch(trace: poutine.Trace) -> int:
    sizes = {
        f.size for _, site in sample_sites(trace) for f in site["cond_indep_stack"] if f.vectorized and f.dim == -1
    }
    if len(sizes) != 1:
        raise InputError("one batch plate", f"plates of sizes {sorted(sizes)}", "plates of len(x)")
    return int(sizes.pop())


def _shared_scale(sites: list[tuple[str, Site]]) -> Tensor | float:
    """Return the scale of all sites; where they differ, importance weights would be tempered silently."""
    first_name, first = sites[0]
    scale = first["scale"]
    if isinstance(scale, Tensor) and scale.dim():
        got = f"a tensor of shape {tuple(scale.shape)} at site {first_name!r}"
        raise InputError("one number as scale", got, "pyro.infer.Trace_ELBO, which takes a scale for every example")
    for name, site in sites[1:]:
        if differ(site["scale"], scale):
            raise InputError(
                "one scale for all sites",
                f"{scale} at site {first_name!r} and {site['scale']} at site {name!r}",
                "one plate, or one poutine.scale, around model and guide alike; estimator beta to weight the KL",
            )
    return scale
