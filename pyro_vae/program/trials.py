"""Trials of a program: the same values under another x, and the densities compared."""

from collections.abc import Mapping

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.handlers import Hold
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import Site, sample_sites

Values = Mapping[str, Tensor]
SIMULATE = "a method simulate(num_examples) of the program"


@torch.no_grad()
def check_forgets_x(model: PyroFunction, x: Tensor, *args: object, **kwargs: object) -> None:
    """Check that a model can be simulated: that its distributions, given the values of its sites, do not look at x.

    The model runs on x and on other data, with every site, latent and observed, held at the same values. Teacher
    forcing and a prior that depends on x show as a density that changes. It holds for the parameters as they are: a
    weight of zero hides x. The caller puts the program into evaluation mode; random states are restored.

    Args:
        model: p(x, z), with its parameters in Pyro's store.
        x: a batch, (B, *event_shape).
        args: what the model takes beside x, and does not change.
        kwargs: likewise.

    Raises:
        InputError: a distribution that changes with x, or a ``pyro.factor``, which is not sampled from.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         before = torch.cat([z[..., None], x[..., :-1]], -1)
        ...         pyro.sample("x", dist.Normal(before, 1.0).to_event(1), obs=x)
        >>> check_forgets_x(model, torch.randn(5, 3))
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected a model that does not look at x, to simulate from it; got another \
distribution at site 'x' for another x at the same latents. Try a method simulate(num_examples) of the program.
    """
    with isolated_rng(x.device, 0):
        first = poutine.trace(model).get_trace(x, *args, **kwargs)
    factors = [name for name, site in first.nodes.items() if site_is_factor(site)]
    if factors:
        expected = "a model without pyro.factor, to simulate from it by sampling its sites"
        raise InputError(expected, f"factor {factors[0]!r}", SIMULATE)
    same, other = (_held(model, values_of(first), data, args, kwargs) for data in (x, _another(x)))
    changed = _differing(same, other, 100 * _eps(x))
    if changed:
        got = f"another distribution at site {changed!r} for another x at the same latents"
        raise InputError("a model that does not look at x, to simulate from it", got, SIMULATE)


def run_once(program: Program, x: Batch, held: Values | None = None) -> tuple[Trace, Trace]:
    """Trace guide and model, with the sites of their plates; sites in ``held`` have those values."""
    given, (args, kwargs) = dict(held or {}), arguments(x)
    guide = poutine.trace(Hold(given)(program.guide)).get_trace(*args, **kwargs)
    return guide, poutine.trace(Hold(given | values_of(guide))(program.model)).get_trace(*args, **kwargs)


def _held(model: PyroFunction, held: Values, x: Tensor, args: tuple[object, ...], kwargs: dict[str, object]) -> Trace:
    with isolated_rng(x.device, 1):  # a model's own noise is the same in every run
        return poutine.trace(Hold(held)(model)).get_trace(x, *args, **kwargs)


def values_of(trace: Trace) -> dict[str, Tensor]:
    """Return the value of every sample site, those of plates and factors with them."""
    return {name: site["value"] for name, site in sample_sites(trace)}


def bare(fn: Distribution) -> Distribution:
    """Return the distribution inside ``to_event`` and ``mask``."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _differing(one: Trace, two: Trace, tolerance: float) -> str:
    """Return the first site whose density differs between two runs on the same values; empty if there is none."""
    ours, theirs = dict(_sites(one)), dict(_sites(two))
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            return name
        a, b = _density(ours[name]), _density(theirs[name])
        if a is not None and b is not None and not _same(a, b, tolerance):
            return name
    return ""


def _density(site: Site) -> Tensor | None:
    """Return log-densities of the single elements, where they are independent, without masks; None: not available."""
    try:
        density: Tensor = bare(site["fn"]).log_prob(site["value"])
    except (NotImplementedError, KeyError):  # a flow without an inverse
        return None
    return density


def _same(one: Tensor, two: Tensor, tolerance: float) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True)


def _another(x: Tensor) -> Tensor:
    """Return data that the program takes as well: the same examples in another order; if all are equal, 0 or 1."""
    other = x.roll(1, 0)
    if not torch.equal(other.nan_to_num(), x.nan_to_num()):
        return other
    return torch.zeros_like(x) if bool((x != 0).any()) else torch.ones_like(x)


def _eps(x: Tensor) -> float:
    return float(torch.finfo(x.dtype if x.is_floating_point() else torch.float32).eps)


def _sites(trace: Trace) -> list[tuple[str, Site]]:
    return sample_sites(prune_subsample_sites(trace))
