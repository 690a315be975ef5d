"""Programs: a Pyro model, a guide and their parameters; how to check, trace and sample them."""

from pyro_vae.program.adapter import FunctionProgram, as_program
from pyro_vae.program.capabilities import Capabilities, find_capabilities
from pyro_vae.program.contexts import evaluating, frozen, own_store
from pyro_vae.program.generated import Generated, Simulator, simulated
from pyro_vae.program.joint import Joint, JointTerms
from pyro_vae.program.predictive import decode, latent_shapes, posterior_means, reconstruct, sample_prior
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import trace_program
from pyro_vae.program.trials import check_forgets_x
from pyro_vae.program.validation import check_particles, check_program

__all__ = [
    "Capabilities",
    "FunctionProgram",
    "Generated",
    "Joint",
    "JointTerms",
    "Program",
    "Simulator",
    "as_program",
    "check_forgets_x",
    "check_particles",
    "check_program",
    "decode",
    "evaluating",
    "find_capabilities",
    "frozen",
    "latent_shapes",
    "own_store",
    "posterior_means",
    "reconstruct",
    "sample_prior",
    "simulated",
    "trace_program",
]
