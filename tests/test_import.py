"""Importing the package changes nothing: no global setting, no file, no random number, no warning."""

import configparser
import pkgutil
import subprocess
import sys
from pathlib import Path

import pyro_vae
from pyro_vae.cli.main import main

SCRIPT = """
import warnings
warnings.simplefilter("error", append=True)
import logging, random
import numpy, pyro, torch
import matplotlib
import sklearn.datasets  # joblib, below it, draws from random when it is first imported

def switches():
    return {
        "settings": pyro.settings.get(), "store": len(pyro.get_param_store()),
        "validate": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(), "matmul": torch.get_float32_matmul_precision(),
        "logging": (logging.getLogger().level, len(logging.getLogger().handlers)),
        "rng": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
        "matplotlib": {name: str(matplotlib.rcParams._get(name)) for name in matplotlib.rcParams},
    }

before = switches()
import pyro_vae, pyro_vae.cli, pyro_vae.studies, pyro_vae.figures, pyro_vae.elbo
changed = {name: (before[name], value) for name, value in switches().items() if value != before[name]}
assert not changed, f"importing pyro_vae changed {changed}"
print("unchanged")
"""


def test_importing_changes_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "unchanged", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_public_names_exist():
    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name) is not None


def test_the_console_script_of_setup_cfg_is_the_command_line():
    """A wrong entry point breaks only a fresh install, so it is resolved here."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    name, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    assert name == "pyro-vae"
    assert pkgutil.resolve_name(target) is main
