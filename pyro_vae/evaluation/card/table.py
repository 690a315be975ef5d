"""Every part of an evaluation, in the order of the card."""

from typing import Any

from pyro_vae.evaluation.card.annealing import ANNEALING, SANDWICH
from pyro_vae.evaluation.card.bounds import BOUNDS
from pyro_vae.evaluation.card.calibration import CALIBRATION
from pyro_vae.evaluation.card.gaps import GAPS
from pyro_vae.evaluation.card.importance import IMPORTANCE
from pyro_vae.evaluation.card.joint import JOINT
from pyro_vae.evaluation.card.latents import LATENTS
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.card.pictures import PICTURES
from pyro_vae.evaluation.card.posterior import HMC
from pyro_vae.evaluation.card.prior import PRIOR
from pyro_vae.evaluation.card.probe import PROBE
from pyro_vae.evaluation.card.surgery import SURGERY

PARTS: dict[str, Part[Any]] = {  # a part's result has its own type
    "bounds": BOUNDS,
    "importance": IMPORTANCE,
    "joint": JOINT,
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
