"""The linear VAE, whose log p(x) has a closed form."""

import math
from typing import Self

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.models.oracles.oracle import Guide, is_amortised, simulated


class LinearNormal(nn.Module):
    r"""The conditional distribution :math:`N(Ax + b, \mathrm{diag}\, s^2)` of a vector given x.

    Args:
        in_dim: length of x.
        out_dim: length of the vector.
        isotropic: one s for all dimensions, not one for each.
    """

    def __init__(self, in_dim: int, out_dim: int, isotropic: bool) -> None:
        super().__init__()
        self.mean = nn.Linear(in_dim, out_dim)
        self.log_scale = nn.Parameter(torch.zeros(() if isotropic else (out_dim,)))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return the distribution: batch shape (...), event shape (out_dim,), for x (..., in_dim)."""
        normal: dist.TorchDistribution = dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)
        return normal


class LinearGaussian(nn.Module):
    r"""The linear VAE, which is probabilistic principal component analysis.

    .. math::

        z \sim N(0, I), \quad x = W z + \mu + \sigma \varepsilon, \quad \varepsilon \sim N(0, I)

        p(x) = N(\mu, W W^\top + \sigma^2 I), \quad
        p(z|x) = N(M^{-1} W^\top (x - \mu),\ \sigma^2 M^{-1}), \quad M = W^\top W + \sigma^2 I

    The guide ``encoder`` is :math:`N(Vx + b, \mathrm{diag}\, s^2)`, trainable: it can match the posterior's mean, and
    its covariance only if the columns of W are orthogonal. The guide ``posterior`` is p(z|x): then log w = log p(x)
    for every z.

    Sources: Tipping and Bishop, Probabilistic principal component analysis, 1999; Lucas, Tucker, Grosse and Norouzi,
    `Don't Blame the ELBO! <https://arxiv.org/abs/1911.02469>`_.

    Args:
        data_dim: D.
        latent_dim: Z.
        guide: ``encoder`` or ``posterior``.
        seed: seed of the initial parameters.

    Raises:
        InputError: an unknown guide.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian
        >>> oracle = LinearGaussian(data_dim=6, latent_dim=2)
        >>> oracle.log_evidence(oracle.simulate(10)).shape
        torch.Size([10])
    """

    def __init__(self, data_dim: int, latent_dim: int, guide: Guide = "encoder", seed: int = 0) -> None:
        super().__init__()
        self.event_shape = (data_dim,)
        self.latent_dim = latent_dim
        with isolated_rng(torch.device("cpu"), seed):
            self.decoder = LinearNormal(latent_dim, data_dim, isotropic=True)
            self.encoder = LinearNormal(data_dim, latent_dim, isotropic=False) if is_amortised(guide) else None
        self.double()

    @classmethod
    def of(cls, weight: Tensor, mean: Tensor, scale: float, guide: Guide = "encoder") -> Self:
        r"""Return the model with given W (D, Z), μ (D,) and σ, and the diagonal encoder of greatest ELBO.

        The encoder has the posterior's mean and :math:`s_j^2 = \sigma^2 / M_{jj}`; :meth:`gap` is log p(x) − ELBO.

        Example:
            >>> import torch
            >>> from pyro_vae.models.oracles import LinearGaussian
            >>> oracle = LinearGaussian.of(torch.eye(3)[:, :2], torch.zeros(3), scale=0.5)
            >>> round(oracle.log_evidence(torch.zeros(1, 3, dtype=torch.float64)).item(), 6)
            -2.286812
        """
        oracle = cls(weight.shape[0], weight.shape[1], guide).to(weight.device)
        with torch.no_grad():
            oracle.decoder.mean.weight.copy_(weight)
            oracle.decoder.mean.bias.copy_(mean)
            oracle.decoder.log_scale.fill_(math.log(scale))
            if oracle.encoder is not None:
                gain = torch.linalg.solve(oracle.inner, oracle.weight.mT)
                oracle.encoder.mean.weight.copy_(gain)
                oracle.encoder.mean.bias.copy_(-gain @ oracle.mean)
                oracle.encoder.log_scale.copy_(0.5 * (oracle.variance / oracle.inner.diagonal()).log())
        return oracle

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent_dim: int, guide: Guide = "encoder") -> Self:
        r"""Return the maximum-likelihood model of data x, (N, D) (Tipping and Bishop, 1999).

        With eigenvalues λ, largest first, and eigenvectors U of the data's covariance (divided by N, not N − 1),

        .. math::

            \sigma^2 = \frac{1}{D - Z} \sum_{j > Z} \lambda_j, \qquad W = U_Z (\Lambda_Z - \sigma^2 I)^{1/2} .

        The columns of W are orthogonal, so the encoder equals the posterior.

        Raises:
            InputError: data that is not (N, D) with D above ``latent_dim``, or without variance outside Z dimensions.
        """
        if x.dim() != 2 or x.shape[1] <= latent_dim:
            raise InputError(f"data (N, D) with D above {latent_dim}", tuple(x.shape), "a smaller latent_dim")
        covariance = torch.cov(x.double().mT, correction=0)
        values, vectors = torch.linalg.eigh(covariance)  # smallest first
        variance = values[:-latent_dim].mean()
        if variance <= 1e-12 * values[-1]:
            raise InputError(f"data with noise in more than {latent_dim} dimensions", "none", "a smaller latent_dim")
        weight = vectors[:, -latent_dim:] * (values[-latent_dim:] - variance).sqrt()
        return cls.of(weight.flip(1), x.double().mean(0), variance.sqrt().item(), guide)

    @property
    def weight(self) -> Tensor:
        """W, (D, Z)."""
        return self.decoder.mean.weight

    @property
    def mean(self) -> Tensor:
        """μ, (D,)."""
        return self.decoder.mean.bias

    @property
    def variance(self) -> Tensor:
        """σ², a scalar."""
        return (2 * self.decoder.log_scale).exp()

    @property
    def inner(self) -> Tensor:
        """M = WᵀW + σ²I, (Z, Z)."""
        identity = torch.eye(self.latent_dim, dtype=self.weight.dtype, device=self.weight.device)
        return self.weight.mT @ self.weight + self.variance * identity

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) for a batch x, (B, D)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mean.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for a batch x, (B, D)."""
        if self.encoder is not None:
            pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x) if self.encoder is None else self.encoder(x))

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Return p(z|x): batch shape (B,), event shape (Z,)."""
        mean = torch.linalg.solve(self.inner, (x - self.mean) @ self.weight, left=False)
        return dist.MultivariateNormal(mean, precision_matrix=self.inner / self.variance)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats."""
        noise = self.variance.expand(len(self.mean))
        evidence: Tensor = LowRankMultivariateNormal(self.mean, self.weight, noise).log_prob(x)
        return evidence

    def gap(self) -> Tensor:
        r"""Return log p(x) − ELBO of the best diagonal guide: the limit of the variational family, equal for every x.

        .. math:: \tfrac12 \Big( \sum_j \log M_{jj} - \log |M| \Big) \ge 0

        Example:
            >>> import torch
            >>> from pyro_vae.models.oracles import LinearGaussian
            >>> round(LinearGaussian.of(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.zeros(2), 1.0).gap().item(), 6)
            0.091161
        """
        return 0.5 * (self.inner.diagonal().log().sum() - torch.logdet(self.inner))

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Return examples sampled from the model, (count, D)."""
        return simulated(self, self.mean.new_zeros(count, *self.event_shape), seed)
