"""Training: a program, data and settings; and the run folder that holds what came of it."""

from pyro_vae.training.config import RunConfig
from pyro_vae.training.fit import FitResult, fit
from pyro_vae.training.folder import Run, load_program
from pyro_vae.training.loop import EpochRecord, Hook, Loop
from pyro_vae.training.settings import Settings

__all__ = ["EpochRecord", "FitResult", "Hook", "Loop", "Run", "RunConfig", "Settings", "fit", "load_program"]
