"""The command line."""

from pyro_vae.cli.main import main

__all__ = ["main"]
