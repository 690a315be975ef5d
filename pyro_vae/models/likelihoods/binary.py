"""Likelihoods of binary pixels."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.likelihoods.likelihood import Likelihood

EDGE = 1e-3  # a pixel that is never, or always, on starts at this probability, or at one minus it


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
    measure = "mass"
    data = "0 and 1"

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return Bernoulli(logits)."""
        (logits,) = heads
        bernoulli: dist.TorchDistribution = dist.Bernoulli(logits=logits)
        return bernoulli

    def heads_of_mean(self, mean: Tensor) -> Tensor:
        """Return the logits of the mean, which is kept off 0 and 1."""
        return torch.logit(mean, eps=EDGE)[None]
