"""Which engine a run uses when it is not told: the compiled one where it pays."""

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.compiled.inductor import has_compiler
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.protocol import Program

AUTO = "auto"
PAYS_FROM = 10_000  # steps; docs/performance.md says what was measured
RULE = f"compiling pays from {PAYS_FROM:,} on"


def choose_engine(program: Program, estimator: object, optimizer: str, x: Tensor, steps: int) -> tuple[str, str]:
    """Return the engine that pays, and why, in words for people.

    The compiled engine saves some milliseconds a step and costs ten seconds or more before its first: it is taken from
    :data:`PAYS_FROM` steps on, if the program can be traced and there is a compiler. The choice is made by the number
    of steps and never by a clock, so that a run can be made again.

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
    if isinstance(program, Replicates):  # they are trained in one graph, compiled or not
        pays = steps >= PAYS_FROM and has_compiler(x.device)
        return "compiled" if pays else "compiled:inductor=false", f"replicates; {steps:,} steps: {RULE}"
    if steps < PAYS_FROM:
        return "svi", f"{steps:,} steps: {RULE}"
    if not has_compiler(x.device):
        return "svi", f"no C++ compiler was found; {steps:,} steps: {RULE}"
    try:
        with CompiledEngine(program, estimator, optimizer, inductor=False) as engine:
            engine.graph(x, torch.ones((), dtype=torch.float64, device=x.device))
    except InputError as error:
        return "svi", f"it cannot be compiled: {error}"
    return "compiled", f"{steps:,} steps: {RULE}"
