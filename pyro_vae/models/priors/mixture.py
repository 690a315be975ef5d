"""Mixtures as priors, and the distribution that they return."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from pyro_vae.base.errors import InputError
from pyro_vae.models.priors.prior import Encode, Prior
from pyro_vae.models.sizes import check_count

NUMBERS_AT_ONCE = 2**24  # values times components times latents whose densities are taken together
SAMPLES_AT_ONCE = 5000


class Mixture(dist.TorchDistribution):
    r"""A mixture of one batch of components, for values of any leading shape.

    .. math:: \log p(z) = \log \sum_c \pi_c\, p_c(z)

    torch's ``MixtureSameFamily`` expands its components to a batch of values, copies those that cannot be broadcast,
    samples all components for each value, and has a support that no transform is known for.

    Args:
        logits: log π up to a constant, (C,).
        components: of batch shape (C,), event shape (Z,).
        pick: numbers of components, (n,) -> these components, of batch shape (n,).
        batch_shape: of the mixture.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        logits: Tensor,
        components: dist.TorchDistribution,
        pick: Callable[[Tensor], dist.TorchDistribution],
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.log_weights = logits.log_softmax(-1)
        self.components, self.pick = components, pick
        super().__init__(torch.Size(batch_shape), components.event_shape)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint | None:
        """That of the components."""
        return self.components.support

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> "Mixture":
        """Return the mixture with another batch shape; the components stay as they are."""
        return Mixture(self.log_weights, self.components, self.pick, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z), of the leading shape of z; without a gradient to keep, in bounded memory.

        Raises:
            InputError: components that score their own samples alone.
        """
        if self._validate_args:
            self._validate_sample(value)
        count, size = len(self.log_weights), self.event_shape.numel()
        rows = value.reshape(-1, size).split(max(1, NUMBERS_AT_ONCE // (count * size)))
        found = [self._of_rows(part.unsqueeze(1).expand(-1, count, -1)) for part in rows]
        total = torch.cat(found).reshape(value.shape[:-1])
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def _of_rows(self, rows: Tensor) -> Tensor:
        try:
            each: Tensor = self.components.log_prob(rows)
        except (NotImplementedError, KeyError) as error:  # as torch and as Pyro say that there is no inverse
            raise InputError(
                "components whose density is available at any z, for a mixture of them as a prior",
                "a flow without an inverse",
                "posterior='iaf', or a prior that is not made of q(z|x)",
            ) from error
        return (each + self.log_weights).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return samples, (*sample_shape, *batch_shape, Z)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        which = Categorical(logits=self.log_weights).sample(torch.Size([shape.numel()]))
        found = [self.pick(part).sample() for part in which.split(SAMPLES_AT_ONCE)]
        return torch.cat(found).reshape(shape + self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Σ π E_c z, (*batch_shape, Z)."""
        mean = (self.log_weights.exp().unsqueeze(-1) * self.components.mean).sum(0)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Σ π (Var_c z + (E_c z − E z)²), (*batch_shape, Z)."""
        weights, means = self.log_weights.exp().unsqueeze(-1), self.components.mean
        squares = self.components.variance + (means - (weights * means).sum(0)).square()
        return (weights * squares).sum(0).expand(self.batch_shape + self.event_shape)


class NormalMixturePrior(Prior):
    r"""A mixture of diagonal normals whose weights, means and log-scales are learned.

    Formula: p(z) = Σ_c π_c Π_j N(z_j; m_cj, s_cj²)

    Weights start equal, scales at 1, means at samples of the standard normal.

    Source: Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, 2016,
    arXiv 1611.02648; Tomczak, Welling, VAE with a VampPrior, 2018, arXiv 1705.07120, section 4

    Args:
        latent_dim: Z.
        components: C.

    Raises:
        InputError: no components.

    Example:
        >>> import torch
        >>> from pyro_vae.models import NormalMixturePrior
        >>> NormalMixturePrior(3, components=5)().log_prob(torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        count = check_count("components", components, 10)
        self.logits = nn.Parameter(torch.zeros(count))
        self.loc = nn.Parameter(torch.randn(count, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(count, latent_dim))

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the mixture; event shape (Z,), on the module's device and in its dtype."""
        return Mixture(self.logits, self._normals(slice(None)), self._normals)

    def _normals(self, which: slice | Tensor) -> dist.TorchDistribution:
        normals: dist.TorchDistribution = dist.Normal(self.loc[which], self.log_scale[which].exp()).to_event(1)
        return normals
