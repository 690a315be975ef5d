"""Gaussian likelihoods of real-valued pixels."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.statistics import bounded_below
from pyro_vae.models.likelihoods.likelihood import Likelihood

MeanLink = Literal["identity", "sigmoid"]
LINKS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda mean: mean, "sigmoid": torch.sigmoid}


class Gaussian(Likelihood):
    r"""Real-valued pixels of fixed scale: :math:`N(x_d; \mu_d, \sigma^2)`, one σ for all pixels.

    Args:
        scale: σ in the unit of the data (images: 1.0 is white); positive.
        mean_link: ``identity``, or ``sigmoid`` for means in (0, 1), as in AEVB for Frey Face.

    Raises:
        InputError: a scale that is not positive, or an unknown link.

    Example:
        >>> import torch
        >>> from pyro_vae.models import Gaussian
        >>> Gaussian(scale=0.1)(torch.zeros(2)).log_prob(torch.zeros(2))
        tensor([1.3836, 1.3836])
    """

    heads = 1
    scale: Tensor

    def __init__(self, scale: float = 0.1, mean_link: MeanLink = "identity") -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(_positive("scale", scale), dtype=torch.float64), persistent=False)
        self.link = lookup(LINKS, mean_link, "mean_link")

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return Normal(link(head), scale)."""
        (mean,) = heads
        normal: dist.TorchDistribution = dist.Normal(self.link(mean), self.scale.to(mean))
        return normal


class LearnedGaussian(Likelihood):
    r"""Real-valued pixels with a learned scale for each pixel: :math:`N(x_d; \mu_d, \sigma_d^2)`.

    The heads are the mean and the log-scale (AEVB, appendix C.2, whose decoder returns :math:`\log \sigma^2`). Where
    a pixel is constant the likelihood is unbounded as σ → 0, so σ stays above a floor f,
    :math:`\log \sigma = \log f + \mathrm{softplus}(s - \log f)`. Compare likelihoods at equal floors only.

    Args:
        min_scale: the floor of σ in the unit of the data; the default is about half a grey level of 255.
        mean_link: as for :class:`Gaussian`.

    Raises:
        InputError: a floor that is not positive, or an unknown link.

    Example:
        >>> import torch
        >>> from pyro_vae.models import LearnedGaussian
        >>> LearnedGaussian(min_scale=0.01)(torch.zeros(1), torch.full((1,), -99.0)).stddev
        tensor([0.0100])
    """

    heads = 2

    def __init__(self, min_scale: float = 0.002, mean_link: MeanLink = "identity") -> None:
        super().__init__()
        self.min_scale = _positive("min_scale", min_scale)
        self.link = lookup(LINKS, mean_link, "mean_link")

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return Normal(link(first head), bounded exp(second head))."""
        mean, log_scale = heads
        scale = bounded_below(log_scale, self.min_scale).exp()
        normal: dist.TorchDistribution = dist.Normal(self.link(mean), scale)
        return normal


def _positive(name: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"a finite {name} above 0", repr(value), f"{name}=0.1")
    return float(value)
