"""Normal variational families."""

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.posteriors.posterior import Posterior


class DiagonalNormal(Posterior):
    r"""The diagonal normal :math:`q(z|x) = N(z; \mu(x), \mathrm{diag}\,\sigma^2(x))`.

    The heads are the location μ and the log-scale log σ, each (..., Z). (AEVB's encoder returns
    :math:`\log \sigma^2`, twice our log σ.)

    Example:
        >>> import torch
        >>> from pyro_vae.models import DiagonalNormal
        >>> DiagonalNormal()(torch.zeros(5, 3), torch.zeros(5, 3)).batch_shape
        torch.Size([5])
    """

    heads = 2

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, log_scale = heads
        normal: dist.TorchDistribution = dist.Normal(loc, log_scale.exp()).to_event(1)
        return normal
