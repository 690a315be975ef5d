"""Normalizing flows conditioned on x: a normal whose samples pass through layers that see a context head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions import ConditionalTransform, transforms
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform

from pyro_vae.models.flows import Autoregressive, order_of
from pyro_vae.models.posteriors.posterior import Posterior
from pyro_vae.models.sizes import check_count, check_dims, hidden_units

OPEN = 2.0  # a layer starts close to the identity: σ(2) = 0.88


class InverseAutoregressiveFlow(Posterior):
    r"""An inverse autoregressive flow: a diagonal normal, then layers in which every latent sees those before it.

    Formula: z⁰ = μ + σ ε;  zᵗ = s zᵗ⁻¹ + (1 − s) m;  log q(z|x) = log N(ε; 0, I) − Σ_j log σ_j − Σ_t Σ_j log s_tj

    .. math:: z^0 = \mu + \sigma \epsilon, \quad z^t = s_t z^{t-1} + (1 - s_t)\, m_t, \quad
        s_t = \mathrm{sigmoid}(2 + a_t), \quad (m_t, a_t) = \mathrm{MADE}_t(z^{t-1}, h)

    The heads are the location μ, the log-scale log σ and the context h, each (..., Z). The order of the latents is
    reversed from layer to layer. A sample and its own density take one pass; the density at any other z takes Z passes
    a layer. So the estimators that score log q at detached latents (``stl``, ``dreg``, all with a score function) are
    right and slower.

    Source: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934

    Args:
        latent_dim: Z, at least 2: a flow of one latent is a normal.
        flows: the number of layers.
        hidden: units of the hidden layers of every MADE, each at least Z; one of max(64, 2 Z) by default.

    Raises:
        InputError: sizes that are too small.

    Example:
        >>> import torch
        >>> from pyro_vae.models import InverseAutoregressiveFlow
        >>> heads = torch.zeros(3, 5, 4).unbind()  # μ, log σ and h of 5 examples
        >>> InverseAutoregressiveFlow(4)(*heads).rsample().shape
        torch.Size([5, 4])
    """

    heads = 3

    def __init__(self, latent_dim: int, flows: int = 2, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        check_dims(latent_dim, 2, "with one, this flow is a normal", "posterior='diagonal_normal'")
        layers = range(check_count("flows", flows, 2))
        units = hidden_units(hidden, latent_dim, least=latent_dim)
        self.orders = [order_of(layer, latent_dim) for layer in layers]
        self.networks = nn.ModuleList(_made(latent_dim, units, [1, 1], order) for order in self.orders)

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, log_scale, context = heads
        layers = [
            Autoregressive(partial(_gated, partial(network, context=context)), order)
            for network, order in zip(self.networks, self.orders, strict=True)
        ]
        return _flow(loc, log_scale.exp(), layers)


class SplineFlow(Posterior):
    r"""A flow of monotonic rational splines, autoregressive, between a standard normal and a location and a scale.

    Formula: u⁰ = ε;  uᵗ_j = spline(uᵗ⁻¹_j), its knots a function of uᵗ⁻¹_<j and h;  z = μ + σ uᵀ

    The heads are the location μ, the log-scale log σ and the context h, each (..., Z). The splines are rational, of
    order one, with ``bins`` segments on [−3, 3] in units of σ, and the identity outside. A sample and its own density
    take one pass, the density at any other z Z passes a layer. With one latent the knots depend on h alone. A layer
    selects by a mask, which engine ``compiled`` refuses.

    Source: Durkan, Bekasov, Murray, Papamakarios, Neural Spline Flows, 2019, arXiv 1906.04032; Dolatabadi, Erfani,
    Leckie, Invertible Generative Modeling using Linear Rational Splines, 2020, arXiv 2001.05168

    Args:
        latent_dim: Z.
        flows: the number of layers.
        bins: segments of a spline.
        hidden: units of the hidden layers of every network, each at least Z; one of max(64, 2 Z) by default.

    Raises:
        InputError: sizes that are too small.

    Example:
        >>> import torch
        >>> from pyro_vae.models import SplineFlow
        >>> SplineFlow(4)(*torch.zeros(3, 5, 4).unbind()).rsample().shape
        torch.Size([5, 4])
    """

    heads = 3

    def __init__(self, latent_dim: int, flows: int = 2, bins: int = 8, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        check_count("flows", flows, 2)
        check_count("bins", bins, 8)
        units = hidden_units(hidden, latent_dim, least=latent_dim)
        self.layers = nn.ModuleList(_spline(latent_dim, units, bins, layer) for layer in range(flows))

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, log_scale, context = heads
        last = AffineTransform(loc, log_scale.exp(), event_dim=1, cache_size=1)
        return _flow(torch.zeros_like(loc), torch.ones_like(loc), [*_conditioned(self.layers, context), last])


class PlanarFlow(Posterior):
    r"""A planar flow: a diagonal normal, then layers that bend space along one direction each.

    Formula: z⁰ = μ + σ ε;  zᵗ = zᵗ⁻¹ + û tanh(w·zᵗ⁻¹ + b);  log q = log N(z⁰; μ, σ²) − Σ_t log(1 + û·w (1 − tanh²))

    The heads are the location μ, the log-scale log σ and the context h, each (..., Z); a network of h computes w, u and
    b of every layer, and û is u such that the layer has an inverse. The inverse has no formula: a sample is scored, and
    nothing else. So only estimators that differentiate through the sample as a whole take it (``sampled_kl``, ``iwae``
    and their kin); those that score log q at detached latents refuse, as does the prior ``vamp``.

    Source: Rezende, Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770

    Args:
        latent_dim: Z.
        flows: the number of layers.
        hidden: units of the hidden layers of every network; one of max(64, 2 Z) by default.

    Raises:
        InputError: sizes that are too small.

    Example:
        >>> import torch
        >>> from pyro_vae.models import PlanarFlow
        >>> PlanarFlow(4)(*torch.zeros(3, 5, 4).unbind()).rsample().shape
        torch.Size([5, 4])
    """

    heads = 3

    def __init__(self, latent_dim: int, flows: int = 4, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        check_count("flows", flows, 4)
        units = hidden_units(hidden, latent_dim)
        self.layers = nn.ModuleList(transforms.conditional_planar(latent_dim, latent_dim, units) for _ in range(flows))

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        loc, log_scale, context = heads
        return _flow(loc, log_scale.exp(), _conditioned(self.layers, context))


def _flow(loc: Tensor, scale: Tensor, layers: Sequence[Transform]) -> dist.TorchDistribution:
    """Return normal numbers, transformed."""
    flow: dist.TorchDistribution = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), list(layers))
    return flow


def _conditioned(layers: nn.ModuleList, context: Tensor) -> list[Transform]:
    """Return Pyro's conditional layers at a context."""
    return [cast(ConditionalTransform, layer).condition(context) for layer in layers]


def _made(latent_dim: int, units: list[int], outputs: list[int], order: list[int]) -> ConditionalAutoRegressiveNN:
    """Return a masked network of the latents in an order, and of a context of Z numbers that all see."""
    permutation = cast(torch.LongTensor, torch.tensor(order))
    return ConditionalAutoRegressiveNN(
        latent_dim, latent_dim, units, param_dims=outputs, permutation=permutation, nonlinearity=nn.ELU()
    )


def _gated(network: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and log-scale of s z + (1 − s) m."""
    mean, gate = network(z)
    return torch.sigmoid(-gate - OPEN) * mean, F.logsigmoid(gate + OPEN)


def _spline(latent_dim: int, units: list[int], bins: int, layer: int) -> nn.Module:
    if latent_dim == 1:
        found: nn.Module = transforms.conditional_spline(1, 1, units, count_bins=bins)
        return found
    network = _made(latent_dim, units, [bins, bins, bins - 1, bins], order_of(layer, latent_dim))
    return transforms.ConditionalSplineAutoregressive(latent_dim, network, count_bins=bins)
