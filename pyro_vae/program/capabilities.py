"""What of a program is available, found by trial: particles in one plate, an observed x, simulation, means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor

from pyro_vae.base.batch import Arguments, Batch, arguments, of_first, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.program.explain import explained
from pyro_vae.program.generated import Simulator, check_latents_made, simulated
from pyro_vae.program.particles import checked_nesting
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import Site, sample_sites
from pyro_vae.program.trials import bare, check_forgets_x, run_once
from pyro_vae.program.validation import trying

T = TypeVar("T")


@dataclass(frozen=True)
class Capabilities:
    """What of a program is available. Fields ``no_...`` say in one line why not; they are empty where it is.

    Args:
        latents: the model's latent sites, and whether each is discrete.
        x_site: the observed site that holds x, as it is or reshaped; empty if there is none.
        no_particles: the program runs in a plate of particles, with the densities that it has one by one.
        no_x: one observed site holds x.
        no_simulation: x can be simulated: by the model, if it does not look at x, else by the program's ``simulate``.
        no_simulated_latents: so can the latents that belong to it.
        no_decoding: p(x|z) is available from the latents alone.
        no_posterior_mean: the distribution of every site of the guide has a mean.
        no_likelihood_mean: so has that of the site that holds x.
    """

    latents: Mapping[str, bool]
    x_site: str
    no_particles: str
    no_x: str
    no_simulation: str
    no_simulated_latents: str
    no_decoding: str
    no_posterior_mean: str
    no_likelihood_mean: str


@torch.no_grad()
def find_capabilities(program: Program, x: Batch, *others: Tensor) -> Capabilities:
    """Try what of a program is available, in evaluation mode, on its own random states: about ten runs on x.

    Args:
        program: the program, with its parameters as they will be used.
        x: some examples, (B, *event_shape), on the program's device; or the tensors of a call, of which the first is x.
        others: what the program takes beside x, as long as x. It is conditioned on, as are the other tensors of a call.

    Raises:
        InputError: the program does not run on x.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> found = find_capabilities(VAE((4,), latent_dim=2), torch.eye(4))
        >>> found.x_site, found.latents, found.no_simulation
        ('x', {'z': False}, '')
    """
    batch = Arguments((x, *others)) if isinstance(x, Tensor) and others else x
    x, (args, kwargs) = tensors_of(batch)[0], arguments(batch)
    with trying(program, x.device):
        with explained():
            guide, model = map(prune_subsample_sites, run_once(program, batch))
        sites = dict(sample_sites(model))
        latents = {name: is_discrete(site) for name, site in sites.items() if not site["is_observed"]}
        x_site, no_x = _tried(lambda: site_of_x(model, x), "")
        own = no_x or why_not(lambda: check_decodes(program, batch))
        no_simulation, no_simulated_latents = _simulation(program, x, latents, own)
        return Capabilities(
            latents=latents,
            x_site=x_site,
            no_particles=why_not(lambda: checked_nesting(program.model, program.guide, args, kwargs)),
            no_x=no_x,
            no_simulation=no_simulation,
            no_simulated_latents=no_simulated_latents,
            no_decoding=own,
            no_posterior_mean=_first([_no_mean(site) for _, site in sample_sites(guide)]),
            no_likelihood_mean=no_x or _no_mean(sites[x_site]),
        )


def check_decodes(program: Program, x: Batch) -> None:
    """Check by :func:`check_forgets_x` that x can be generated from the latents alone.

    Raises:
        InputError: a model that looks at x, or one with a ``pyro.factor``.
    """
    with trying(program, x.device), explained("that runs on other data"):
        check_forgets_x(of_first(program.model, x), tensors_of(x)[0])


def site_of_x(trace: Trace, x: Tensor) -> str:
    """Return the name of the one observed site that holds x, as it is or, where there is none such, reshaped.

    Args:
        trace: of the model.
        x: the batch that the model ran on.

    Raises:
        InputError: no observed site holds x, or several do.
    """
    observed = {n: s for n, s in sample_sites(trace) if s["is_observed"] and not site_is_factor(trace.nodes[n])}
    holding = [name for name, site in observed.items() if _holds(site["value"], x)]
    found = [name for name in holding if observed[name]["value"].shape == x.shape] or holding
    if len(found) == 1:
        return found[0]
    values = [f"{name!r} of shape {tuple(site['value'].shape)}" for name, site in observed.items()]
    got = f"several, {found}" if found else f"other values at {', '.join(values)}" if values else "none"
    expected = f"one observed site that holds x, {tuple(x.shape)} as it is or reshaped"
    raise InputError(expected, got, "pyro.sample('x', ..., obs=x)")


def mean_of(site: Site) -> Tensor:
    """Return the mean of a site's distribution.

    Raises:
        InputError: it has none.
    """
    try:
        mean: Tensor | None = site["fn"].mean
    except (NotImplementedError, AttributeError):
        mean = None
    if mean is None or bool(mean.isnan().any()):
        kind = type(bare(site["fn"])).__name__
        raise InputError(f"a distribution with a mean at site {site['name']!r}", kind, "its samples")
    return mean


def is_discrete(site: Site) -> bool:
    """Whether a site's distribution is a probability, not a density."""
    support = site["fn"].support
    return support is not None and bool(support.is_discrete)


def why_not(check: Callable[[], object]) -> str:
    """Return the message of the InputError that a check raises; empty if it passes."""
    try:
        check()
    except InputError as error:
        return str(error)
    return ""


def _tried(find: Callable[[], T], otherwise: T) -> tuple[T, str]:
    found = [otherwise]
    why = why_not(lambda: found.append(find()))
    return found[-1], why


def _first(reasons: list[str]) -> str:
    return next((reason for reason in reasons if reason), "")


def _no_mean(site: Site) -> str:
    return why_not(lambda: mean_of(site))


def _simulation(program: Program, x: Tensor, latents: Mapping[str, bool], own: str) -> tuple[str, str]:
    """Return why x, and why x with its latents, cannot be simulated; ``own`` is why not by the model."""
    if not own or not isinstance(program, Simulator):
        return own, own
    made, why = _tried(lambda: simulated(program, x), None)
    if made is None:
        return why, why
    simulation = made
    return "", why_not(lambda: check_latents_made(simulation, latents))


def _holds(value: Tensor, x: Tensor) -> bool:
    if value.numel() != x.numel() or value.shape[:1] != x.shape[:1]:
        return False
    same = value.reshape(x.shape)
    return bool(((same == x) | (same.isnan() & x.isnan())).all())
