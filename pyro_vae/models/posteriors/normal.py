"""Normal variational families."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.posteriors.posterior import Posterior
from pyro_vae.models.sizes import check_count


class DiagonalNormal(Posterior):
    r"""A normal with a diagonal covariance.

    Formula: q(z|x) = Π_j N(z_j; μ_j, σ_j²)

    .. math:: q(z|x) = N(z; \mu(x), \mathrm{diag}\,\sigma^2(x))

    The heads are the location μ and the log-scale log σ, each (..., Z). (AEVB's encoder returns
    :math:`\log \sigma^2`, twice our log σ.)

    Source: Kingma, Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114

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


class FullNormal(Posterior):
    r"""A normal with a full covariance.

    Formula: q(z|x) = N(z; μ, L Lᵀ),  L = diag(σ) (I + A), A strictly lower triangular

    The heads are the location μ and the rows of a matrix of Z × Z, 1 + Z tensors (..., Z): its diagonal is log σ, what
    is below is A, what is above is not used. The diagonal of L is σ = exp(log σ), so that L is a Cholesky factor; A is
    in units of σ, so that the correlations do not depend on the scales.

    Source: Kingma, Welling, An Introduction to Variational Autoencoders, 2019, arXiv 1906.02691, section 2.5.1

    Args:
        latent_dim: Z.

    Example:
        >>> import torch
        >>> from pyro_vae.models import FullNormal
        >>> family = FullNormal(3)
        >>> family.heads, family(*torch.zeros(4, 5, 3).unbind()).covariance_matrix.shape
        (4, torch.Size([5, 3, 3]))
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.heads = 1 + latent_dim

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, *rows = heads
        matrix = torch.stack(rows, -2)
        scale = matrix.diagonal(dim1=-2, dim2=-1).exp()
        unit = matrix.tril(-1) + torch.eye(len(rows), dtype=loc.dtype, device=loc.device)
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit)


class LowRankNormal(Posterior):
    r"""A normal whose covariance is a diagonal plus a matrix of low rank.

    Formula: q(z|x) = N(z; μ, diag(σ) (I + V Vᵀ) diag(σ)), V of Z × rank

    The heads are the location μ, the log-scale log σ and the columns of V, 2 + rank tensors (..., Z). V is in units of
    σ. A density costs Z rank², against Z² of :class:`FullNormal`.

    Source: Ong, Nott, Smith, Gaussian Variational Approximation with a Factor Covariance Structure, 2018, arXiv
    1701.03208

    Args:
        rank: the number of columns of V.

    Raises:
        InputError: a rank below 1.

    Example:
        >>> import torch
        >>> from pyro_vae.models import LowRankNormal
        >>> family = LowRankNormal(rank=2)
        >>> family.heads, family(*torch.zeros(4, 5, 3).unbind()).covariance_matrix.shape
        (4, torch.Size([5, 3, 3]))
    """

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.heads = 2 + check_count("rank", rank, 2)

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, log_scale, *columns = heads
        scale = log_scale.exp()
        factor = scale.unsqueeze(-1) * torch.stack(columns, -1)
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())
