"""What a program generates: samples from the prior, reconstructions, and p(x|z) at given latents."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.program.capabilities import check_decodes, mean_of, site_of_x
from pyro_vae.program.contexts import own_store
from pyro_vae.program.explain import explained
from pyro_vae.program.generated import Generated, Simulator, check_latents_made, simulated
from pyro_vae.program.handlers import SampleMessage, Unobserve
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import latent_sites, sample_sites, trace_program
from pyro_vae.program.validation import trying


@torch.no_grad()
def sample_prior(program: Program, like: Tensor) -> Generated:
    """Generate from z ~ p(z), x ~ p(x|z), by the model; where it looks at x, by the program's ``simulate``.

    Args:
        program: the program.
        like: a tensor of shape (n, *event_shape) on the program's device; its values are not used.

    Raises:
        InputError: a model that looks at x, or observes something else, in a program without ``simulate``.
    """
    try:
        site = _decodable(program, like)
    except InputError:
        if not isinstance(program, Simulator):
            raise
        with own_store(program):
            return simulated(program, like)
    with own_store(program):
        return _generated(Unobserve()(program.model), like, site)


@torch.no_grad()
def reconstruct(program: Program, x: Tensor) -> Generated:
    """Generate from z ~ q(z|x), x' ~ p(x|z), for examples x of shape (n, *event_shape).

    Raises:
        InputError: a model that looks at x, or observes something else.
    """
    site = _decodable(program, x)
    with own_store(program):
        guide_trace = poutine.trace(program.guide).get_trace(x)
        return _generated(poutine.replay(Unobserve()(program.model), trace=guide_trace), x, site)


@torch.no_grad()
def decode(program: Program, latents: Mapping[str, Tensor], like: Tensor) -> Generated:
    """Generate from p(x|z) at the given latents, each (n, *latent event shape).

    Raises:
        InputError: a model that looks at x, or observes something else.
    """
    site = _decodable(program, like)
    with own_store(program):
        return _generated(poutine.condition(Unobserve()(program.model), data=dict(latents)), like, site)


@torch.no_grad()
def posterior_means(program: Program, x: Tensor, num_samples: int | None = None) -> dict[str, Tensor]:
    """Return the mean of q for every latent site, (n, *latent event shape).

    Args:
        program: the program.
        x: examples, (n, *event_shape).
        num_samples: average that many samples of q, for a q without a mean; None takes the mean of its distribution.

    Raises:
        InputError: a site of the guide whose distribution has no mean.
    """
    with own_store(program):
        traces = [prune_subsample_sites(poutine.trace(program.guide).get_trace(x)) for _ in range(num_samples or 1)]
    found = {}
    for name, shape in latent_sites(traces[0]).items():
        sites = [dict(sample_sites(trace))[name] for trace in traces]
        samples = [mean_of(sites[0])] if num_samples is None else [site["value"] for site in sites]
        found[name] = torch.stack([sample.expand(len(x), *shape) for sample in samples]).mean(0)
    return found


@torch.no_grad()
def latent_shapes(program: Program, x: Tensor) -> dict[str, torch.Size]:
    """Return the event shape of every latent site of the model."""
    with own_store(program):
        return latent_sites(trace_program(program, x)[1])


@torch.no_grad()
def normal_prior(program: Program, x: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a latent site whose prior is a diagonal normal, each (*event_shape).

    Args:
        program: the program.
        x: examples, (n, *event_shape).
        site: the name of the latent site.

    Raises:
        InputError: another prior, or one that differs between examples.
    """
    with own_store(program):
        fn = dict(sample_sites(trace_program(program, x)[1]))[site]["fn"]
    shape, normal = (len(x), *fn.event_shape), innermost(fn)
    moments = [m.expand(shape) for m in (normal.loc, normal.scale)] if isinstance(normal, Normal) else []
    if not moments or any(not torch.equal(m, m[:1].expand(shape)) for m in moments):
        got = "one that differs between examples" if moments else type(normal).__name__
        expected = f"a prior of site {site!r} that is one normal of independent latents, for its quantiles"
        raise InputError(expected, got, "pictures of samples, which every prior has")
    return moments[0][0], moments[1][0]


def _decodable(program: Program, like: Tensor) -> str:
    """Return the site that holds x in a model that can be simulated."""
    with trying(program, like.device), explained():
        site = site_of_x(prune_subsample_sites(poutine.trace(program.model).get_trace(like)), like)
    check_decodes(program, like)
    return site


def _generated(model: Callable[[Tensor], object], like: Tensor, name: str) -> Generated:
    """Run a model whose observations are removed, and return what it sampled in place of x."""
    trace = as_observed(prune_subsample_sites(poutine.trace(model).get_trace(like)))
    sites = dict(sample_sites(trace))
    sample, latents = sites[name]["value"], {n: sites[n]["value"].cpu() for n in latent_sites(trace)}
    try:
        mean = mean_of(sites[name]).expand(sample.shape).reshape(like.shape).cpu()
    except InputError as error:
        return Generated(None, sample.reshape(like.shape).cpu(), latents, no_mean=str(error))
    return Generated(mean, sample.reshape(like.shape).cpu(), latents)


def sample_pairs(program: Program, like: Tensor) -> Generated:
    """Generate as :func:`sample_prior` does, with a value for every latent site.

    Raises:
        InputError: as there, or a ``simulate`` that returns no latents.
    """
    made = sample_prior(program, like)
    if made.by_simulate:
        check_latents_made(made, latent_shapes(program, like))
    return made


def as_observed(trace: Trace) -> Trace:
    """Return a copy that marks as observed just the sites that ``uncondition`` made latent."""
    trace = trace.copy()
    for name, site in sample_sites(trace):
        observed = bool(site["infer"].get("was_observed"))
        trace.nodes[name] = cast(SampleMessage, {**site, "is_observed": observed})
    return trace
