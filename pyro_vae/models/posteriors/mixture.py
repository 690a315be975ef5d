"""Variational families with several modes."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Categorical, Distribution

from pyro_vae.models.posteriors.posterior import Posterior
from pyro_vae.models.sizes import check_count

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
FAR = 1e3  # standard deviations, where a normal is 0 in both precisions


class NormalMixture(Posterior):
    r"""A mixture of diagonal normals, reparameterized.

    Formula: q(z|x) = Σ_c π_c Π_j N(z_j; μ_cj, σ_cj²)

    The heads are C locations μ, C log-scales log σ and C heads whose means over the latents are the logits of π, each
    (..., Z). A sample is that of a component chosen by chance; its pathwise gradient is that of the inverse of the
    distribution functions of the latents, each given those before it, so that weights have a gradient, too. (The
    gradient of Pyro's ``MixtureOfDiagNormals`` is biased for the weights; its draws of a sample shape beside a batch
    take the components of other elements.)

    Source: Graves, Stochastic Backpropagation through Mixture Density Distributions, 2016, arXiv 1607.05690; Figurnov,
    Mohamed, Mnih, Implicit Reparameterization Gradients, 2018, arXiv 1805.08498

    Args:
        components: C.

    Raises:
        InputError: no components.

    Example:
        >>> import torch
        >>> from pyro_vae.models import NormalMixture
        >>> family = NormalMixture(components=2)
        >>> family.heads, family(*torch.randn(6, 5, 3).unbind()).rsample().shape
        (6, torch.Size([5, 3]))
    """

    def __init__(self, components: int = 4) -> None:
        super().__init__()
        self.components = check_count("components", components, 4)
        self.heads = 3 * components

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        count = self.components
        loc, log_scale, weights = (torch.stack(heads[i : i + count], -2) for i in range(0, 3 * count, count))
        return MixtureOfNormals(weights.mean(-1), loc, log_scale.exp())


class MixtureOfNormals(dist.TorchDistribution):
    r"""A mixture of diagonal normals with a pathwise gradient.

    With :math:`S_j = F(z_j | z_{<j})`, the distribution function of a latent given those before it, a sample z is a
    function of numbers S that do not depend on the parameters φ. So

    .. math::

        \frac{dz}{d\varphi} &= - \Big( \frac{\partial S}{\partial z} \Big)^{-1}
        \frac{\partial S}{\partial \varphi}, \qquad
        S_j = \sum_c w_c(z_{<j})\, \Phi\Big( \frac{z_j - \mu_{cj}}{\sigma_{cj}} \Big) \\
        w_c(z_{<j}) &\propto \pi_c \prod_{i < j} N(z_i; \mu_{ci}, \sigma_{ci}^2)

    and the matrix is lower triangular.

    Args:
        logits: log π up to constants, (..., C).
        loc: μ, (..., C, Z).
        scale: σ, (..., C, Z).
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.logits, self.loc, self.scale = logits.log_softmax(-1), loc, scale
        super().__init__(loc.shape[:-2], loc.shape[-1:])

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> "MixtureOfNormals":
        """Return the mixture with another batch shape."""
        of_each = (*batch_shape, *self.loc.shape[-2:])
        return MixtureOfNormals(self.logits.expand(of_each[:-1]), self.loc.expand(of_each), self.scale.expand(of_each))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z), of the leading shape of z."""
        if self._validate_args:
            self._validate_sample(value)
        log_normals = self._log_normals((value.unsqueeze(-2) - self.loc) / self.scale)
        return (self.logits + log_normals.sum(-1)).logsumexp(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return samples, (*sample_shape, *batch_shape, Z)."""
        shape = (*sample_shape, *self.loc.shape)
        with torch.no_grad():
            which = Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            index = which[..., None, None].expand(*which.shape, 1, shape[-1])
            loc, scale = (each.expand(shape).gather(-2, index).squeeze(-2) for each in (self.loc, self.scale))
            z = loc + scale * torch.randn_like(loc)
        return self._with_gradient(z) if torch.is_grad_enabled() else z

    @property
    def mean(self) -> Tensor:
        """Σ π μ, (*batch_shape, Z)."""
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Σ π (σ² + (μ − mean)²), (*batch_shape, Z)."""
        squares = self.scale.square() + (self.loc - self.mean.unsqueeze(-2)).square()
        return (self.logits.exp().unsqueeze(-1) * squares).sum(-2)

    def _log_normals(self, standardized: Tensor) -> Tensor:
        """Return log N(z_j; μ_cj, σ_cj²), (..., C, Z), of (z_j − μ_cj) / σ_cj."""
        return -0.5 * standardized.square() - self.scale.log() - HALF_LOG_2PI

    def _with_gradient(self, z: Tensor) -> Tensor:
        """Return a detached sample, unchanged, with its pathwise gradient."""
        standardized = ((z.unsqueeze(-2) - self.loc) / self.scale).clamp(-FAR, FAR)
        log_normals = self._log_normals(standardized)
        before = log_normals.cumsum(-1) - log_normals
        weights = (self.logits.unsqueeze(-1) + before).softmax(-2)
        below = weights * torch.special.ndtr(standardized)
        numbers = below.sum(-2)  # S
        with torch.no_grad():
            slopes = -standardized / self.scale  # of log N in z
            rest = below - numbers.unsqueeze(-2) * weights
            matrix = (rest.mT @ slopes).tril(-1) + torch.diag_embed((weights * log_normals.exp()).sum(-2))
        change = (numbers - numbers.detach()).unsqueeze(-1)
        moved: Tensor = torch.linalg.solve_triangular(matrix, change, upper=False).squeeze(-1)
        return z - moved
