"""A neural decoder of one or two latent dimensions, whose log p(x) is a numerical integral."""

from typing import cast

import torch
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.models.oracles.integration import log_evidence_by_quadrature
from pyro_vae.models.oracles.oracle import simulated
from pyro_vae.models.vae import VAE
from pyro_vae.program.protocol import Program


class NonlinearDecoder(nn.Module):
    r"""A VAE with one or two latent dimensions and a posterior that is not normal; log p(x) is a numerical integral.

    .. math:: \log p(x) = \log \int N(z; 0, I)\, p(x \mid \mathrm{decoder}(z))\, dz

    The guide is the VAE's, an amortised diagonal normal.

    Args:
        data_dim: D.
        latent_dim: Z, 1 or 2.
        hidden: units of the hidden layer of decoder and encoder.
        likelihood: a name in :data:`~pyro_vae.models.LIKELIHOODS` with arguments.
        gain: factor of the decoder's initial weights; larger gains give posteriors further from a normal.
        seed: seed of the initial parameters.

    Raises:
        InputError: another ``latent_dim``, or an argument that :class:`~pyro_vae.VAE` rejects.

    Example:
        >>> from pyro_vae.models.oracles import NonlinearDecoder
        >>> oracle = NonlinearDecoder(data_dim=4)
        >>> oracle.log_evidence(oracle.simulate(3)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 1,
        hidden: int = 16,
        likelihood: str = "gaussian:scale=0.5",
        gain: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if latent_dim not in (1, 2):
            raise InputError("a latent_dim of 1 or 2", latent_dim, "LinearGaussian, whose evidence has a closed form")
        self.event_shape = (data_dim,)
        with isolated_rng(torch.device("cpu"), seed):
            self.vae = VAE((data_dim,), latent_dim, (hidden,), likelihood, "tanh")
        with torch.no_grad():
            for parameter in self.vae.decoder.parameters():
                parameter.mul_(gain)
        self.double()

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) for a batch x, (B, D)."""
        self.vae.model(x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for a batch x, (B, D)."""
        self.vae.guide(x)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats, by :func:`log_evidence_by_quadrature`."""
        return log_evidence_by_quadrature(cast(Program, self), x)

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Return examples sampled from the model, (count, D)."""
        like = next(self.vae.parameters()).new_zeros(count, *self.event_shape)
        return simulated(self, like, seed)
