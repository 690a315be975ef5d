"""Trying a program out before training: what would train wrongly, or not at all, is refused with its cure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.program.contexts import own_store
from pyro_vae.program.explain import explained
from pyro_vae.program.protocol import Program, Trace
from pyro_vae.program.tracing import Site, check_latents, observed_site, sample_sites, trace_program, trained_tensors


def check_program(program: Program, x: Tensor) -> None:
    """Run the program on a few data and refuse what would train wrongly or not at all.

    The program is tried on two batch sizes, in evaluation mode, on random states of its own.

    Args:
        program: the program.
        x: a few data, (B, *event_shape), on the program's device.

    Raises:
        InputError: it does not run; no batch plate in dimension -1 over the data, or a site outside it; a latent
            that only one of model and guide has; no observed site of the data's shape; an observed value outside
            its distribution's support (grey pixels under a Bernoulli); a scaled site; a trainable parameter that
            Pyro never sees, or one that Pyro sees but the program does not hold.
    """
    with _trying(program, x):
        for batch in (x, x[:-1]) if len(x) > 2 else (x,):
            with explained():
                guide_trace, model_trace = trace_program(program, batch)
            check_latents(guide_trace, model_trace)
            for trace in (guide_trace, model_trace):
                for name, site in sample_sites(trace):
                    _check_site(name, site, len(batch))
            observed_site(model_trace, batch)
            with explained():
                guide_trace.compute_log_prob()
                model_trace.compute_log_prob()
        _check_parameters(program, guide_trace, model_trace)


def check_particles(program: Program, x: Tensor) -> None:
    """Run the program once with a plate of particles, as held-out bounds do.

    Raises:
        InputError: it does not broadcast over a dimension to the left of the data.
    """
    with _trying(program, x), explained("that broadcasts, latents (particles, data, ...) beside x (data, ...)"):
        trace_program(program, x, num_particles=2)


@contextmanager
def _trying(program: Program, x: Tensor) -> Iterator[None]:
    """Run a block on the program without leaving a mark on it: no statistics of batch normalisation, no noise."""
    was_training = getattr(program, "training", True)
    program.train(False)
    try:
        # without Pyro's validation: our own messages name the cure
        with isolated_rng(x.device), own_store(program), torch.no_grad(), pyro.validation_enabled(False):
            yield
    finally:
        program.train(was_training)


def _check_site(name: str, site: Site, batch: int) -> None:
    plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if [(plate.dim, plate.size) for plate in plates] != [(-1, batch)]:
        raise InputError(
            f"site {name!r} inside one plate of the {batch} data in dimension -1",
            [f"plate {p.name!r} of {p.size} in dimension {p.dim}" for p in plates] or "no plate",
            "'with pyro.plate(\"data\", len(x), dim=-1):', all else in event dimensions by to_event",
        )
    if site["fn"].batch_shape not in (torch.Size((batch,)), torch.Size()):
        raise InputError(
            f"site {name!r} with batch shape ({batch},)",
            tuple(site["fn"].batch_shape),
            f".to_event({len(site['fn'].batch_shape) - 1})",
        )
    if not bool(torch.as_tensor(site["scale"] == 1).all()):
        raise InputError(f"site {name!r} without a scale", site["scale"], "plate sizes of len(x)")
    if site["is_observed"] and not cast(Constraint, site["fn"].support).check(site["value"]).all():
        raise _outside_support(name, site["fn"])


def _outside_support(name: str, fn: Distribution) -> InputError:
    kind = type(innermost(fn)).__name__
    if kind == "Bernoulli":
        return InputError(
            "binary pixels: a Bernoulli gives grey levels no probability, so its bound would bound nothing",
            f"values other than 0 and 1 at site {name!r}",
            "binarize='dynamic', or likelihood='learned_gaussian' for grey pixels",
        )
    hint = "a likelihood whose support holds the data"
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
