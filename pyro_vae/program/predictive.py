"""What a program generates: samples from the prior, reconstructions, and p(x|z) at given latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.program.contexts import own_store
from pyro_vae.program.handlers import SampleMessage, Unobserve
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import latent_sites, observed_site, sample_sites, trace_program


@dataclass(frozen=True, eq=False)
class Generated:
    """Examples that a program generated, (n, *event_shape): the mean of p(x|z), and a sample from it."""

    mean: Tensor
    sample: Tensor
    latents: dict[str, Tensor]


@torch.no_grad()
def sample_prior(program: Program, like: Tensor) -> Generated:
    """Generate from z ~ p(z), x ~ p(x|z).

    Args:
        program: the program.
        like: a tensor of shape (n, *event_shape) on the program's device; its values are not used.
    """
    with own_store(program):
        return _generated(Unobserve()(program.model), like)


@torch.no_grad()
def reconstruct(program: Program, x: Tensor) -> Generated:
    """Generate from z ~ q(z|x), x' ~ p(x|z), for examples x of shape (n, *event_shape)."""
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
    sites, shapes = dict(sample_sites(guide_trace)), latent_sites(guide_trace)
    return {name: sites[name]["fn"].mean.expand(len(x), *shape) for name, shape in shapes.items()}


@torch.no_grad()
def latent_shapes(program: Program, x: Tensor) -> dict[str, torch.Size]:
    """Return the event shape of every latent site of the model."""
    with own_store(program):
        return latent_sites(trace_program(program, x)[1])


def _generated(model: Callable[[Tensor], object], like: Tensor) -> Generated:
    """Run a model whose observations are removed, and return what it sampled in their place."""
    trace = as_observed(prune_subsample_sites(poutine.trace(model).get_trace(like)))
    sites = dict(sample_sites(trace))
    site = sites[observed_site(trace, like)]
    latents = {name: sites[name]["value"] for name in latent_sites(trace)}
    mean = site["fn"].mean.expand(like.shape)
    return Generated(mean.cpu(), site["value"].cpu(), {n: value.cpu() for n, value in latents.items()})


def as_observed(trace: Trace) -> Trace:
    """Return a copy that marks as observed just the sites that ``uncondition`` made latent."""
    trace = trace.copy()
    for name, site in sample_sites(trace):
        observed = bool(site["infer"].get("was_observed"))
        trace.nodes[name] = cast(SampleMessage, {**site, "is_observed": observed})
    return trace
