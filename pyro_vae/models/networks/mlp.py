"""Multilayer perceptrons."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_vae.base.errors import lookup
from pyro_vae.models.networks.network import ACTIVATIONS, Network, check_sizes


class MLP(Network):
    """A multilayer perceptron (..., *in_shape) -> (..., heads, *out_shape).

    Each parameter of a distribution has a head: a diagonal normal has two (location and log-scale), a Bernoulli one
    (logits). Leading dimensions, (B,) or (K, B), are kept.

    Args:
        in_shape: event shape of the input.
        out_shape: event shape of every head.
        heads: number of heads.
        hidden: units of each hidden layer; empty for an affine map.
        activation: a name in :data:`ACTIVATIONS`.

    Raises:
        InputError: a size that is not positive, an unknown activation, or, when called, an input whose last
            dimensions are not ``in_shape``.

    Example:
        >>> import torch
        >>> from pyro_vae.models import MLP
        >>> net = MLP((28, 28), (20,), heads=2, hidden=(400,))
        >>> net(torch.zeros(5, 128, 28, 28)).shape
        torch.Size([5, 128, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        heads: int = 1,
        *,
        hidden: Sequence[int] = (400,),
        activation: str = "relu",
    ) -> None:
        super().__init__(in_shape, out_shape, heads)
        check_sizes("hidden", hidden)
        activate = lookup(ACTIVATIONS, activation, "activation")
        widths = (math.prod(in_shape), *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activate()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., *in_shape) to (..., heads, *out_shape)."""
        flat: Tensor = self.layers(x.flatten(self.leading(x)))
        heads: Tensor = flat.unflatten(-1, self.out_shape)
        return heads

    @torch.no_grad()
    def start_output(self, heads: Tensor) -> None:
        """Set the bias of the last layer to ``heads``, (heads, *out_shape)."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(heads.flatten())
