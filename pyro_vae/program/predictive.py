"""What a program generates: samples from the prior, reconstructions, and the decoder at chosen latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.program.contexts import own_store
from pyro_vae.program.handlers import Unobserve
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import latent_sites, observed_site, sample_sites, trace_program


@dataclass(frozen=True, eq=False)
class Generated:
    """Data that a program generated, (n, *event_shape): the mean of p(x|z), and a draw from it."""

    mean: Tensor
    draw: Tensor
    latents: dict[str, Tensor]


@torch.no_grad()
def sample_prior(program: Program, like: Tensor) -> Generated:
    """Generate from z ~ p(z), x ~ p(x|z).

    Args:
        program: the program.
        like: any tensor of shape (n, *event_shape) on the program's device; its values are not used.
    """
    with own_store(program):
        return _generated(Unobserve()(program.model), like)


@torch.no_grad()
def reconstruct(program: Program, x: Tensor) -> Generated:
    """Generate from z ~ q(z|x), x' ~ p(x|z), for data x of shape (n, *event_shape)."""
    with own_store(program):
        guide_trace = poutine.trace(program.guide).get_trace(x)
        return _generated(poutine.replay(Unobserve()(program.model), trace=guide_trace), x)


@torch.no_grad()
def decode(program: Program, latents: Mapping[str, Tensor], like: Tensor) -> Generated:
    """Generate from p(x|z) at the given latents, each (n, *latent event shape)."""
    with own_store(program):
        return _generated(poutine.condition(Unobserve()(program.model), data=dict(latents)), like)


@torch.no_grad()
def posterior_means(program: Program, x: Tensor) -> dict[str, Tensor]:
    """Return the mean of q for every latent site, (n, *latent event shape)."""
    with own_store(program):
        guide_trace = prune_subsample_sites(poutine.trace(program.guide).get_trace(x))
    sites: dict[str, Any] = guide_trace.nodes
    shapes = latent_sites(guide_trace)
    return {name: sites[name]["fn"].mean.expand(len(x), *shape) for name, shape in shapes.items()}


@torch.no_grad()
def latent_shapes(program: Program, x: Tensor) -> dict[str, torch.Size]:
    """Return the event shape of every latent site of the model."""
    with own_store(program):
        return latent_sites(trace_program(program, x)[1])


def _generated(model: Callable[[Tensor], Any], like: Tensor) -> Generated:
    """Run a model whose observations were taken away, and read off what it made in their place."""
    trace = as_observed(prune_subsample_sites(poutine.trace(model).get_trace(like)))
    site = trace.nodes[observed_site(trace, like)]
    latents = {name: trace.nodes[name]["value"] for name in latent_sites(trace)}
    mean = site["fn"].mean.expand(like.shape)
    return Generated(mean.cpu(), site["value"].cpu(), {n: value.cpu() for n, value in latents.items()})


def as_observed(trace: Any) -> Any:
    """Mark as observed just the sites that ``uncondition`` made latent, in a copy; latents held fixed stay latents."""
    trace = trace.copy()
    for name, site in sample_sites(trace):
        trace.nodes[name] = {**site, "is_observed": bool(site["infer"].get("was_observed"))}
    return trace
