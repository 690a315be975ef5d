"""Finding the sites and parameters that made a step non-finite."""

import pyro
import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.random import isolated_rng, set_noise_state
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import sample_sites, trace_program


@torch.no_grad()
def offending(program: Program, x: Batch, noise: Tensor) -> str:
    """Trace a failed step again on the same noise; name the non-finite sites, then the non-finite parameters.

    Args:
        program: the program; its store must be active.
        x: the batch of the failed step.
        noise: the generator's state before that step (:func:`~pyro_vae.base.random.noise_state`).
    """
    parameters = list(program.named_parameters())
    found = [f"parameter {n}" for n, p in parameters if not p.isfinite().all()]
    found += [f"gradient of {n}" for n, p in parameters if p.grad is not None and not p.grad.isfinite().all()]
    with isolated_rng(x.device), pyro.validation_enabled(False):
        set_noise_state(noise, x.device)
        traces = trace_program(program, x)
    for density, trace in zip(("q", "p"), traces, strict=True):
        for name, site in sample_sites(trace):
            found += [f"value of site {name}"] if not site["value"].isfinite().all() else []
            log_prob = site["fn"].log_prob(site["value"])
            found += [f"log {density} of site {name}"] if not log_prob.isfinite().all() else []
    return ", ".join(sorted(set(found), key=lambda text: ("site" not in text, found.index(text))))
