"""Studies: the cross-check, estimators side by side, and the benchmark."""

from pyro_vae.studies.crosscheck import crosscheck
from pyro_vae.studies.gradients import EstimatorReport, GradientComparison, GradientReport, compare_gradients
from pyro_vae.studies.training import Lap, Race, race

__all__ = [
    "EstimatorReport",
    "GradientComparison",
    "GradientReport",
    "Lap",
    "Race",
    "compare_gradients",
    "crosscheck",
    "race",
]
