"""Which engine a run uses when it is not told: the compiled one where it pays."""

import torch
from torch import Tensor

from pyro_vae.engines.compiled import CompiledEngine
from pyro_vae.errors import InputError
from pyro_vae.program import Program

AUTO = "auto"
PAYS_FROM = 10_000  # steps; docs/performance.md says what was measured


def choose_engine(program: Program, estimator: object, optimizer: str, x: Tensor, steps: int) -> tuple[str, str]:
    """Return the engine that pays, and why, in words for people.

    The compiled engine saves some milliseconds a step and costs half a minute before its first: it is taken from
    :data:`PAYS_FROM` steps on, if the program can be traced. The choice is made by the number of steps alone and never
    by a clock, so that a run can be made again.

    Args:
        program: the program, on its device.
        estimator: a ``pyro.infer.ELBO``.
        optimizer: as in :func:`pyro_vae.fit`.
        x: a few data, on which tracing is tried.
        steps: how many the run will take.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.elbo import SampledKL
        >>> choose_engine(VAE((4,), latent_dim=2), SampledKL(), "adam", torch.ones(10, 4), steps=500)
        ('svi', '500 steps: compiling pays from 10,000 on')
    """
    if steps < PAYS_FROM:
        return "svi", f"{steps:,} steps: compiling pays from {PAYS_FROM:,} on"
    try:
        with CompiledEngine(program, estimator, optimizer, inductor=False) as engine:
            engine.graph(x, torch.ones((), dtype=torch.float64, device=x.device))
    except InputError as error:
        return "svi", f"it cannot be compiled: {error}"
    return "compiled", f"{steps:,} steps: compiling pays from {PAYS_FROM:,} on"
