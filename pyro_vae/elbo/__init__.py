"""Estimators of the evidence lower bound: drop-in ``pyro.infer.ELBO`` objects, by name."""

from pyro_vae.elbo.autograd import ByAutograd
from pyro_vae.elbo.catalogue import ESTIMATORS, beta_vae, trace_elbo, trace_mean_field_elbo
from pyro_vae.elbo.disarm import DisARM
from pyro_vae.elbo.doubly_reparameterized import MIWAEDReG, PIWAEDReG, RWSDReG
from pyro_vae.elbo.draw import Draw, draw_terms
from pyro_vae.elbo.estimator import Bound, Estimator, EstimatorState, Group
from pyro_vae.elbo.importance import CIWAE, IWAE, IWAESTL, MIWAE, PIWAE, DReG, Renyi
from pyro_vae.elbo.local_iwae import LocalIWAE
from pyro_vae.elbo.pathwise import STL, AnalyticKL, SampledKL
from pyro_vae.elbo.relaxed import Concrete, Rebar
from pyro_vae.elbo.score import OVIS, VIMCO, OVISMonteCarlo, Reinforce, ReinforceMovingAverage
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.thermodynamic import TVO
from pyro_vae.elbo.wake_sleep import RWS, WakeSleep
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.elbo.weighting import PathDerivative, ScoreFunction, ThreeTerms, TotalDerivative, Weighting

__all__ = [
    "CIWAE",
    "ESTIMATORS",
    "IWAE",
    "IWAESTL",
    "MIWAE",
    "OVIS",
    "PIWAE",
    "RWS",
    "STL",
    "TVO",
    "VIMCO",
    "AnalyticKL",
    "Bound",
    "ByAutograd",
    "Concrete",
    "DReG",
    "DisARM",
    "Draw",
    "Estimator",
    "EstimatorState",
    "Group",
    "LocalIWAE",
    "MIWAEDReG",
    "OVISMonteCarlo",
    "PIWAEDReG",
    "PathDerivative",
    "RWSDReG",
    "Rebar",
    "Reinforce",
    "ReinforceMovingAverage",
    "Renyi",
    "SampledKL",
    "ScoreFunction",
    "Terms",
    "ThreeTerms",
    "TotalDerivative",
    "WakeSleep",
    "Weighted",
    "Weighting",
    "beta_vae",
    "draw_terms",
    "trace_elbo",
    "trace_mean_field_elbo",
]
