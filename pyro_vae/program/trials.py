"""Trials of a program: the same values under another x, or as particles of one plate, and the densities compared."""

import math
from collections.abc import Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.util import prune_subsample_sites, site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.explain import explained
from pyro_vae.program.handlers import Hold
from pyro_vae.program.protocol import PARTICLES, Program, Trace
from pyro_vae.program.tracing import Site, sample_sites
from pyro_vae.program.validation import BROADCASTS

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


def check_broadcasts(program: Program, *args: Tensor) -> None:
    """Check that two particles in one plate have the densities that each has by itself, at the same latents.

    Sites that a flow without an inverse samples, and functions with noise of their own, are run but not compared. The
    plate has the dimension left of all others, as in Pyro. The program's store must be active.

    Args:
        program: the program, in evaluation mode.
        args: a batch.

    Raises:
        InputError: a program that does not run with particles, or a site whose density is another one.
    """
    first = run_once(program, args)
    plates = {name: value for trace in first for name, value in _subsamples(trace).items()}
    alone = [first, run_once(program, args, plates)]
    repeated = run_once(program, args, plates | values_of(first[0]))
    nesting = -min([0, *(dim for trace in first for dim in _plate_dims(trace))])
    latents = {name: _as_particles([pair[0] for pair in alone], name, nesting) for name, _ in _sites(first[0])}
    plate = pyro.plate(PARTICLES, len(alone), dim=-1 - nesting)
    with explained(BROADCASTS):
        held = Hold(plates | latents)
        together = [poutine.trace(held(plate(f))).get_trace(*args) for f in (program.guide, program.model)]
    for i, trace in enumerate(together):
        if not _differing(first[i], repeated[i], 100 * _eps(args[0])):
            _check_as_alone(trace, [pair[i] for pair in alone], nesting)


def run_once(program: Program, args: tuple[Tensor, ...], held: Values | None = None) -> tuple[Trace, Trace]:
    """Trace guide and model, with the sites of their plates; sites in ``held`` have those values."""
    given = dict(held or {})
    guide = poutine.trace(Hold(given)(program.guide)).get_trace(*args)
    return guide, poutine.trace(Hold(given | values_of(guide))(program.model)).get_trace(*args)


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


def _check_as_alone(trace: Trace, alone: list[Trace], nesting: int) -> None:
    each = [dict(_sites(one)) for one in alone]
    for name, site in _sites(trace):
        found, wanted = _density(site), [_density(sites[name]) for sites in each]
        if found is None or any(density is None for density in wanted):
            continue
        padded = torch.stack([_padded(d, each[0][name], nesting) for d in wanted if d is not None])
        if not _alike(found, padded):
            got = f"other densities at site {name!r} with particles in a plate than one by one"
            hint = "dimensions counted from the right (dim=-1), and networks that keep leading dimensions"
            raise InputError(f"a program {BROADCASTS}", got, hint)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether densities agree to half the digits, after broadcasting: sums run in another order."""
    try:
        shape = torch.broadcast_shapes(found.shape, wanted.shape)
        return _same(found.expand(shape), wanted.expand(shape), math.sqrt(_eps(found)))
    except RuntimeError:  # shapes that do not broadcast
        return False


def _as_particles(traces: list[Trace], name: str, nesting: int) -> Tensor:
    """Return the values of one site in several runs in a dimension left of all plates."""
    sites = [dict(sample_sites(trace))[name] for trace in traces]
    return torch.stack([_padded(site["value"], site, nesting) for site in sites])


def _padded(tensor: Tensor, site: Site, nesting: int) -> Tensor:
    """Return a site's value or density with a dimension for each of ``nesting`` plates, of size 1 where it has none."""
    return tensor.reshape((1,) * max(0, nesting - len(site["fn"].batch_shape)) + tensor.shape)


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


def _subsamples(trace: Trace) -> dict[str, Tensor]:
    return {name: value for name, value in values_of(trace).items() if site_is_subsample(trace.nodes[name])}


def _plate_dims(trace: Trace) -> list[int]:
    frames = [frame for _, site in _sites(trace) for frame in site["cond_indep_stack"]]
    return [frame.dim for frame in frames if frame.dim is not None]
