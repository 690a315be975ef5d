"""The variational autoencoder as a Pyro program: the model p(z)p(x|z) and the guide q(z|x)."""

from collections.abc import Sequence

import pyro
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.registry import built
from pyro_vae.models.assembly import check_examples, check_spaces, networks, start_output
from pyro_vae.models.catalogue import LIKELIHOODS, POSTERIORS, PRIORS
from pyro_vae.models.likelihoods import Likelihood
from pyro_vae.models.networks.network import check_sizes
from pyro_vae.models.posteriors import Posterior
from pyro_vae.models.priors import Prior


class VAE(nn.Module):
    r"""A variational autoencoder: a prior, a likelihood, a variational family and two networks.

    .. math::

        p(x, z) = p(z)\, p(x \mid \mathrm{decoder}(z)), \qquad q(z \mid x) = q(z; \mathrm{encoder}(x))

    Source: Kingma and Welling, `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_.

    Every part is a value, or text that names a row of its table with arguments.

    Args:
        event_shape: the shape of one example, such as (28, 28).
        latent_dim: Z, the length of the latent vector.
        hidden: units of the hidden layers of networks that have such, given to the encoder as they are and to the
            decoder in reverse order; [400] by default.
        likelihood: a :class:`~pyro_vae.models.Likelihood`, or a name of
            :data:`~pyro_vae.models.LIKELIHOODS`, such as ``"gaussian:scale=0.1"``.
        activation: of the networks, a name in :data:`~pyro_vae.models.ACTIVATIONS`.
        prior: a module that, called without arguments, returns p(z), event shape (Z,); or a name of
            :data:`~pyro_vae.models.PRIORS`.
        posterior: a :class:`~pyro_vae.models.Posterior`, called on its ``heads`` tensors (B, Z), or a name of
            :data:`~pyro_vae.models.POSTERIORS`.
        encoder: a module (..., *event_shape) -> (..., posterior.heads, Z), or a name of
            :data:`~pyro_vae.models.NETWORKS`.
        decoder: a module (..., Z) -> (..., likelihood.heads, *event_shape), or a name as for ``encoder``.

    Raises:
        InputError: sizes that are not positive whole numbers, unknown names, ``hidden`` or ``activation`` beside
            networks that do not take them, a prior and a posterior of latents in different spaces.

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
        hidden: Sequence[int] | None = None,
        likelihood: str | Likelihood = "bernoulli",
        activation: str | None = None,
        *,
        prior: str | nn.Module = "standard_normal",
        posterior: str | Posterior = "diagonal_normal",
        encoder: str | nn.Module = "mlp",
        decoder: str | nn.Module = "mlp",
    ) -> None:
        super().__init__()
        if type(latent_dim) is not int or latent_dim < 1:
            raise InputError("a latent_dim that is a whole number of at least 1", repr(latent_dim), "latent_dim=20")
        check_sizes("event_shape", event_shape)
        sizes = {"event_shape": tuple(event_shape), "latent_dim": latent_dim}
        self.event_shape = tuple(event_shape)
        self.likelihood = built(LIKELIHOODS, likelihood, "likelihood", sizes)
        self.posterior = built(POSTERIORS, posterior, "posterior", sizes)
        self.prior = built(PRIORS, prior, "prior", sizes)
        check_spaces(self.prior, self.posterior)
        self.encoder, self.decoder = networks(
            (encoder, event_shape, (latent_dim,), self.posterior.heads),
            (decoder, (latent_dim,), event_shape, self.likelihood.heads),
            hidden,
            activation,
        )

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) for a batch x of shape (B, *event_shape)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        pyro.module("likelihood", self.likelihood)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for a batch x of shape (B, *event_shape)."""
        pyro.module("encoder", self.encoder)
        pyro.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def p_z(self) -> dist.TorchDistribution:
        """Return p(z): batch shape (), event shape (Z,)."""
        encoded = getattr(self.prior, "encoded", False)
        p_z: dist.TorchDistribution = self.prior(self.encode) if encoded else self.prior()
        return p_z

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x): batch shape (...), event shape (Z,), for x of shape (..., *event_shape)."""
        posterior: dist.TorchDistribution = self.posterior(*self.encoder(x).unbind(-2))
        return posterior

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z): batch shape (...), event shape ``event_shape``, for z of shape (..., Z)."""
        pixels = self.likelihood(*self.decoder(z).unbind(-1 - len(self.event_shape)))
        image: dist.TorchDistribution = pixels.to_event(len(self.event_shape) - len(pixels.event_shape))
        return image

    def start_from(self, x: Tensor, *, output_bias: bool = True) -> None:
        """Set initial parameters from training examples: pseudo-inputs of the prior, and the decoder's output bias.

        Args:
            x: examples, (N, *event_shape), on the device of the parameters, as batches have them.
            output_bias: whether the decoder's output starts at the likelihood's heads of the examples' mean, as in
                Burda et al., `Importance Weighted Autoencoders <https://arxiv.org/abs/1509.00519>`_.

        Raises:
            InputError: a likelihood or a decoder that does not say how its output is started.

        Example:
            >>> import torch
            >>> from pyro_vae import VAE
            >>> vae = VAE((4,), latent_dim=2)
            >>> vae.start_from(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]))
            >>> vae.decoder.layers[-1].bias
            Parameter containing:
            tensor([-6.9068,  0.0000,  0.0000,  6.9068], requires_grad=True)
        """
        check_examples(x, self.event_shape)
        if isinstance(self.prior, Prior):
            self.prior.start_from(x)
        if output_bias:
            start_output(self.decoder, self.likelihood.heads_of_mean(x.mean(0)))
