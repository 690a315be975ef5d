"""The interface of a network, and what all networks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.base.errors import InputError

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


class Network(nn.Module):
    """A map (..., *in_shape) -> (..., heads, *out_shape) that keeps all leading dimensions, (B,) or (K, B).

    Any module with such a map can be an encoder or a decoder; this class checks the shape of what comes in, and says
    how the output is started.

    Args:
        in_shape: event shape of the input.
        out_shape: event shape of every head.
        heads: number of heads: one for each parameter of a distribution.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], heads: int) -> None:
        super().__init__()
        for name, sizes in (("in_shape", in_shape), ("out_shape", out_shape), ("heads", (heads,))):
            check_sizes(name, sizes)
        self.in_shape = torch.Size(in_shape)
        self.out_shape = torch.Size((heads, *out_shape))

    def leading(self, x: Tensor) -> int:
        """Return the number of leading dimensions of an input.

        Raises:
            InputError: its last dimensions are not ``in_shape``.
        """
        leading = x.ndim - len(self.in_shape)
        if leading < 0 or x.shape[leading:] != self.in_shape:
            raise InputError(
                f"an input of shape (..., {', '.join(map(str, self.in_shape))})",
                tuple(x.shape),
                f"VAE(event_shape={tuple(x.shape[1:])}) if these are images",
            )
        return leading

    def start_output(self, heads: Tensor) -> None:
        """Set the bias of the last layer, so that the output starts about ``heads``, (heads, *out_shape)."""
        raise TypeError(f"{type(self).__name__} does not say how its output is started")
