r"""The hand-written ELBO of a diagonal-normal guide and a standard normal prior, and its gradient by hand.

Plain torch on plain tensors, any device, any floating dtype; no Pyro, no program, no autograd needed: the
independent witness against which Pyro's ELBO is checked. AEVB's two estimators stand here side by side
(Kingma and Welling, arXiv 1312.6114, equations 6 and 7):

.. math::

    \text{SGVB-A (sampled)}: \quad &\frac1K \sum_k \log p(x|z_k) + \log p(z_k) - \log q(z_k|x) \\
    \text{SGVB-B (closed)}:  \quad &\frac1K \sum_k \log p(x|z_k) - \mathrm{KL}(q(z|x) \,\|\, p(z))

Shapes: data x (B, D); location and log-scale of q (B, Z); noise ε ~ N(0, I) and z = μ + σε, both (K, B, Z); the
decoder's heads at z (K, B, D). Values are in nats per example, normalised: no constant is dropped.

The gradients are total derivatives in μ and log σ: both move z, and z moves the decoder. What the decoder
contributes is handed in as ``grad_z``, the gradient of the mean over particles of log p(x|z) in z, so that any decoder
can be chained in front; zero leaves the partial derivatives.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def reparameterize(loc: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
    r"""Z = μ + σ ε, (K, B, Z)."""
    return loc + log_scale.exp() * noise


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    r""":math:`\log p(x|z) = \sum_d x_d l_d - \log(1 + e^{l_d})`, (K, B), for x in {0, 1} and logits l."""
    return (x * logits - F.softplus(logits)).sum(-1)


def log_gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    r""":math:`\log N(x; \mu, \sigma^2) = \sum_d -\tfrac12 \log 2\pi - \log\sigma_d - (x_d-\mu_d)^2 / 2\sigma_d^2`.

    Serves p(x|z), (K, B), and log q(z|x) alike; ``log_scale`` broadcasts against x.
    """
    standardized = (x - mean) * (-log_scale).exp()
    return (-HALF_LOG_2PI - log_scale - 0.5 * standardized**2).sum(-1)


def log_standard_normal(z: Tensor) -> Tensor:
    r""":math:`\log p(z) = \sum_j -\tfrac12 \log 2\pi - z_j^2/2`, (K, B)."""
    return (-HALF_LOG_2PI - 0.5 * z**2).sum(-1)


def kl_to_standard_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(q\|p) = \tfrac12 \sum_j \mu_j^2 + \sigma_j^2 - 1 - 2\log\sigma_j \ge 0`, (B,).

    Source: AEVB, appendix B (where the negative KL is printed).

    Example:
        >>> kl_to_standard_normal(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2))
        tensor([2.])
    """
    return 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)


def elbo_sampled(log_px_z: Tensor, z: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """SGVB-A, every term by the sample, (B,), from log p(x|z) (K, B)."""
    return (log_px_z + log_standard_normal(z) - log_gaussian(z, loc, log_scale)).mean(0)


def elbo_closed(log_px_z: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """SGVB-B, the KL in closed form, (B,), from log p(x|z) (K, B)."""
    return log_px_z.mean(0) - kl_to_standard_normal(loc, log_scale)


def grad_log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    r""":math:`\partial \log p(x|z) / \partial l_d = x_d - \sigma(l_d)`, (K, B, D)."""
    return x - torch.sigmoid(logits)


def grad_log_gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\partial_\mu = (x-\mu)/\sigma^2` and :math:`\partial_{\log\sigma} = (x-\mu)^2/\sigma^2 - 1`."""
    precision = (-2 * log_scale).exp()
    residual = x - mean
    return residual * precision, residual**2 * precision - 1


def grad_elbo_closed(loc: Tensor, log_scale: Tensor, noise: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradient of the sum of :func:`elbo_closed` over the batch in μ and log σ, each (B, Z).

    .. math::

        \partial_\mu &= -\mu + \sum_k g_k \\
        \partial_{\log\sigma} &= 1 - \sigma^2 + \sum_k g_k\, \sigma\, \varepsilon_k

    Args:
        loc: μ, (B, Z).
        log_scale: log σ, (B, Z).
        noise: ε, (K, B, Z).
        grad_z: g, the gradient in z of the mean over particles of log p(x|z), (K, B, Z).
    """
    scale = log_scale.exp()
    grad_loc = -loc + grad_z.sum(0)
    grad_log_scale = 1 - scale**2 + (grad_z * scale * noise).sum(0)
    return grad_loc, grad_log_scale


def grad_elbo_sampled(loc: Tensor, log_scale: Tensor, noise: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradient of the sum of :func:`elbo_sampled` over the batch in μ and log σ, each (B, Z).

    With z = μ + σε, log q(z|x) = −½ε² − log σ + const does not depend on μ, and log p(z) = −½z² + const:

    .. math::

        \partial_\mu &= \sum_k g_k - \frac1K \sum_k z_k \\
        \partial_{\log\sigma} &= 1 + \sum_k \left(g_k - \frac{z_k}{K}\right) \sigma\, \varepsilon_k

    Arguments as for :func:`grad_elbo_closed`.
    """
    z = reparameterize(loc, log_scale, noise)
    total = grad_z - z / len(z)
    return total.sum(0), 1 + (total * log_scale.exp() * noise).sum(0)
