"""Studies: the cross-check, estimators side by side, and the benchmark."""

from pyro_vae.studies.crosscheck import crosscheck
from pyro_vae.studies.gradients import EstimatorReport, GradientReport, compare_gradients
from pyro_vae.studies.training import Lap, race

__all__ = ["EstimatorReport", "GradientReport", "Lap", "compare_gradients", "crosscheck", "race"]
