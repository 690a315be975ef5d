"""Engines: how a step is executed. The table names them for :func:`pyro_vae.fit` and the command line."""

from collections.abc import Callable

from pyro_vae.engines.base import OPTIMIZERS, SCHEDULES, Engine, StepInfo
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.choice import AUTO, choose_engine
from pyro_vae.engines.compiled import CompiledEngine
from pyro_vae.engines.svi import SVIEngine

__all__ = [
    "AUTO",
    "ENGINES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Batches",
    "CompiledEngine",
    "Engine",
    "SVIEngine",
    "StepInfo",
    "choose_engine",
]

ENGINES: dict[str, Callable[..., Engine]] = {"svi": SVIEngine, "compiled": CompiledEngine}
