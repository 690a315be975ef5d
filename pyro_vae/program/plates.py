r"""Plates: which of them all sites share, and log-densities summed to those.

Sites are sorted by the identity of their plates (name, dimension and size, as Pyro records them), never by size alone:
a plate of 10 components beside a batch of 10 examples is another plate.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.program.handlers import SampleMessage
from pyro_vae.program.inside import EVERYWHERE, Names, is_inside
from pyro_vae.program.protocol import PARTICLES, Trace
from pyro_vae.program.tracing import Site, sample_sites

Plates: TypeAlias = tuple[CondIndepStackFrame, ...]


def plates_of(site: Site) -> Plates:
    """Return the plates of a site that are dimensions of tensors, from the left, without that of the particles."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
    return tuple(sorted(frames, key=lambda frame: frame.dim or 0))


def plate_nesting(*traces: Trace) -> int:
    """Return how many dimensions, counted from the right, the plates of traces take up (Pyro's ``max_plate_nesting``).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("data", 5, dim=-2):
        ...         pyro.sample("z", dist.Normal(torch.zeros(5, 1), 1.0))
        >>> plate_nesting(pyro.poutine.trace(model).get_trace())
        2
    """
    dims = [frame.dim for trace in traces for _, site in sample_sites(trace) for frame in plates_of(site)]
    return -min((dim for dim in dims if dim is not None), default=0)


def shared_plates(*traces: Trace, inside: Names = EVERYWHERE) -> Plates:
    """Return the plates that every sample site is in, from the left: the dimensions in which a bound is kept apart.

    Args:
        traces: of guide and model.
        inside: only sites inside all plates of these names count.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("data", 5, dim=-1):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> [plate.name for plate in shared_plates(pyro.poutine.trace(model).get_trace())]
        ['data']
    """
    sites = [site for trace in traces for _, site in sample_sites(trace) if is_inside(site, inside)]
    sets = [frozenset(plates_of(site)) for site in sites if not site_is_subsample(cast(SampleMessage, site))]
    shared = frozenset.intersection(*sets) if sets else frozenset()
    return tuple(sorted(shared, key=lambda frame: frame.dim or 0))


def plates_of_examples(*traces: Trace) -> Plates:
    """Return the plate that every site is in and that is to the left of all others: that of the examples.

    Raises:
        InputError: there is none; other plates are to its left.
    """
    shared, nesting = shared_plates(*traces)[:1], plate_nesting(*traces)
    if shared and shared[0].dim == -nesting:
        return shared
    raise InputError(
        "a plate of the examples around every site, to the left of all other plates",
        f"plate {shared[0].name!r} in dimension {shared[0].dim}, others up to {-nesting}" if shared else "none",
        "'with pyro.plate(\"data\", len(x), dim=-2):' outside, 'pyro.plate(\"pixels\", D, dim=-1)' inside",
    )


def warn_of_two_names(guide_trace: Trace, model_trace: Trace) -> None:
    """Warn of a plate that all sites share but for its name: one in the model, another in the guide.

    Plates are told apart by name, so it is not kept: the bound is one for all examples, and nobody may have meant it.
    A plate that only some sites are in, of a latent that the examples share, has any name without a difference.
    """
    guide, model = shared_plates(guide_trace), shared_plates(model_trace)
    for one in model:
        for other in guide:
            if (one.dim, one.size) == (other.dim, other.size) and one.name != other.name:
                warnings.warn(
                    f"Expected one name for the plate in dimension {one.dim} that all sites are in; got {one.name!r} "
                    f"in the model and {other.name!r} in the guide, so the bound is one for all examples. "
                    f"Try pyro.plate({one.name!r}, ...) in both.",
                    UserWarning,
                    stacklevel=2,
                )


def summed(log_prob: Tensor, kept: Plates, particles: int | None) -> Tensor:
    """Sum a log-density to its particles and the plates kept, (K, *sizes of the plates kept); a size may be 1.

    Args:
        log_prob: of one site, as its distribution returns it.
        kept: the plates kept.
        particles: the dimension of the particles, left of all plates; None: no such dimension, K is 1.

    Example:
        >>> import torch
        >>> summed(torch.ones(3, 5), (), None), summed(torch.ones(3, 5), (), -2).shape
        (tensor([15.]), torch.Size([3]))
    """
    dims = [*([] if particles is None else [particles]), *(frame.dim or 0 for frame in kept)]
    wide = log_prob.reshape((1,) * (max((-d for d in dims), default=0) - log_prob.dim()) + tuple(log_prob.shape))
    others = [dim for dim in range(-wide.dim(), 0) if dim not in dims]
    total = wide.sum(others) if others else wide
    if particles is None:
        return total.unsqueeze(0)
    position = sum(dim < particles for dim in dims)  # enumerated values lie to the left of the particles
    return total.movedim(position, 0) if position else total


def sizes(kept: Plates, totals: Iterable[Tensor]) -> tuple[int, ...]:
    """Return the sizes of the plates kept; of a plate without a size, what the log-densities have there."""
    shapes = [tuple(total.shape[1:]) for total in totals]
    return tuple(_size(frame, [shape[i] for shape in shapes]) for i, frame in enumerate(kept))


def _size(frame: CondIndepStackFrame, found: Sequence[int]) -> int:
    return frame.size if frame.size > 0 else max(found, default=1)
