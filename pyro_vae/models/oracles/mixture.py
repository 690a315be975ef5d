"""A mixture of Gaussians, whose latent is the class."""

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.models.oracles.oracle import Guide, is_amortised, simulated


class Components(nn.Module):
    """The parameters of a mixture: logits (C,), means (C, D) and log-scales (C, D)."""

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log().expand_as(loc).clone())

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z) for classes z, (...): event shape (D,)."""
        normal: dist.TorchDistribution = dist.Normal(self.loc[z], self.log_scale[z].exp()).to_event(1)
        return normal


class GaussianMixture(nn.Module):
    r"""A mixture of diagonal Gaussians, whose latent is the class.

    .. math::

        z \sim \mathrm{Cat}(\pi), \quad x \sim N(m_z, \mathrm{diag}\, s_z^2), \quad
        \log p(x) = \log \sum_c \pi_c N(x; m_c, \mathrm{diag}\, s_c^2)

    The guide ``posterior`` is the responsibilities p(z|x); the guide ``encoder`` has trainable logits, linear in x,
    which can equal the responsibilities if all classes have the same scale.

    Args:
        logits: log π up to a constant, (C,).
        loc: means, (C, D).
        scale: standard deviations, (C, D), (C, 1) or a scalar tensor.
        guide: ``posterior`` or ``encoder``.
        seed: seed of the encoder's initial parameters.

    Raises:
        InputError: inconsistent shapes, or an unknown guide.

    Example:
        >>> import torch
        >>> from pyro_vae.models.oracles import GaussianMixture
        >>> oracle = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> oracle.posterior(x).probs.round(decimals=4)[1].tolist()
        [0.0003, 0.9997]
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, guide: Guide = "posterior", seed: int = 0) -> None:
        super().__init__()
        if loc.dim() != 2 or logits.shape != loc.shape[:1]:
            got = f"logits {tuple(logits.shape)}, loc {tuple(loc.shape)}"
            raise InputError("logits (C,) and loc (C, D)", got, "one row of loc per class")
        self.event_shape = tuple(loc.shape[1:])
        self.components = Components(logits, loc, scale)
        with isolated_rng(torch.device("cpu"), seed):
            self.encoder = nn.Linear(loc.shape[1], len(loc)).to(loc.device) if is_amortised(guide) else None
        self.double()

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) for a batch x, (B, D)."""
        pyro.module("components", self.components)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=self.components.logits))
            pyro.sample("x", self.components(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for a batch x, (B, D)."""
        if self.encoder is not None:
            pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x) if self.encoder is None else dist.Categorical(logits=self.encoder(x)))

    def posterior(self, x: Tensor) -> dist.Categorical:
        """Return p(z|x), the responsibilities: batch shape (B,)."""
        return dist.Categorical(logits=self._log_joint(x))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats."""
        return self._log_joint(x).logsumexp(-1)

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Return examples sampled from the model, (count, D)."""
        return simulated(self, self.components.loc.new_zeros(count, *self.event_shape), seed)

    def _log_joint(self, x: Tensor) -> Tensor:
        classes = torch.arange(len(self.components.loc), device=x.device)
        log_px_z: Tensor = self.components(classes).log_prob(x.unsqueeze(-2))
        return self.components.logits.log_softmax(-1) + log_px_z
