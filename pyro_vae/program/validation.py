"""Validation of a program before training: errors that would train wrongly or not at all, each with a suggested fix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import pyro
import torch
from pyro.distributions import Unit
from torch.distributions import Distribution

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.program.contexts import own_store
from pyro_vae.program.explain import RUNS, explained
from pyro_vae.program.particles import checked_nesting
from pyro_vae.program.plates import plates_of, plates_of_examples, shared_plates
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import Site, check_latents, sample_sites, trace_program, trained_tensors

BROADCASTS = "that broadcasts, latents (particles, data, ...) beside x (data, ...)"


Need = Literal["training", "bound", "card"]


def check_program(program: Program, x: Batch, *, need: Need = "card", summed: bool = False) -> None:
    """Run the program on a few examples and refuse what would train wrongly or not at all.

    The program runs on two batch sizes, in evaluation mode, on its own random states.

    Args:
        program: the program.
        x: a few examples, (B, *event_shape), or the arguments of a call, on the program's device.
        need: what the program is checked for. ``training`` takes whatever Pyro's ``Trace_ELBO`` takes
            (:doc:`/programs`); a held-out ``bound`` for each example needs a plate of the examples that all sites
            share; the ``card`` needs it to be to the left of all others, and sites without a scale.
        summed: whether the guide may leave out enumerated sites, which the estimator sums over.

    Raises:
        InputError: it does not run; a latent that only one of model and guide has; no observed site; an observed value
            outside its distribution's support (grey pixels under a Bernoulli); a trainable parameter that Pyro never
            sees, or one that Pyro sees but the program does not hold; plates that do not fit the need.
    """
    with trying(program, x.device), torch.no_grad():
        traces = _checked_run(program, x, need, summed)
        if len(x) > 2:
            sizes = f"that runs on batches of any size: {len(x)} examples do, {len(x) - 1} do not"
            traces = _checked_run(program, x[:-1], need, summed, sizes)
        _check_parameters(program, *traces)


def check_particles(program: Program, x: Batch) -> None:
    """Check that several particles in a plate mean what they mean one by one (:func:`.checked_nesting`).

    Raises:
        InputError: they do not, or the program does not run so.
    """
    with trying(program, x.device):
        checked_nesting(program.model, program.guide, *arguments(x))


def check_once(program: Program, x: Batch, *, need: Need = "card", summed: bool = False) -> None:
    """Check as :func:`check_program` does, by a single run; the program runs again only to explain a failure.

    Raises:
        InputError: as :func:`check_program`.
    """
    try:
        with trying(program, x.device), torch.no_grad():
            _check_parameters(program, *_checked_run(program, x, need, summed))
    except InputError:
        check_program(program, x, need=need, summed=summed)
        raise


@contextmanager
def trying(program: Program, device: torch.device) -> Iterator[None]:
    """Run a block on the program that changes nothing: no mode, no running statistics, no random state.

    Pyro's validation is off: our own messages suggest a fix.
    """
    was_training = getattr(program, "training", True)
    program.train(False)
    try:
        with isolated_rng(device), own_store(program), pyro.validation_enabled(False):
            yield
    finally:
        program.train(was_training)


def _checked_run(program: Program, x: Batch, need: Need, summed: bool, what: str = RUNS) -> tuple[Trace, Trace]:
    """Trace the program once, and check all but its parameters."""
    with explained(what):
        guide_trace, model_trace = trace_program(program, x)
    check_latents(guide_trace, model_trace, summed=summed)
    if not any(site["is_observed"] for _, site in sample_sites(model_trace)):
        raise InputError("an observed site in the model", "none", "pyro.sample('x', ..., obs=x)")
    for trace in (guide_trace, model_trace):
        for name, site in sample_sites(trace):
            if need == "card":
                _check_site(name, site, len(x))
            _check_support(name, site)
    if need != "training":
        _check_shared((guide_trace, model_trace), len(x))
        _check_sampled(guide_trace, model_trace)
    if need == "card":
        plates_of_examples(guide_trace, model_trace)
    with explained(what):
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
    return guide_trace, model_trace


def _check_shared(traces: Sequence[Trace], batch: int) -> None:
    """Check that all sites share one plate of the examples."""
    if [plate.size for plate in shared_plates(*traces)] in ([batch], [-1]):
        return
    sites = [pair for trace in traces for pair in sample_sites(trace)]
    outside = [name for name, site in sites if not {plate.size for plate in plates_of(site)} & {batch, -1}]
    raise InputError(
        f"a plate of the {batch} examples that all sites share, for a held-out bound of each",
        f"site {outside[0]!r} outside it" if outside else "plates of other names in model and guide, or several",
        "fit without validation, part 'joint' of evaluate, or every site inside 'with pyro.plate(\"data\", len(x)):'",
    )


def _check_sampled(guide_trace: Trace, model_trace: Trace) -> None:
    """Check that the guide has every latent: a held-out bound is made of samples, of enumerated sites, too."""
    for name, site in sample_sites(model_trace):
        if not site["is_observed"] and name not in guide_trace.nodes:
            got = f"site {name!r}, which the model alone enumerates"
            raise InputError("latents that the guide samples, for a held-out bound", got, "fit without validation")


def _check_plates(name: str, site: Site, batch: int) -> None:
    plates = plates_of(site)
    if not plates or plates[0].size not in (batch, -1):
        raise InputError(
            f"site {name!r} inside one plate of the {batch} examples, to the left of all others",
            [f"plate {p.name!r} of {p.size} in dimension {p.dim}" for p in plates] or "no plate",
            "'with pyro.plate(\"data\", len(x), dim=-1):', all else in event dimensions by to_event",
        )
    if not bool(torch.as_tensor(site["scale"] == 1).all()):
        raise InputError(f"site {name!r} without a scale", site["scale"], "plate sizes of len(x)")


def _check_site(name: str, site: Site, batch: int) -> None:
    _check_plates(name, site, batch)
    outer, shape = plates_of(site)[0], tuple(site["fn"].batch_shape)
    dims = -(outer.dim or 0)
    wrong = len(shape) > dims or (len(shape) == dims and shape[0] != batch)
    if wrong or (outer.size < 0 and len(shape) < dims):
        wanted = f"({batch},)" if dims == 1 else f"({batch}, {', '.join(['...'] * (dims - 1))})"
        raise InputError(f"site {name!r} with batch shape {wanted}", shape, f".to_event({max(1, len(shape) - dims)})")


def _check_support(name: str, site: Site) -> None:
    support = None if isinstance(site["fn"], Unit) else site["fn"].support
    if site["is_observed"] and support is not None and not support.check(site["value"]).all():
        raise _outside_support(name, site["fn"])


def _outside_support(name: str, fn: Distribution) -> InputError:
    kind = type(innermost(fn)).__name__
    if kind == "Bernoulli":
        return InputError(
            "binary pixels: a Bernoulli gives grey levels no probability, so its bound would bound nothing",
            f"values other than 0 and 1 at site {name!r}",
            "binarize='dynamic', or likelihood='learned_gaussian' for grey pixels",
        )
    hint = "a likelihood whose support contains the data"
    return InputError(f"data in the support of {kind} at site {name!r}", "values outside it", hint)


def _check_parameters(program: Program, *traces: Trace) -> None:
    """Compare what Pyro will train with what the program holds and checkpoints keep: they must be the same."""
    seen = {id(tensor): name for name, tensor in trained_tensors(*traces).items()}
    held = {id(p): name for name, p in program.named_parameters() if p.requires_grad}
    unseen = [name for key, name in held.items() if key not in seen]
    if unseen:
        raise InputError(
            "every trainable parameter registered with Pyro (others would never move)",
            f"{_some(unseen)} unregistered",
            "pyro.module('name', module) in the model or the guide",
        )
    loose = [name for key, name in seen.items() if key not in held]
    if loose:
        raise InputError(
            "every Pyro parameter held by the program's module (others would be lost at a checkpoint)",
            f"{_some(loose)} made by pyro.param or pyro.module in its methods",
            "nn.Parameter and submodules, a PyroParam, or fit((program.model, program.guide), data)",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
