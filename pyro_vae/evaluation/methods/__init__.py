"""The methods behind the card; each takes any program."""

from pyro_vae.evaluation.methods.annealing import Annealing, Sandwich, annealed_log_evidence, bidirectional
from pyro_vae.evaluation.methods.bounds import held_out_bound, held_out_bounds, held_out_elbo, importance_bounds
from pyro_vae.evaluation.methods.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.methods.elbo_decomposition import elbo_parts, elbo_surgery
from pyro_vae.evaluation.methods.inference_gaps import Gaps, inference_gaps
from pyro_vae.evaluation.methods.latent_usage import LatentDiagnostics, latent_diagnostics
from pyro_vae.evaluation.methods.log_evidence import LogEvidence, prior_log_evidence
from pyro_vae.evaluation.methods.posterior_sampling import posterior_log_evidence
from pyro_vae.evaluation.methods.probe import latent_features, linear_probe, reconstruction_scores
from pyro_vae.evaluation.methods.psis import WeightDiagnostics, effective_sample_size, pareto_k, weight_diagnostics

__all__ = [
    "Annealing",
    "Calibration",
    "Gaps",
    "LatentDiagnostics",
    "LogEvidence",
    "Sandwich",
    "WeightDiagnostics",
    "annealed_log_evidence",
    "bidirectional",
    "effective_sample_size",
    "elbo_parts",
    "elbo_surgery",
    "held_out_bound",
    "held_out_bounds",
    "held_out_elbo",
    "importance_bounds",
    "inference_gaps",
    "latent_diagnostics",
    "latent_features",
    "linear_probe",
    "pareto_k",
    "posterior_log_evidence",
    "prior_log_evidence",
    "reconstruction_scores",
    "simulation_based_calibration",
    "weight_diagnostics",
]
