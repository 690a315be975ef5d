"""Programs: a Pyro model, a guide and their parameters; how to check, trace and sample them."""

from pyro_vae.program.adapter import FunctionProgram, as_program
from pyro_vae.program.contexts import evaluating, frozen, own_store
from pyro_vae.program.joint import Joint, JointTerms
from pyro_vae.program.predictive import Generated, decode, latent_shapes, posterior_means, reconstruct, sample_prior
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import trace_program
from pyro_vae.program.validation import check_particles, check_program

__all__ = [
    "FunctionProgram",
    "Generated",
    "Joint",
    "JointTerms",
    "Program",
    "as_program",
    "check_particles",
    "check_program",
    "decode",
    "evaluating",
    "frozen",
    "latent_shapes",
    "own_store",
    "posterior_means",
    "reconstruct",
    "sample_prior",
    "trace_program",
]
