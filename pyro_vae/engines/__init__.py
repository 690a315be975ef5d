"""Engines: how a step is executed. The table names them for :func:`pyro_vae.fit` and the command line."""

from collections.abc import Callable

from pyro_vae.engines.base import OPTIMIZERS, SCHEDULES, Engine, StepInfo
from pyro_vae.engines.svi import SVIEngine

__all__ = ["ENGINES", "OPTIMIZERS", "SCHEDULES", "Engine", "SVIEngine", "StepInfo"]

ENGINES: dict[str, Callable[..., Engine]] = {"svi": SVIEngine}
