"""The interface of a variational family."""

from pyro import distributions as dist
from torch import Tensor, nn


class Posterior(nn.Module):
    """The interface of a variational family: ``heads``, and a call on that many tensors (..., Z)."""

    heads: int

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return q(z|x); batch shape (...), event shape (Z,)."""
        raise TypeError(f"{type(self).__name__} does not define its distribution")
