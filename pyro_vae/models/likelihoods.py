r"""Likelihoods p(x|z): maps from the heads of a decoder to a distribution of each pixel.

A likelihood defines its number of heads and maps them to a distribution of batch shape ``(..., *event_shape)``;
:class:`pyro_vae.VAE` applies ``.to_event``. Densities are normalised: no constant is dropped. A new family is one
class with one method, one row in :data:`LIKELIHOODS` and one row in the table of tests.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.statistics import bounded_below

MeanLink = Literal["identity", "sigmoid"]
LINKS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda mean: mean, "sigmoid": torch.sigmoid}


class Likelihood(nn.Module):
    """The interface of a likelihood: ``heads``, and a call on that many tensors of one shape."""

    heads: int

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution of each pixel; batch shape (..., *event_shape)."""
        raise TypeError(f"{type(self).__name__} does not define its distribution")


class Bernoulli(Likelihood):
    r"""Binary pixels: :math:`\log p(x|z) = \sum_d x_d \log \sigma(l_d) + (1 - x_d) \log \sigma(-l_d)`.

    The head is the logits l, real numbers. Grey levels have no probability under it: binarize them, or use a
    Gaussian.

    Example:
        >>> import torch
        >>> from pyro_vae.models import Bernoulli
        >>> Bernoulli()(torch.zeros(3, 8, 8)).mean[0, 0, 0]
        tensor(0.5000)
    """

    heads = 1

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return Bernoulli(logits)."""
        (logits,) = heads
        bernoulli: dist.TorchDistribution = dist.Bernoulli(logits=logits)
        return bernoulli


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

    def __init__(self, scale: float = 0.1, mean_link: MeanLink = "identity") -> None:
        super().__init__()
        self.scale = _positive("scale", scale)
        self.link = lookup(LINKS, mean_link, "mean_link")

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return Normal(link(head), scale)."""
        (mean,) = heads
        normal: dist.TorchDistribution = dist.Normal(self.link(mean), self.scale)
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


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "learned_gaussian": LearnedGaussian,
}
