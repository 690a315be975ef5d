r"""A careful hand-written training loop: two networks, one formula, one fused optimiser, no Pyro.

For noise ε ~ N(0, I) of K particles, with the encoder's μ and log σ and the decoder's logits l,

.. math::

    z = \mu + \sigma \varepsilon, \qquad
    \log w = \sum_d \left( x_d l_d - \mathrm{softplus}(l_d) \right)
        + \sum_j \left( \log \sigma_j + (\varepsilon_j^2 - z_j^2) / 2 \right)

is log p(x|z) + log p(z) − log q(z|x); the log 2π of p(z) and q(z|x) cancel. The loss is minus the sum over the batch of
:math:`\log \frac1K \sum_k w_k`. For K = 1 this is the ELBO with a sampled KL, as in ``Trace_ELBO``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.models.vae import VAE
from pyro_vae.studies.benchmark.sizes import Size
from pyro_vae.studies.benchmark.variant import Variant, layers_of


class ByHand(Variant):
    """The hand-written loop, eager."""

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.encoder, self.decoder = layers_of(vae.encoder), layers_of(vae.decoder)
        self.optimizer = torch.optim.Adam(vae.parameters(), fused=True)
        self.loss: Callable[[Tensor], Tensor] = self.loss_given

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps; read the loss after the last one only."""
        shape = (self.size.num_particles, len(self.x), self.size.latent_dim)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss(torch.randn(shape, device=self.x.device))
            loss.backward()
            self.optimizer.step()
        return loss.item() / len(self.x)

    def loss_given(self, noise: Tensor) -> Tensor:
        """Return the loss of the batch given the noise, (K, B, Z)."""
        loc, log_scale = self.encoder(self.x).chunk(2, -1)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z.flatten(0, 1)).view(len(noise), *self.x.shape)
        x = self.x.expand_as(logits)
        log_px_z = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(2).sum(-1)
        return self.bound(log_px_z - self.sampled_kl(loc, log_scale, noise, z)).neg().sum()

    def sampled_kl(self, loc: Tensor, log_scale: Tensor, noise: Tensor, z: Tensor) -> Tensor:
        """Return log q(z|x) - log p(z), (K, B)."""
        return (0.5 * (z.square() - noise.square()) - log_scale).sum(-1)

    def bound(self, log_w: Tensor) -> Tensor:
        """Return the bound of each example, (B,), from log weights (K, B)."""
        return log_w[0] if len(log_w) == 1 else log_w.logsumexp(0) - math.log(len(log_w))


class ByHandCompiled(ByHand):
    """The hand-written loop with its loss, forward and backward, under ``torch.compile``.

    On CUDA the mode is ``reduce-overhead``, which records CUDA graphs, because kernel launches dominate there.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.loss = torch.compile(self.loss_given, dynamic=False, mode="reduce-overhead" if x.is_cuda else None)
