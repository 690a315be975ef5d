"""What flows of priors and posteriors share: an affine autoregressive transform, and the orders of its variables."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Transform

Affine: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> shift m and log-scale log s of every variable, each a function of those before it in an order."""

MOST = 5.0  # the largest log-scale of a layer of a prior: e⁵ is 148


class Autoregressive(Transform):
    r"""y = m(x) + s(x) x, where m and s of a variable depend on the variables before it in an order.

    .. math:: \log \Big| \frac{dy}{dx} \Big| = \sum_j \log s_j(x)

    One pass of the network from x to y; Z passes from y to x, one variable at a time. The last pair is kept, so that a
    sample is scored without an inverse. Pyro's ``AffineAutoregressive`` is the same map. Its inverse reads the order
    from a tensor, which a traced graph cannot, and starts in single precision; where it clamps the log-scale, its
    gradient is not that of its value.

    Args:
        affine: the network.
        order: the variables, first to last.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, affine: Affine, order: Sequence[int]) -> None:
        super().__init__(cache_size=1)
        self.affine, self.order = affine, order
        self._scaled: tuple[Tensor, Tensor] | None = None  # x, and its log-scales

    def _call(self, x: Tensor) -> Tensor:
        shift, log_scale = self.affine(x)
        self._scaled = x, log_scale
        return shift + log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        columns = list(torch.zeros_like(y).unbind(-1))
        for j in self.order:
            shift, log_scale = self.affine(torch.stack(columns, -1))
            columns[j] = (y[..., j] - shift[..., j]) * (-log_scale[..., j]).exp()
        x = torch.stack(columns, -1)
        self._scaled = x, log_scale  # the last variable does not change it
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the log-scales at x."""
        if self._scaled is None or self._scaled[0] is not x:
            self._scaled = x, self.affine(x)[1]
        return self._scaled[1].sum(-1)


def order_of(layer: int, latent_dim: int) -> list[int]:
    """Return the order of the variables in a layer: forwards and backwards in turn.

    It is a function of the size, so that a loaded program has the order of the saved one.

    Example:
        >>> order_of(0, 3), order_of(1, 3)
        ([0, 1, 2], [2, 1, 0])
    """
    forwards = list(range(latent_dim))
    return forwards[::-1] if layer % 2 else forwards


def bounded(log_scale: Tensor) -> Tensor:
    """Return log-scales between −5 and 5, by tanh."""
    return MOST * torch.tanh(log_scale / MOST)


@torch.no_grad()
def start_at_identity(layers: nn.ModuleList) -> None:
    """Set the last layer of a network to 0: shift and log-scale start at 0."""
    for parameter in layers[-1].parameters():
        parameter.zero_()
