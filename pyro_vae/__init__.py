"""A laboratory for variational autoencoders in Pyro.

Importing this package changes nothing: no torch, Pyro or logging setting is touched, no file is read.
"""

from pyro_vae import elbo
from pyro_vae._version import __version__
from pyro_vae.data import DataSet, Images, load
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.evaluation.card import Evaluation
from pyro_vae.evaluation.evaluate import evaluate
from pyro_vae.loop import Hook
from pyro_vae.program import FunctionProgram
from pyro_vae.replicates import Replicates
from pyro_vae.training import FitResult, fit
from pyro_vae.vae import VAE

__all__ = [
    "VAE",
    "DataSet",
    "Evaluation",
    "FitResult",
    "FunctionProgram",
    "Hook",
    "Images",
    "InputError",
    "NonFiniteError",
    "Replicates",
    "__version__",
    "elbo",
    "evaluate",
    "fit",
    "load",
]
