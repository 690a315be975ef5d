"""Evaluation: figures of a program on held-out examples, each with its standard error."""

from pyro_vae.evaluation.card.card import Card
from pyro_vae.evaluation.inference_data import Sizes, save_netcdf, to_inference_data
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.runner import evaluate

__all__ = ["Card", "EvaluationOptions", "Sizes", "evaluate", "save_netcdf", "to_inference_data"]
