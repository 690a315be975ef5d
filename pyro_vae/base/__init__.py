"""What every package uses: errors, values by name, statistics, random streams and files."""

from pyro_vae.base.batch import Arguments, Batch
from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError, NonFiniteError, lookup
from pyro_vae.base.files import check_output, write_json
from pyro_vae.base.information import Information, cross_entropy, entropy, kl, self_information
from pyro_vae.base.random import generator, isolated_rng
from pyro_vae.base.registry import from_spec
from pyro_vae.base.statistics import Estimate, estimate, importance_weights, jackknife, log_mean_exp
from pyro_vae.base.types import Progress, State
from pyro_vae.base.version import __version__

__all__ = [
    "Arguments",
    "Batch",
    "Estimate",
    "Information",
    "InputError",
    "NonFiniteError",
    "Progress",
    "State",
    "__version__",
    "check_output",
    "cross_entropy",
    "entropy",
    "estimate",
    "from_spec",
    "generator",
    "importance_weights",
    "isolated_rng",
    "jackknife",
    "kl",
    "log_mean_exp",
    "lookup",
    "resolve_device",
    "self_information",
    "write_json",
]
