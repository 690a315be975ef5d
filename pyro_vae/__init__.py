"""A laboratory for variational autoencoders in Pyro.

Importing this package changes nothing: no torch, Pyro or logging setting is touched, no file is read.
"""

from pyro_vae import elbo
from pyro_vae.base import InputError, NonFiniteError, __version__
from pyro_vae.data import DataSet, Images, load
from pyro_vae.evaluation import Card, evaluate
from pyro_vae.models import VAE, Replicates
from pyro_vae.program import FunctionProgram
from pyro_vae.training import FitResult, Hook, fit

__all__ = [
    "VAE",
    "Card",
    "DataSet",
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
