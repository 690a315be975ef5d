"""Engines: how a step is executed. :data:`ENGINES` maps their names to values, for ``fit`` and the command line."""

from pyro_vae.engines.batches import Batches
from pyro_vae.engines.catalogue import ENGINES
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.optimizers import OPTIMIZERS
from pyro_vae.engines.protocol import Engine, EngineValue, StepInfo
from pyro_vae.engines.schedules import SCHEDULES
from pyro_vae.engines.select import Auto, Compiled, StockSVI
from pyro_vae.engines.svi import SVIEngine

__all__ = [
    "ENGINES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Auto",
    "Batches",
    "Compiled",
    "CompiledEngine",
    "Engine",
    "EngineValue",
    "SVIEngine",
    "StepInfo",
    "StockSVI",
]
