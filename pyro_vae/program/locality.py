"""Which latents are of single examples and which all share; what must hold for a bound of each example given those."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TypeAlias

from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.inside import EVERYWHERE, Names, is_inside
from pyro_vae.program.particles import are_coupled, at_first_use
from pyro_vae.program.plates import plates_of
from pyro_vae.program.ran import Ran, close, run

Key: TypeAlias = tuple[int, str]  # 0 for the guide, 1 for the model, and the name of a site
Members: TypeAlias = dict[CondIndepStackFrame, frozenset[Key]]
ELBO = "sampled_kl or stl"


def plates_of_examples(
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    plate: str | None = None,
) -> Names:
    """Return the names of the plates of the examples; none where every site is in them, or where there is no plate.

    A site inside them is **local**, any other **global**. They are the plate of this name or, without one, the plate of
    the observed sites that has all the sites that the others have; and the plates that have all of its sites. It is
    tried at a program's first use.

    Raises:
        InputError: no such plate; observed sites in plates of which none has all sites; a latent that only one of model
            and guide has inside; a plate without a size with a site that counts once for all.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> def model(x):
        ...     shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(shared, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("shared", dist.Normal(0.0, 1.0))
        >>> plates_of_examples(model, guide, (torch.ones(3),), {})
        frozenset({'data'})
    """
    what = "plates of the examples" if plate is None else f"plates of the examples, {plate}"
    return at_first_use(what, partial(_plates, plate), model, guide, args, kwargs)


def check_locality(
    model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object], plates: Names
) -> None:
    """Check that the examples are independent of each other given the global latents; tried at a program's first use.

    Raises:
        InputError: the density of a global site changes with local latents; that of an example with those of another.
    """
    name = at_first_use(f"depends on {sorted(plates)}", partial(_dependent, plates), model, guide, args, kwargs)
    if name:
        raise InputError(
            "global latents that come first (local particles share them)",
            f"{name}, outside the plate of the examples, whose density changes with the latents inside",
            ELBO,
        )
    if are_coupled(model, guide, args, kwargs, plates):
        raise InputError(
            "a model whose examples are independent given the global latents (each has a bound of its own)",
            "one whose log-densities change with the latents of other examples",
            f"{ELBO}, or normalisation in evaluation mode",
        )


def _plates(
    plate: str | None,
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Names:
    ran = run(model, guide, args, kwargs, {})
    keys = frozenset((which, name) for which, name, _ in ran.pairs())
    members = _members(ran)
    frames = _named(members, plate) if plate is not None else _largest(members, _observed(ran) or members)
    if not frames:
        return EVERYWHERE
    inside = members[frames[0]]
    chosen = [frame for frame in members if members[frame] >= inside]
    _check_latents(ran, inside)
    _check_sizes(ran, chosen, inside)
    return EVERYWHERE if inside == keys else frozenset(frame.name for frame in chosen)


def _members(ran: Ran) -> Members:
    """Return the sites that are inside each plate."""
    found: dict[CondIndepStackFrame, set[Key]] = {}
    for which, name, site in ran.pairs():
        for frame in plates_of(site):
            found.setdefault(frame, set()).add((which, name))
    return {frame: frozenset(keys) for frame, keys in found.items()}


def _observed(ran: Ran) -> set[CondIndepStackFrame]:
    return {frame for which, _, site in ran.pairs() if which == 1 and site["is_observed"] for frame in plates_of(site)}


def _named(members: Members, plate: str) -> list[CondIndepStackFrame]:
    found = [frame for frame in members if frame.name == plate]
    if len(found) != 1:
        names = ", ".join(sorted({frame.name for frame in members})) or "none"
        got = f"plates {names}" if not found else f"{len(found)} of other dimensions or sizes"
        raise InputError(f"one plate named {plate!r}", got, "the name of the plate of the examples")
    return found


def _largest(members: Members, among: Iterable[CondIndepStackFrame]) -> list[CondIndepStackFrame]:
    """Return the plates whose sites include those of all others."""
    candidates = sorted(among, key=lambda frame: frame.dim or 0)
    found = [f for f in candidates if all(members[f] >= members[other] for other in candidates)]
    if candidates and not found:
        names = ", ".join(dict.fromkeys(frame.name for frame in candidates))
        raise InputError(
            "one plate of the examples, with all observed sites and local latents",
            f"plates {names}, of which none has the sites of the others",
            f"plate={candidates[0].name!r}, or another of them",
        )
    return found


def _check_latents(ran: Ran, inside: frozenset[Key]) -> None:
    both = [{name for which, name, site in ran.pairs() if which == of and not site["is_observed"]} for of in (0, 1)]
    for name in sorted(both[0] & both[1]):
        if ((0, name) in inside) != ((1, name) in inside):
            where = "guide" if (0, name) in inside else "model"
            raise InputError(
                f"latent {name!r} inside the plate of the examples in both model and guide, or in neither",
                f"inside in the {where} alone",
                "one name and size of the plate in both",
            )


def _check_sizes(ran: Ran, chosen: list[CondIndepStackFrame], inside: frozenset[Key]) -> None:
    for frame in chosen:
        dim = frame.dim or 0
        densities = {(which, name): ran.densities[which][name] for which, name in inside}
        sizes = {d.shape[dim] if d.dim() >= -dim else 1 for d in densities.values() if d is not None}
        if frame.size < 0 and len(sizes) > 1:
            raise InputError(
                f"a size of plate {frame.name!r} (it tells local latents from those that all examples share)",
                "none, and a site that counts once for all",
                f"pyro.plate({frame.name!r}, len(x)), with that site outside",
            )


def _dependent(
    plates: Names, model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> str:
    """Return a global site whose density changes with the local latents, where nothing else changes it; else ''."""
    first = run(model, guide, args, kwargs, {})
    other, again = (run(model, guide, args, kwargs, given) for given in (first.given_again(plates), first.nodes))
    for which, name, site in first.pairs():
        before, changed, repeated = (ran.densities[which].get(name) for ran in (first, other, again))
        if is_inside(site, plates) or before is None or changed is None or repeated is None:
            continue
        if close(repeated, before) and not close(changed, before):
            return f"site {name!r} of the {('guide', 'model')[which]}"
    return ""
