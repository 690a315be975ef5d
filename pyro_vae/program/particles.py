"""Particles: a plate of them in one run, checked against runs one by one, which are the truth."""

import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.adapter import modules_of
from pyro_vae.program.contexts import quiet
from pyro_vae.program.explain import program_error
from pyro_vae.program.handlers import LastSite, SampleMessage
from pyro_vae.program.inside import EVERYWHERE, Names, PlateInside, is_inside
from pyro_vae.program.plates import Plates, plate_nesting, plates_of, shared_plates, summed
from pyro_vae.program.protocol import PARTICLES, Trace
from pyro_vae.program.ran import Ran, close, densities_of, pairs_of, run, shown, stacked, values_of
from pyro_vae.program.tracing import sample_sites

BROADCASTS = "that broadcasts over particles, in a dimension to the left of all its plates"
REPLACED = 20  # times that discrete latents are sampled anew: they are the same again at one time in two, or more
HINT = "vectorize_particles=False, or dimensions counted from the right: softmax(-1), not softmax(1)"

T = TypeVar("T")

_KNOWN: "dict[int, list[_Known]]" = {}  # by the identity of what owns the model


@dataclass(frozen=True, eq=False)
class _Known:
    """What trials found for a model and a guide, while both are alive."""

    owners: "tuple[weakref.ref[object], weakref.ref[object]]"
    names: tuple[str, str]
    modes: (
        "tuple[tuple[weakref.ref[nn.Module], bool], ...]"  # of the modules that they reach: normalisation depends on it
    )
    found: dict[str, object]

    def holds(self) -> bool:
        """Whether every module is in the mode of the trial."""
        return all(module is None or module.training == mode for module, mode in ((r(), m) for r, m in self.modes))


def checked_nesting(
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    plates: Names = EVERYWHERE,
) -> int:
    """Return the plate nesting of a program; at its first use, check that it broadcasts over particles.

    The first run starts at the caller's random state, so that parameters that it makes are those of a first step.

    Two particles are run one by one and then in a plate, at the same latents. Every site's log-density must be the
    same: a decoder that counts dimensions from the left, ``softmax(1)``, is found here. The trial draws no noise from
    the caller's generators and leaves buffers as they are. Dropout is off in it, normalisation as it is.

    Args:
        model: p(x, z).
        guide: q(z|x).
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        plates: names of the plates that a site must be inside of to have particles of its own; two particles share
            the others.

    Raises:
        InputError: the program does not run with a plate of particles, or means something else there; names the site.
    """
    what = f"nesting inside {sorted(plates)}"
    return at_first_use(what, partial(_trial, plates), model, guide, args, kwargs)


def are_coupled(
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    plates: Names = EVERYWHERE,
) -> bool:
    """Return whether an example's density depends on another example's latents; tried at a program's first use.

    A decoder with batch normalisation in training mode is found here. A score that is weighted by the bound of its own
    example alone would be biased. With names of plates, the latents outside them are the same for both.
    """
    what = f"coupled inside {sorted(plates)}"
    return at_first_use(what, partial(_coupling, plates), model, guide, args, kwargs)


