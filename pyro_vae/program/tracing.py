"""Traces of a program: running guide and model, and reading sites from their traces."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import InferDict
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.errors import InputError
from pyro_vae.program.protocol import PARTICLES, Program, Trace


class Site(TypedDict):
    """The record of one sample site in a finished trace: a :class:`pyro.poutine.runtime.Message` with its value."""

    name: str
    type: str
    fn: TorchDistribution
    value: Tensor
    is_observed: bool
    scale: Tensor | float
    mask: Tensor | bool | None
    infer: InferDict
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    args: tuple[object, ...]
    kwargs: dict[str, object]


def log_density(site: Site) -> Tensor:
    """Return the log-density of a site, of its batch shape; the mask counts, the scale does not."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    masked: Tensor = scale_and_mask(log_prob, scale=1.0, mask=site["mask"])
    return masked


def total_log_prob(sites: Sequence[Site]) -> Tensor:
    """Sum the log-densities of sites; masks count, scales do not."""
    log_probs = [log_density(site) for site in sites]
    return sum(log_probs[1:], log_probs[0]) if log_probs else torch.zeros(())


def trace_program(program: Program, x: Batch, num_particles: int | None = None, dim: int = -2) -> tuple[Trace, Trace]:
    """Trace the guide, then the model replayed on its samples; returns (guide trace, model trace).

    Args:
        program: the program; its store must be active (:func:`own_store`).
        x: a batch, (B, *event_shape), or the arguments of a call.
        num_particles: K, an outermost plate; None traces without that plate.
        dim: the dimension of that plate.
    """
    model, guide = program.model, program.guide
    if num_particles is not None:
        model = pyro.plate(PARTICLES, num_particles, dim=dim)(model)
        guide = pyro.plate(PARTICLES, num_particles, dim=dim)(guide)
    args, kwargs = arguments(x)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)


def latent_sites(trace: Trace) -> dict[str, torch.Size]:
    """Return the event shape of every latent site, in the order of sampling."""
    return {name: site["fn"].event_shape for name, site in sample_sites(trace) if not site["is_observed"]}


def check_latents(guide_trace: Trace, model_trace: Trace, *, summed: bool = False) -> None:
    """Check that the guide samples exactly the model's latent sites, in their shapes.

    Args:
        guide_trace: of the guide.
        model_trace: of the model.
        summed: whether the guide may leave out sites with ``infer={"enumerate": ...}``, which an estimator sums over.

    Raises:
        InputError: latent sites of other names, or one of another event shape.
    """
    guide = {n: s for n, s in sample_sites(guide_trace) if not s["infer"].get("is_auxiliary") and not s["is_observed"]}
    model = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    left_out = {n for n, s in model.items() if summed and s["infer"].get("enumerate")} - guide.keys()
    if guide.keys() | left_out != model.keys():
        got = f"model {sorted(model)}, guide {sorted(guide)}"
        raise InputError("the same latent sites in model and guide", got, "one pyro.sample name for both")
    for name, site in guide.items():
        shapes = tuple(model[name]["fn"].event_shape), tuple(site["fn"].event_shape)
        if shapes[0] != shapes[1]:  # broadcasting would count log p(z) more than once
            got = f"{shapes[1]} in the guide, {shapes[0]} in the model"
            raise InputError(
                f"one event shape of latent {name!r} in model and guide", got, "the same .to_event in both"
            )


def sample_sites(trace: Trace) -> list[tuple[str, Site]]:
    """Return name and record of every sample site, in the order of sampling, without ``pyro.deterministic`` sites."""
    sites = cast(list[tuple[str, Site]], list(trace.nodes.items()))
    return [(n, s) for n, s in sites if s["type"] == "sample" and not s["infer"].get("_deterministic")]


def trained_tensors(*traces: Trace) -> dict[str, Tensor]:
    """Return the unconstrained tensors behind the parameters in traces, which Pyro trains, by name in the store."""
    sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "param"]
    return {str(site["name"]): cast(ConstrainedParameter, site["value"]).unconstrained() for site in sites}


class ConstrainedParameter(Protocol):
    """What Pyro's store returns for a parameter: a tensor with a link to its unconstrained one."""

    def unconstrained(self) -> Tensor:
        """Return the unconstrained tensor, which is trained."""
