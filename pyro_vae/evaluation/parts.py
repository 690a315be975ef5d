"""Every part of an evaluation, in the order of the card."""

from collections.abc import Mapping

from pyro_vae.evaluation.bounds import BOUNDS, IMPORTANCE
from pyro_vae.evaluation.latents import CALIBRATION, LATENTS, SURGERY
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.use import PICTURES, PROBE
from pyro_vae.evaluation.witnesses import ANNEALING, GAPS, HMC, PRIOR, SANDWICH

PARTS: Mapping[str, Part] = {
    "bounds": BOUNDS,
    "importance": IMPORTANCE,
    "annealing": ANNEALING,
    "sandwich": SANDWICH,
    "prior": PRIOR,
    "hmc": HMC,
    "gaps": GAPS,
    "latents": LATENTS,
    "surgery": SURGERY,
    "calibration": CALIBRATION,
    "pictures": PICTURES,
    "probe": PROBE,
}
