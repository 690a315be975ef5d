"""Training: :func:`fit`, its settings and its result, and the run folder."""

from pyro_vae.training.config import RunConfig
from pyro_vae.training.fit import fit
from pyro_vae.training.folder import Run, load_program
from pyro_vae.training.loop import EpochRecord, Hook, Loop
from pyro_vae.training.result import FitResult
from pyro_vae.training.settings import Settings

__all__ = ["EpochRecord", "FitResult", "Hook", "Loop", "Run", "RunConfig", "Settings", "fit", "load_program"]
