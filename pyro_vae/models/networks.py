"""Networks: maps from one event shape to heads of another, with any leading dimensions."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_vae.base.errors import InputError, lookup

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def check_sizes(name: str, sizes: object) -> None:
    """Refuse what is no sequence of whole numbers above 0.

    Example:
        >>> check_sizes("sizes", 4)
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected sizes as a sequence of whole numbers above 0; got 4. Try sizes=(4,).
    """
    whole = isinstance(sizes, Sequence) and all(type(size) is int and size > 0 for size in sizes)
    if not whole:
        hint = f"{name}=({sizes},)" if type(sizes) is int and sizes > 0 else f"{name}=(400,)"
        raise InputError(f"{name} as a sequence of whole numbers above 0", repr(sizes), hint)


class MLP(nn.Module):
    """A multilayer perceptron (..., *in_shape) -> (..., heads, *out_shape).

    Each parameter of a distribution has a head: a diagonal normal has two (location and log-scale), a Bernoulli one
    (logits). Leading dimensions, (B,) or (K, B), are kept.

    Args:
        in_shape: event shape of the input.
        hidden: units of each hidden layer; empty for an affine map.
        out_shape: event shape of every head.
        heads: number of heads.
        activation: a name in :data:`ACTIVATIONS`.

    Raises:
        InputError: a size that is not positive, an unknown activation, or, when called, an input whose last
            dimensions are not ``in_shape``.

    Example:
        >>> import torch
        >>> from pyro_vae.models import MLP
        >>> net = MLP((28, 28), (400,), (20,), heads=2)
        >>> net(torch.zeros(5, 128, 28, 28)).shape
        torch.Size([5, 128, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        hidden: Sequence[int],
        out_shape: Sequence[int],
        heads: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for name, sizes in (("in_shape", in_shape), ("hidden", hidden), ("out_shape", out_shape), ("heads", (heads,))):
            check_sizes(name, sizes)
        self.in_shape = torch.Size(in_shape)
        self.out_shape = torch.Size((heads, *out_shape))
        activate = lookup(ACTIVATIONS, activation, "activation")
        widths = (math.prod(in_shape), *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activate()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., *in_shape) to (..., heads, *out_shape)."""
        leading = x.ndim - len(self.in_shape)
        if leading < 0 or x.shape[leading:] != self.in_shape:
            raise InputError(
                f"an input of shape (..., {', '.join(map(str, self.in_shape))})",
                tuple(x.shape),
                f"VAE(event_shape={tuple(x.shape[1:])}) if these are images",
            )
        flat: Tensor = self.layers(x.flatten(leading))
        heads: Tensor = flat.unflatten(-1, self.out_shape)
        return heads