def at_first_use(
    what: str,
    trial: Callable[..., T],
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> T:
    """Return what a trial finds, ``trial(model, guide, args, kwargs)``; it runs at the first use of a program alone."""
    found = _found(model, guide)
    if what not in found:
        found[what] = _in_trial(trial, model, guide, args, kwargs)
    return cast(T, found[what])


def _found(model: PyroFunction, guide: PyroFunction) -> dict[str, object]:
    (owner, name), (other, other_name) = _parts(model), _parts(guide)
    for known in _KNOWN.get(id(owner), []):
        same = known.owners[0]() is owner and known.owners[1]() is other and known.names == (name, other_name)
        if same and known.holds():
            return known.found
    key = id(owner)
    try:
        refs = weakref.ref(owner, lambda _: _KNOWN.pop(key, None)), weakref.ref(other)
    except TypeError:  # an object with slots: tried at every use
        return {}
    modules = {id(m): m for f in (model, guide) for top in modules_of(f) for m in top.modules()}
    modes = tuple((weakref.ref(module), module.training) for module in modules.values())
    known = _Known(refs, (name, other_name), modes, {})
    _KNOWN.setdefault(key, []).append(known)
    return known.found


def _in_trial(
    trial: Callable[..., T],
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> T:
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    with isolated_rng(device), torch.no_grad(), pyro.validation_enabled(False), quiet(model, guide):
        return trial(model, guide, args, kwargs)


def _parts(function: PyroFunction) -> tuple[object, str]:
    """Return what owns a function, and its name there: a bound method is a new object at every access."""
    if isinstance(function, types.MethodType):
        return function.__self__, function.__func__.__qualname__
    return function, ""


def _trial(
    plates: Names, model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> int:
    first = run(model, guide, args, kwargs, {})
    shared = first.given_again(plates)
    second = run(model, guide, args, kwargs, shared)
    nesting = plate_nesting(*first.traces)
    plate = PlateInside(plates, PARTICLES, 2, dim=-1 - nesting)
    given = {**shared, **stacked(first, second, nesting, plates)}
    last = LastSite()
    try:
        with last:
            both = run(plate(model), plate(guide), args, kwargs, given, pairs_of(first, second, nesting, plates))
    except Exception as error:  # whatever the program's own code raises on tensors with one dimension more
        where = f"{BROADCASTS} (after site {last.name!r})" if last.name else BROADCASTS
        raise program_error(error, where, HINT) from error
    wrong = _differing(both, (first, second), -1 - nesting)
    if wrong:
        _refuse(wrong[0], run(model, guide, args, kwargs, first.nodes, values_of(first)))
    return nesting


def _coupling(
    names: Names, model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> bool:
    first = run(model, guide, args, kwargs, {})
    plates = shared_plates(*first.traces, inside=names)
    if not plates:
        return False  # one bound for all examples
    again = _model_densities(model, args, kwargs, first, {})
    discrete = any(not site["is_observed"] and site["fn"].has_enumerate_support for _, _, site in first.pairs())
    for _ in range(REPLACED if discrete else 1):
        second = run(model, guide, args, kwargs, first.given_again(names))
        other = _model_densities(model, args, kwargs, first, _first_replaced(first, second, plates, names))
        for name, density in other.items():
            before, repeated = (found.get(name) for found in (first.densities[1], again))
            if density is None or before is None or repeated is None:
                continue
            parts = [_other_examples(summed(each, plates, None)) for each in (density, before, repeated)]
            if close(parts[2], parts[1]) and not close(parts[0], parts[1]):
                return True
    return False


def _model_densities(
    model: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    ran: Ran,
    latents: Mapping[str, object],
) -> dict[str, Tensor | None]:
    given = Trace()
    given.nodes.update(cast(dict[str, SampleMessage], {**ran.nodes, **latents}))
    trace = poutine.trace(poutine.replay(model, trace=given)).get_trace(*args, **kwargs)
    return densities_of(prune_subsample_sites(trace))


def _first_replaced(first: Ran, second: Ran, plates: Plates, names: Names) -> dict[str, object]:
    """Return records of the latents inside plates, those of the first example from a second run."""
    others = dict(sample_sites(second.traces[0]))
    records: dict[str, object] = {}
    for name, site in sample_sites(first.traces[0]):
        if not site["is_observed"] and is_inside(site, names):
            value, dim = site["value"].clone(), (plates[0].dim or 0) - len(site["fn"].event_shape)
            if value.dim() >= -dim:
                value.select(dim, 0).copy_(others[name]["value"].select(dim, 0))
            records[name] = {**site, "value": value}
    return records


def _other_examples(total: Tensor) -> Tensor:
    return total[:, 1:]


@dataclass(frozen=True, eq=False)
class _Difference:
    """A site whose log-density differs: in a plate of two particles, and one by one."""

    which: int
    name: str
    kept: Plates
    found: Tensor
    truth: Tensor


def _differing(both: Ran, single: Sequence[Ran], dim: int) -> list[_Difference]:
    first = [dict(sample_sites(trace)) for trace in single[0].traces]
    wrong = []
    for which, name, _ in both.pairs():
        alone = [ran.densities[which].get(name) for ran in single]
        density = both.densities[which][name]
        if density is None or alone[0] is None or alone[1] is None:
            continue  # no inverse
        kept = plates_of(first[which][name])
        truth = torch.cat([summed(each, kept, None) for each in alone if each is not None])
        found = summed(density, kept, dim)
        found = found.expand_as(truth) if len(found) == 1 else found  # of a site that the particles share
        if not close(found, truth):
            wrong.append(_Difference(which, name, kept, found, truth))
    return wrong


def _refuse(wrong: _Difference, again: Ran) -> NoReturn:
    """Refuse a site that differs, or that has noise of its own: then it differs between any two runs."""
    repeated = again.densities[wrong.which].get(wrong.name)
    if repeated is None or not close(summed(repeated, wrong.kept, None), wrong.truth[:1]):
        got = f"site {wrong.name!r} with noise of its own, outside pyro.sample, which particles in a plate may share"
        raise InputError(f"a program {BROADCASTS}", got, HINT)
    got = f"site {wrong.name!r} with {shown(wrong.found)} in a plate of 2 and {shown(wrong.truth)} one by one"
    raise InputError(f"a program {BROADCASTS}: the same log-densities there as one by one", got, HINT)
