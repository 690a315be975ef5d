"""Networks: maps from one event shape to heads of another, with any leading dimensions."""

from pyro_vae.models.networks.mlp import MLP
from pyro_vae.models.networks.network import ACTIVATIONS, Network

__all__ = ["ACTIVATIONS", "MLP", "Network"]
