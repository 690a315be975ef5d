"""Enumerated sites: all their values in one run, checked against runs with one value each, which are the truth."""

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.explain import program_error
from pyro_vae.program.handlers import Enumeration, LastSite, Sampled, Strategy
from pyro_vae.program.particles import at_first_use, checked_nesting
from pyro_vae.program.plates import Plates, plate_nesting, plates_of, shared_plates, summed
from pyro_vae.program.ran import Ran, close, run, shown
from pyro_vae.program.tracing import Site, sample_sites

TRIED = 8  # combinations of values that are compared with runs of their own
BROADCASTS = "that broadcasts over the values of enumerated sites, in dimensions to the left of all its plates"
HINT = 'infer={"gradient": "score"}, or dimensions counted from the right: softmax(-1), not softmax(1)'


def frames(enumeration: Enumeration) -> Plates:
    """Return the dimensions of enumerated values from the left, as if they were plates."""
    pairs = [(name, enumeration.dim(name), size) for name, size in enumeration.sizes.items()]
    return tuple(CondIndepStackFrame(name, dim, size, 0) for name, dim, size in reversed(pairs))


def checked_enumeration(
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    strategies: Mapping[str, Strategy],
) -> int:
    """Return the plate nesting of a program with enumerated sites; at its first use, check what enumeration means.

    Guide and model are run once with all values in parallel, and once with each of (at most eight) combinations of
    values. Every site's log-density must be the same.

    Raises:
        InputError: an enumerated site in a plate that not all sites share; a program that does not run with the values
            in parallel, or means something else there.
    """
    trial = partial(_trial, strategies)
    at_first_use(f"enumerates {dict(strategies)}", trial, model, guide, args, kwargs)
    return checked_nesting(model, guide, args, kwargs)


def _trial(
    strategies: Mapping[str, Strategy],
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> int:
    plain = run(model, guide, args, kwargs, {})
    nesting = plate_nesting(*plain.traces)
    enumeration, last = Enumeration(-1 - nesting), LastSite()
    try:
        with last, Sampled("fixed", enumeration, strategies):
            wide = run(model, guide, args, kwargs, plain.subsamples)
    except InputError:
        raise
    except Exception as error:  # whatever the program's own code raises on tensors with more dimensions
        where = f"{BROADCASTS} (after site {last.name!r})" if last.name else BROADCASTS
        raise program_error(error, where, HINT) from error
    _check_plates(enumeration, wide)
    for index in _indices(enumeration):
        _compare(wide, index, nesting, run(model, guide, args, kwargs, _records(wide, index, nesting, plain)))
    return 1


def _check_plates(enumeration: Enumeration, wide: Ran) -> None:
    kept = shared_plates(*wide.traces)
    for name, site in sample_sites(wide.traces[0]):
        inside = [plate.name for plate in plates_of(site) if plate not in kept]
        if name in enumeration.sizes and inside:
            raise InputError(
                f"enumerated site {name!r} in no plates but those that all sites share",
                f"plate {inside[0]!r} (each of its elements would need a sum of its own)",
                'infer={"gradient": "score"}, or pyro.infer.TraceEnum_ELBO for the ELBO',
            )


def _indices(enumeration: Enumeration) -> Iterator[dict[int, int]]:
    """Yield combinations of values, as an index for each dimension: all, or some evenly apart."""
    sizes = list(enumeration.sizes.values())
    dims = [enumeration.dim(name) for name in enumeration.sizes]
    step = max(1, math.prod(sizes) // TRIED)
    for combination in itertools.islice(itertools.product(*map(range, sizes)), 0, step * TRIED, step):
        yield dict(zip(dims, combination, strict=True))


def _selected(tensor: Tensor, index: Mapping[int, int], event: int, nesting: int) -> Tensor:
    """Return a tensor at one combination of values, without the dimensions of enumeration."""
    for dim, number in index.items():
        if tensor.dim() >= event - dim and tensor.shape[dim - event] > 1:
            tensor = tensor.narrow(dim - event, number, 1)
    extra = tensor.dim() - event - nesting
    return tensor.reshape(tensor.shape[extra:]) if extra > 0 else tensor


def _records(wide: Ran, index: Mapping[int, int], nesting: int, plain: Ran) -> dict[str, object]:
    records: dict[str, object] = dict(plain.subsamples)
    alone = {name: site for trace in plain.traces for name, site in sample_sites(trace)}
    for trace in wide.traces:
        for name, site in sample_sites(trace):
            if not site["is_observed"]:
                value = _selected(site["value"], index, len(site["fn"].event_shape), nesting)
                shape = alone[name]["value"].shape  # of a shared latent it has fewer dimensions than the plates
                extra = max(value.dim() - len(shape), 0)
                records[name] = {**site, "value": value.reshape(value.shape[extra:]).expand(shape)}
    return records


def _compare(wide: Ran, index: Mapping[int, int], nesting: int, single: Ran) -> None:
    for which, trace in enumerate(wide.traces):
        for name, site in sample_sites(trace):
            found, truth = wide.densities[which][name], single.densities[which].get(name)
            if found is None or truth is None:
                continue  # no inverse
            totals = [_total(each, index, nesting, site) for each in (found, truth)]
            if not close(*totals):
                got = f"site {name!r} with {shown(totals[0])} among the values and {shown(totals[1])} alone"
                raise InputError(f"a program {BROADCASTS}: the same log-densities there as for one value", got, HINT)


def _total(density: Tensor, index: Mapping[int, int], nesting: int, site: Site) -> Tensor:
    return summed(_selected(density, index, 0, nesting), plates_of(site), None)
