"""The card: figures with their standard errors, part by part."""

from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.card.table import PARTS

__all__ = ["PARTS", "Entry", "Part"]
