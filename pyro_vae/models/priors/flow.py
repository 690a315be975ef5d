"""Normalizing flows as priors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from pyro import distributions as dist
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_vae.models.flows import MOST, Autoregressive, bounded, order_of, start_at_identity
from pyro_vae.models.priors.prior import Encode, Prior
from pyro_vae.models.sizes import check_count, check_dims, hidden_units


class AutoregressiveFlowPrior(Prior):
    r"""A masked autoregressive flow: its density takes one pass, a sample Z passes a layer.

    Formula: u = f_T(… f₁(z)), f_t(z)_j = m_tj(z_<j) + s_tj(z_<j) z_j;  log p(z) = log N(u; 0, I) + Σ_t Σ_j log s_tj

    The order of the latents is reversed from layer to layer. log s is kept between −5 and 5. The flow starts as the
    standard normal. It is the inverse of an inverse autoregressive flow: training and bounds need log p(z) alone.

    Source: Papamakarios, Pavlakou, Murray, Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057;
    as a prior: Chen et al., Variational Lossy Autoencoder, 2017, arXiv 1611.02731

    Args:
        latent_dim: Z, at least 2: a flow of one latent is a normal.
        flows: T, the number of layers.
        hidden: units of the hidden layers of every network, each at least Z; one of max(64, 2 Z) by default.

    Raises:
        InputError: sizes that are too small.

    Example:
        >>> import torch
        >>> from pyro_vae.models import AutoregressiveFlowPrior
        >>> AutoregressiveFlowPrior(3)().log_prob(torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    loc: Tensor

    def __init__(self, latent_dim: int, flows: int = 2, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        check_dims(latent_dim, 2, "with one, this flow is a normal", "prior='learned_normal'")
        layers = range(check_count("flows", flows, 2))
        units = hidden_units(hidden, latent_dim, least=latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.orders = [order_of(layer, latent_dim) for layer in layers]
        self.networks = nn.ModuleList(_made(latent_dim, units, order) for order in self.orders)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the flow; event shape (Z,), on the module's device and in its dtype."""
        layers = [
            Autoregressive(partial(_affine, network), order).inv
            for network, order in zip(self.networks, self.orders, strict=True)
        ]
        return _flow(self.loc, layers[::-1])


class CouplingFlowPrior(Prior):
    r"""A flow of affine coupling layers (RealNVP): density and sample take one pass each.

    Formula: z_a = u_a;  z_b = m(u_a) + s(u_a) u_b, layer by layer, the latents reversed in between

    Each layer leaves the first half as it is, and scales and shifts the second by a network of the first. log s is
    kept between −5 and 5, by tanh. The flow starts as the standard normal.

    Source: Dinh, Sohl-Dickstein, Bengio, Density Estimation Using Real NVP, 2017, arXiv 1605.08803

    Args:
        latent_dim: Z, at least 2.
        flows: the number of layers; with one, half of the latents stay standard normal.
        hidden: units of the hidden layers of every network; one of max(64, 2 Z) by default.

    Raises:
        InputError: sizes that are too small.

    Example:
        >>> import torch
        >>> from pyro_vae.models import CouplingFlowPrior
        >>> CouplingFlowPrior(3)().sample((7,)).shape
        torch.Size([7, 3])
    """

    loc: Tensor
    backwards: Tensor

    def __init__(self, latent_dim: int, flows: int = 4, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        check_dims(latent_dim, 2, "a layer scales one half by the other", "prior='learned_normal'")
        check_count("flows", flows, 4)
        units = hidden_units(hidden, latent_dim)
        self.kept = latent_dim // 2
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("backwards", torch.tensor(order_of(1, latent_dim)), persistent=False)
        self.networks = nn.ModuleList(_dense(self.kept, latent_dim - self.kept, units) for _ in range(flows))

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the flow; event shape (Z,), on the module's device and in its dtype."""
        layers: list[Transform] = []
        for network in self.networks:
            within = {"log_scale_min_clip": -MOST, "log_scale_max_clip": MOST}  # Pyro's own clipping then does nothing
            layers += [transforms.AffineCoupling(self.kept, partial(_affine, network), **within)]
            layers += [transforms.Permute(self.backwards)]
        return _flow(self.loc, layers[:-1])


def _flow(loc: Tensor, layers: list[Transform]) -> dist.TorchDistribution:
    """Return standard normal numbers, transformed."""
    base = dist.Normal(loc, torch.ones_like(loc)).to_event(1)
    flow: dist.TorchDistribution = dist.TransformedDistribution(base, layers)
    return flow


def _made(latent_dim: int, units: list[int], order: list[int]) -> AutoRegressiveNN:
    permutation = cast(torch.LongTensor, torch.tensor(order))
    network = AutoRegressiveNN(latent_dim, units, permutation=permutation, nonlinearity=nn.ELU())
    start_at_identity(network.layers)
    return network


def _dense(inputs: int, outputs: int, units: list[int]) -> DenseNN:
    network = DenseNN(inputs, units, [outputs, outputs], nonlinearity=nn.ELU())
    start_at_identity(network.layers)
    return network


def _affine(network: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and bounded log-scale."""
    shift, log_scale = network(z)
    return shift, bounded(log_scale)
