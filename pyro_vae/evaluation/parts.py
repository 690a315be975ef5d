"""Every part of an evaluation, in the order of the card."""

from collections.abc import Mapping

from pyro_vae.evaluation.bounds import BOUNDS, IMPORTANCE
from pyro_vae.evaluation.latents import CALIBRATION, LATENTS, SURGERY
from pyro_vae.evaluation.part import Part

PARTS: Mapping[str, Part] = {
    "bounds": BOUNDS,
    "importance": IMPORTANCE,
    "latents": LATENTS,
    "surgery": SURGERY,
    "calibration": CALIBRATION,
}
