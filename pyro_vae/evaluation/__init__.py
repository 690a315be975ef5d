"""Evaluation: every figure that says how good a program is, on data it was not trained on."""

from pyro_vae.evaluation.card.card import Card
from pyro_vae.evaluation.inference_data import Sizes, save_netcdf, to_inference_data
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.runner import evaluate

__all__ = ["Card", "EvaluationOptions", "Sizes", "evaluate", "save_netcdf", "to_inference_data"]
