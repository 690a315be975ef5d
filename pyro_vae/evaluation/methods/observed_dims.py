"""D, the number of dimensions that a model observes of each example, without those that are masked."""

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.evaluation.chunking import split_examples
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import Site, sample_sites, trace_program

AT_ONCE = 1000  # examples


@torch.no_grad()
def observed_dims(program: Program, x: Batch, seed: int = 0) -> Tensor:
    """Return D of every example, (B,), float64: elements of the observed sites, those of a mask left out.

    ``poutine.mask``, ``obs_mask`` and ``.mask(...)`` of a distribution count.

    Args:
        program: the program.
        x: examples, (B, *event_shape).
        seed: of the latents, on which a mask may depend.

    Raises:
        InputError: no one plate of the examples around the observed sites, or nothing observed but masked elements.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> observed_dims(VAE((2, 3), latent_dim=2), torch.ones(4, 2, 3))
        tensor([6., 6., 6., 6.], dtype=torch.float64)
    """
    with evaluating(program, x.device, seed):
        plate = _plate_of_examples(program, x)
        found = torch.cat([_of_trace(trace_program(program, part)[1], plate) for part in split_examples(x, 1, AT_ONCE)])
    if len(found) != len(x):
        raise InputError(
            "observed values in the plate of the examples, for bits per dimension", "one for all", "a size"
        )
    if not bool(found.sum() > 0):
        raise InputError("observed dimensions that are not masked, for bits per dimension", "none", "nats per example")
    return found


def _plate_of_examples(program: Program, x: Batch) -> str:
    """Return the name of the plate around every observed site with as many rows as there are examples, or no size."""
    two, one = (_plates(trace_program(program, x[:count])[1]) for count in (2, 1))
    names = [name for name, size in two.items() if (size, one.get(name)) in ((2, 1), (-1, -1))]
    if len(names) != 1:
        expected = "one plate of the examples around all observed sites, for bits per dimension"
        raise InputError(expected, f"plates {names}" if names else "none", "nats per example")
    return names[0]


def _plates(trace: Trace) -> dict[str, int]:
    """Return the sizes of the plates that all observed sites share, by name."""
    each = [{frame.name: frame.size for frame in site["cond_indep_stack"]} for site in _observed(trace)]
    return {name: size for name, size in each[0].items() if all(name in plates for plates in each)} if each else {}


def _of_trace(trace: Trace, plate: str) -> Tensor:
    """Return D of every example of a trace, (B,)."""
    return torch.stack([_of_site(site, plate) for site in _observed(trace)]).sum(0)


def _of_site(site: Site, plate: str) -> Tensor:
    dim = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == plate)
    assert dim is not None
    kept = _kept(site).movedim(dim - len(site["fn"].event_shape), 0)
    return kept.reshape(len(kept), -1).sum(1).cpu()


def _observed(trace: Trace) -> list[Site]:
    return [s for n, s in sample_sites(trace) if s["is_observed"] and not site_is_factor(trace.nodes[n])]


def _kept(site: Site) -> Tensor:
    """Return 1 for every element of a site that counts and 0 for a masked one, in its batch and event dimensions."""
    fn: Distribution = site["fn"]
    shape = fn.batch_shape + fn.event_shape
    kept = _masked(torch.ones(shape, dtype=torch.float64, device=site["value"].device), site["mask"], fn)
    while isinstance(fn, Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            kept = _masked(kept, fn._mask, fn)
        fn = fn.base_dist
    return kept


def _masked(kept: Tensor, mask: Tensor | bool | None, fn: Distribution) -> Tensor:
    """Multiply by a mask that broadcasts to the batch shape of a distribution."""
    if mask is None or isinstance(mask, bool):
        return kept * (mask is not False)
    return kept * mask.expand(fn.batch_shape).reshape(fn.batch_shape + (1,) * len(fn.event_shape))
