"""Normal priors."""

import math
from collections.abc import Sequence

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.models.priors.prior import Encode, Prior


class StandardNormal(Prior):
    r"""The standard normal, of independent latents of mean 0 and variance 1.

    Formula: p(z) = Π_j N(z_j; 0, 1)

    Source: Kingma, Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114

    Args:
        latent_dim: Z.

    Example:
        >>> from pyro_vae.models import StandardNormal
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return N(0, I); event shape (Z,), on the module's device and in its dtype."""
        normal: dist.TorchDistribution = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return normal


class NormalPrior(Prior):
    r"""Independent normals of fixed means and standard deviations.

    Formula: p(z) = Π_j N(z_j; m_j, s_j²);  KL(q‖p) = Σ_j log(s_j/σ_j) + (σ_j² + (μ_j − m_j)²) / (2 s_j²) − ½

    ``scale`` is the standard deviation s. Where a paper writes N(1, 2) and means a variance of 2, that is
    ``normal:loc=1,scale=1.4142135623730951``; ``normal:loc=1,scale=2`` has the variance 4.

    For q = N(μ, σ²) in one dimension, :math:`E_q (z - \mu)^2 = \sigma^2` and
    :math:`E_q (z - m)^2 = \sigma^2 + (\mu - m)^2`, so that

    .. math::

        KL(q \| p)
        &= E_q \Big[ \log \frac{s}{\sigma} - \frac{(z - \mu)^2}{2 \sigma^2} + \frac{(z - m)^2}{2 s^2} \Big] \\
        &= \log \frac{s}{\sigma} + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \frac12

    which for m = 0, s = 1 is AEVB's appendix B.

    Source: Kingma, Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114, appendix B

    Args:
        latent_dim: Z.
        loc: m, a number, or one for each latent.
        scale: s, likewise; above 0.

    Raises:
        InputError: a mean that is not finite, a scale that is not finite and above 0, or another number than Z of them.

    Example:
        >>> from pyro_vae.models import NormalPrior
        >>> prior = NormalPrior(2, loc=[0, 1], scale=2)
        >>> prior().mean, prior().stddev
        (tensor([0., 1.]), tensor([2., 2.]))
    """

    like: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(
        self, latent_dim: int, loc: float | Sequence[float] = 0.0, scale: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)  # has the dtype of the module
        for name, value, least in (("loc", loc, -math.inf), ("scale", scale, 0.0)):
            self.register_buffer(name, _each(name, value, latent_dim, least), persistent=False)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the normals; event shape (Z,), on the module's device and in its dtype."""
        normal: dist.TorchDistribution = dist.Normal(self.loc.to(self.like), self.scale.to(self.like)).to_event(1)
        return normal


class LearnedNormal(Prior):
    r"""Independent normals whose means and log-scales are learned.

    Formula: p(z) = Π_j N(z_j; m_j, s_j²), m and log s parameters

    It starts as the standard normal.

    Source: standard

    Args:
        latent_dim: Z.

    Example:
        >>> from pyro_vae.models import LearnedNormal
        >>> LearnedNormal(3)().mean.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the normals; event shape (Z,), on the module's device and in its dtype."""
        normal: dist.TorchDistribution = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return normal


def _each(name: str, value: float | Sequence[float], latent_dim: int, least: float) -> Tensor:
    """Return one number for each latent, (Z,), float64; each finite and above ``least``."""
    found = [value] * latent_dim if isinstance(value, int | float) else value
    numbers = isinstance(found, Sequence) and all(isinstance(n, int | float) and least < n < math.inf for n in found)
    if not numbers or len(found) != latent_dim:
        above = " above 0" if least == 0 else ""
        expected = f"{name} as a finite number{above}, or one for each of {latent_dim} latents"
        raise InputError(expected, repr(value), f"{name}=1")
    return torch.tensor(found, dtype=torch.float64)
