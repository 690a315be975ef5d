"""The variational autoencoder as a Pyro program: the model p(z)p(x|z) and the guide q(z|x)."""

from collections.abc import Sequence

import pyro
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.registry import from_spec
from pyro_vae.models.likelihoods import LIKELIHOODS, Likelihood
from pyro_vae.models.networks import MLP, check_sizes
from pyro_vae.models.posteriors import DiagonalNormal, Posterior
from pyro_vae.models.priors import StandardNormal


class VAE(nn.Module):
    r"""A variational autoencoder: a prior, a likelihood, a variational family and two networks.

    .. math::

        p(x, z) = p(z)\, p(x \mid \mathrm{decoder}(z)), \qquad q(z \mid x) = q(z; \mathrm{encoder}(x))

    Source: Kingma and Welling, `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_.

    Args:
        event_shape: the shape of one example, such as (28, 28).
        latent_dim: Z, the length of the latent vector.
        hidden: units of the default encoder's hidden layers, and in reverse order of the default decoder's.
        likelihood: a :class:`~pyro_vae.models.Likelihood`, or a name of
            :data:`~pyro_vae.models.LIKELIHOODS` with arguments, such as ``"gaussian:scale=0.1"``.
        activation: activation of the default networks, a name in :data:`~pyro_vae.models.ACTIVATIONS`.
        prior: a module that, called without arguments, returns p(z), event shape (Z,). Default: standard normal.
        posterior: called on its ``heads`` tensors (B, Z), returns q(z|x), event shape (Z,).
            Default: diagonal normal.
        encoder: (..., *event_shape) -> (..., posterior.heads, Z).
            Default: an :class:`~pyro_vae.models.MLP`.
        decoder: (..., Z) -> (..., likelihood.heads, *event_shape). Default: an MLP.

    Raises:
        InputError: sizes that are not positive whole numbers, unknown names.

    Example:
        >>> import pyro
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_vae import VAE
        >>> vae = VAE(event_shape=(8, 8), latent_dim=2, hidden=(32,))
        >>> x = torch.bernoulli(torch.full((10, 8, 8), 0.5))
        >>> with pyro.get_param_store().scope():
        ...     svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())
        ...     svi.step(x) > 0
        True
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        hidden: Sequence[int] = (400,),
        likelihood: str | Likelihood = "bernoulli",
        activation: str = "relu",
        *,
        prior: nn.Module | None = None,
        posterior: Posterior | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if type(latent_dim) is not int or latent_dim < 1:
            raise InputError("a latent_dim that is a whole number of at least 1", repr(latent_dim), "latent_dim=20")
        check_sizes("event_shape", event_shape)
        check_sizes("hidden", hidden)
        if isinstance(likelihood, str):
            likelihood = from_spec(LIKELIHOODS, likelihood, "likelihood")
        posterior = posterior or DiagonalNormal()
        self.event_shape = tuple(event_shape)
        self.likelihood = likelihood
        self.posterior = posterior
        self.prior = prior or StandardNormal(latent_dim)
        self.encoder = encoder or MLP(event_shape, hidden, (latent_dim,), posterior.heads, activation)
        self.decoder = decoder or MLP((latent_dim,), hidden[::-1], event_shape, likelihood.heads, activation)

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) for a batch x of shape (B, *event_shape)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        pyro.module("likelihood", self.likelihood)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for a batch x of shape (B, *event_shape)."""
        pyro.module("encoder", self.encoder)
        pyro.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x): batch shape (...), event shape (Z,), for x of shape (..., *event_shape)."""
        posterior: dist.TorchDistribution = self.posterior(*self.encoder(x).unbind(-2))
        return posterior

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z): batch shape (...), event shape ``event_shape``, for z of shape (..., Z)."""
        pixels = self.likelihood(*self.decoder(z).unbind(-1 - len(self.event_shape)))
        image: dist.TorchDistribution = pixels.to_event(len(self.event_shape) - len(pixels.event_shape))
        return image
