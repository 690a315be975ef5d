"""Validation of a program before training: errors that would train wrongly or not at all, each with a suggested fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pyro
import torch
from pyro.distributions import Unit
from torch.distributions import Distribution

from pyro_vae.base.batch import Batch
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.program.contexts import own_store
from pyro_vae.program.explain import explained
from pyro_vae.program.handlers import EachSample
from pyro_vae.program.protocol import PARTICLES, Program, Trace
from pyro_vae.program.tracing import Site, check_latents, sample_sites, trace_program, trained_tensors

BROADCASTS = "that broadcasts, latents (particles, data, ...) beside x (data, ...)"


def check_program(program: Program, x: Batch, *, per_example: bool = True) -> None:
    """Run the program on a few examples and refuse what would train wrongly or not at all.

    The program runs on two batch sizes, in evaluation mode, on its own random states.

    Args:
        program: the program.
        x: a few examples, (B, *event_shape), or the arguments of a call, on the program's device.
        per_example: whether the program is to have a bound for each example, which evaluation needs: every site inside
            one plate over the examples, in dimension -1, and one observed site of the data's shape. Training does not
            need it (:doc:`/programs`).

    Raises:
        InputError: it does not run; a latent that only one of model and guide has; no observed site; an observed value
            outside its distribution's support (grey pixels under a Bernoulli); a trainable parameter that Pyro never
            sees, or one that Pyro sees but the program does not hold; no bound for each example, if asked for.
    """
    with trying(program, x.device), torch.no_grad():
        for batch in (x, x[:-1]) if len(x) > 2 else (x,):
            traces = _checked_run(program, batch, per_example=per_example)
        _check_parameters(program, *traces)


def check_particles(program: Program, x: Batch) -> None:
    """Run the program once with a plate of particles, as held-out bounds do.

    Raises:
        InputError: it does not broadcast over a dimension to the left of the examples.
    """
    with trying(program, x.device), torch.no_grad(), explained(BROADCASTS):
        trace_program(program, x, num_particles=2)


def check_once(program: Program, x: Batch, *, particles: bool = False, per_example: bool = True) -> None:
    """Check as :func:`check_program` does, and with ``particles`` as :func:`check_particles` does, by a single run.

    The program runs again only to explain a failure. One batch size cannot tell a plate of ``len(x)`` from a constant:
    :func:`checking_sites` finds that in a later run on another size.

    Raises:
        InputError: as these two.
    """
    if particles and len(x) <= 2:  # too few for the shapes to tell particles from examples
        check_program(program, x, per_example=per_example)
        check_particles(program, x)
        return
    try:
        with trying(program, x.device), torch.no_grad():
            traces = _checked_run(program, x, 2 if particles else None, per_example=per_example)
            _check_parameters(program, *traces)
    except InputError:
        check_program(program, x, per_example=per_example)
        if particles:
            check_particles(program, x)
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


def checking_sites(batch: int) -> EachSample:
    """Return a handler that refuses sites outside one plate of the batch, however the program runs.

    Args:
        batch: examples in the batch.
    """
    return EachSample(lambda name, site: _check_plates(name, cast(Site, site), batch))


def _checked_run(
    program: Program, x: Batch, num_particles: int | None = None, *, per_example: bool
) -> tuple[Trace, Trace]:
    """Trace the program once, and check all but its parameters."""
    with explained():
        guide_trace, model_trace = trace_program(program, x, num_particles)
    check_latents(guide_trace, model_trace)
    if not any(site["is_observed"] for _, site in sample_sites(model_trace)):
        raise InputError("an observed site in the model", "none", "pyro.sample('x', ..., obs=x)")
    for trace in (guide_trace, model_trace):
        for name, site in sample_sites(trace):
            if per_example:
                _check_site(name, site, len(x), num_particles)
            _check_support(name, site)
    with explained():
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
    return guide_trace, model_trace


def _check_plates(name: str, site: Site, batch: int) -> None:
    plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]
    if [(plate.dim, plate.size) for plate in plates] != [(-1, batch)]:
        raise InputError(
            f"site {name!r} inside one plate of the {batch} examples in dimension -1",
            [f"plate {p.name!r} of {p.size} in dimension {p.dim}" for p in plates] or "no plate",
            "'with pyro.plate(\"data\", len(x), dim=-1):', all else in event dimensions by to_event",
        )
    if not bool(torch.as_tensor(site["scale"] == 1).all()):
        raise InputError(f"site {name!r} without a scale", site["scale"], "plate sizes of len(x)")


def _check_site(name: str, site: Site, batch: int, num_particles: int | None) -> None:
    _check_plates(name, site, batch)
    particles = [] if num_particles is None else [(num_particles, batch), (1, batch)]
    if tuple(site["fn"].batch_shape) not in [(batch,), (), *particles]:
        raise InputError(
            f"site {name!r} with batch shape ({batch},)",
            tuple(site["fn"].batch_shape),
            f".to_event({len(site['fn'].batch_shape) - 1})",
        )


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
