"""Engines as values: stock SVI, the compiled engine, and the automatic choice between them."""

from dataclasses import dataclass

import torch
from pyro.infer import ELBO

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.compiled.inductor import has_compiler
from pyro_vae.engines.protocol import Engine, EngineValue
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.protocol import Program

AMORTISES_FROM = 10_000  # steps; docs/performance.md says what was measured
RULE = f"compilation amortises after {AMORTISES_FROM:,} steps"


@dataclass(frozen=True)
class StockSVI:
    """Pyro's own ``SVI``: runs every program that Pyro can train (name ``svi``)."""

    def start(
        self,
        program: Program | Replicates,
        estimator: ELBO,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        kl_weighted: bool = False,
    ) -> Engine:
        """Return the engine for a program; ``kl_weighted`` says whether steps may weight the KL.

        Raises:
            InputError: the program is :class:`~pyro_vae.Replicates`, which need engine ``compiled``.
        """
        if isinstance(program, Replicates):
            raise InputError("engine compiled for replicates, which train in one graph", "svi", 'engine="compiled"')
        return SVIEngine(program, estimator, optimizer, clip_norm, kl_weighted=kl_weighted)


@dataclass(frozen=True)
class Compiled:
    """The program traced once to a static graph and compiled (name ``compiled``).

    Args:
        inductor: False runs the traced graph uncompiled.
    """

    inductor: bool = True

    def start(
        self,
        program: Program | Replicates,
        estimator: ELBO,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        kl_weighted: bool = False,
    ) -> CompiledEngine:
        """Return the engine for a program or replicates; ``kl_weighted`` says whether steps may weight the KL."""
        return CompiledEngine(program, estimator, optimizer, clip_norm, inductor=self.inductor, kl_weighted=kl_weighted)


@dataclass(frozen=True)
class Auto:
    """The compiled engine where compilation amortises, stock SVI elsewhere (name ``auto``)."""

    def choose(
        self,
        program: Program | Replicates,
        estimator: ELBO,
        optimizer: str,
        clip_norm: float | None,
        x: Batch,
        steps: int,
        *,
        kl_weighted: bool = False,
    ) -> tuple[EngineValue, Engine, str]:
        """Return what to use, the engine started for it, and the reason in words.

        The compiled engine saves some milliseconds a step and costs ten seconds or more before its first: it is chosen
        from :data:`AMORTISES_FROM` steps on, if the program can be traced and there is a compiler. The choice depends
        on the number of steps and never on a clock, so that a run can be repeated. The engine keeps the trace: the
        program does not run again for it.

        Args:
            program: the program, on its device, in the mode of a step.
            estimator: a ``pyro.infer.ELBO``.
            optimizer: as in :func:`pyro_vae.fit`.
            clip_norm: as in :func:`pyro_vae.fit`.
            x: a batch, on which tracing is tried.
            steps: how many the run will take.
            kl_weighted: whether steps may weight the KL.

        Example:
            >>> import torch
            >>> from pyro_vae import VAE
            >>> from pyro_vae.elbo import SampledKL
            >>> value, engine, why = Auto().choose(
            ...     VAE((4,), latent_dim=2), SampledKL(), "adam", None, torch.ones(10, 4), steps=500
            ... )
            >>> value, why
            (StockSVI(), '500 steps: compilation amortises after 10,000 steps')
        """
        value, why = self._by_steps(program, x.device, steps)
        if isinstance(value, StockSVI):
            return value, value.start(program, estimator, optimizer, clip_norm, kl_weighted=kl_weighted), why
        try:
            engine = value.start(program, estimator, optimizer, clip_norm, kl_weighted=kl_weighted)
            with engine:
                engine.trace(x, torch.ones((), dtype=torch.float64, device=x.device))
        except InputError as error:
            if isinstance(program, Replicates):
                raise
            value, why = StockSVI(), f"it cannot be compiled: {error}"
            return value, value.start(program, estimator, optimizer, clip_norm, kl_weighted=kl_weighted), why
        return value, engine, why

    def _by_steps(
        self, program: Program | Replicates, device: torch.device, steps: int
    ) -> tuple[StockSVI | Compiled, str]:
        amortises = steps >= AMORTISES_FROM
        if isinstance(program, Replicates):  # they are trained in one graph, compiled or not
            return Compiled(amortises and has_compiler(device)), f"replicates; {steps:,} steps: {RULE}"
        if not amortises:
            return StockSVI(), f"{steps:,} steps: {RULE}"
        if not has_compiler(device):
            return StockSVI(), f"no C++ compiler was found; {steps:,} steps: {RULE}"
        return Compiled(), f"{steps:,} steps: {RULE}"
