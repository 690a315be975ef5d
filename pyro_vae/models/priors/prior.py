"""The interface of a prior."""

from collections.abc import Callable
from typing import ClassVar, TypeAlias

from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.models.sphere import Space

Encode: TypeAlias = Callable[[Tensor], dist.TorchDistribution]
"""x of shape (..., \\*event_shape) -> q(z|x) of batch shape (...)."""


class Prior(nn.Module):
    """A prior p(z): called, it returns the distribution of one latent vector, batch shape (), event shape (Z,).

    Any module that returns one when called without arguments is a prior. This class adds two ways to depend on more.

    Attributes:
        encoded: whether p(z) is made of the program's own q(z|x): ``forward`` then gets ``encode``.
        space: where its latents live, as a posterior's; None: where those of the posterior live.
    """

    encoded: ClassVar[bool] = False
    space: ClassVar[Space | None] = "real"

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return p(z), on the module's device and in its dtype."""
        raise TypeError(f"{type(self).__name__} does not define its distribution")

    def start_from(self, x: Tensor) -> None:
        """Set initial parameters from training examples x, (N, *event_shape); most priors have none to set."""
