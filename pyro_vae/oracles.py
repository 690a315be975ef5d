r"""Programs whose log p(x) is known: what an estimator, a model or an evaluation can be checked against.

Each oracle is a program like any other and beside that has ``log_evidence(x)``, (B,), in nats, and
``simulate(count)``, data drawn from its model. All start in float64 (``.float()`` for single precision).

=========================  ==================================  ===================
oracle                     latents                             log p(x)
=========================  ==================================  ===================
:class:`LinearGaussian`    normal vector, linear decoder       closed form
:class:`GaussianMixture`   one class                           closed form
:class:`NonlinearDecoder`  one or two numbers, neural decoder  quadrature, to 1e-8
:class:`DiscreteLatents`   bits and a class, neural decoder    sum over all states
=========================  ==================================  ===================

:func:`log_evidence_by_quadrature` and :func:`log_evidence_by_enumeration` do the same for any program whose latents
are few enough.
"""

import math
from typing import Literal, Protocol, Self, cast, get_args, runtime_checkable

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from pyro_vae.devices import isolated_rng
from pyro_vae.errors import InputError, lookup
from pyro_vae.joint import MAX_STATES, Joint
from pyro_vae.networks import MLP
from pyro_vae.predictive import sample_prior
from pyro_vae.program import Program, explained, own_store
from pyro_vae.vae import VAE

Guide = Literal["encoder", "posterior"]
ELEMENTS_AT_ONCE = 2**22  # nodes times data times dimensions; bounds memory
MAX_NODES = 2**23


@runtime_checkable
class Oracle(Program, Protocol):
    """A program whose log p(x) is known."""

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats."""

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Draw data from the model, (count, *event_shape)."""


class LinearNormal(nn.Module):
    r"""The distribution :math:`N(Ax + b, \mathrm{diag}\, s^2)` of a vector, linear in another.

    Args:
        in_dim: length of the vector that it depends on.
        out_dim: its own length.
        isotropic: one s for all dimensions; else one for each.
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

    The guide ``encoder`` is :math:`N(Vx + b, \mathrm{diag}\, s^2)`, trainable: the right mean can be had, the right
    covariance only where the columns of W are orthogonal. The guide ``posterior`` is p(z|x) itself: log w is then
    the same number for every z.

    Sources: Tipping and Bishop, Probabilistic principal component analysis, 1999; Lucas, Tucker, Grosse and Norouzi,
    `Don't Blame the ELBO! <https://arxiv.org/abs/1911.02469>`_.

    Args:
        data_dim: D.
        latent_dim: Z.
        guide: ``encoder`` or ``posterior``.
        seed: fixes the initial parameters.

    Raises:
        InputError: an unknown guide.

    Example:
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
            self.encoder = LinearNormal(data_dim, latent_dim, isotropic=False) if _amortised(guide) else None
        self.double()

    @classmethod
    def of(cls, weight: Tensor, mean: Tensor, scale: float, guide: Guide = "encoder") -> Self:
        r"""Return the model of given W (D, Z), μ (D,) and σ; its encoder is the best that there is for it.

        That is the posterior's mean and :math:`s_j^2 = \sigma^2 / M_{jj}` (:meth:`gap` is what it leaves).

        Example:
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
        r"""Return the model under which the data (N, D) are most likely (Tipping and Bishop, 1999).

        With eigenvalues λ and eigenvectors U of the data's covariance (divided by N, not N − 1), largest first:
        :math:`\sigma^2` is the mean of the D − Z last ones and :math:`W = U_Z (\Lambda_Z - \sigma^2 I)^{1/2}`, whose
        columns are orthogonal, so that the encoder reaches the posterior.

        Raises:
            InputError: data that is not (N, D) with D above ``latent_dim``, or that has no noise outside Z dimensions.
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
        r"""Return log p(x) − ELBO of the best diagonal guide, the same for every x: what the family costs.

        .. math:: \tfrac12 \Big( \sum_j \log M_{jj} - \log |M| \Big) \ge 0

        Example:
            >>> round(LinearGaussian.of(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.zeros(2), 1.0).gap().item(), 6)
            0.091161
        """
        return 0.5 * (self.inner.diagonal().log().sum() - torch.logdet(self.inner))

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Draw data from the model, (count, D)."""
        return _simulate(self, self.mean.new_zeros(count, *self.event_shape), seed)


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
    r"""A mixture of diagonal Gaussians: the latent is the class.

    .. math::

        z \sim \mathrm{Cat}(\pi), \quad x \sim N(m_z, \mathrm{diag}\, s_z^2), \quad
        \log p(x) = \log \sum_c \pi_c N(x; m_c, \mathrm{diag}\, s_c^2)

    The guide ``posterior`` has the responsibilities p(z|x); the guide ``encoder`` has trainable logits, linear in x,
    which can be the responsibilities where all classes have one scale.

    Args:
        logits: log π up to a constant, (C,).
        loc: means, (C, D).
        scale: standard deviations, (C, D), (C, 1) or a scalar tensor.
        guide: ``posterior`` or ``encoder``.
        seed: fixes the encoder's initial parameters.

    Raises:
        InputError: shapes that do not fit; an unknown guide.

    Example:
        >>> oracle = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> oracle.posterior(x).probs.round(decimals=4)[1].tolist()
        [0.0003, 0.9997]
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, guide: Guide = "posterior", seed: int = 0) -> None:
        super().__init__()
        if loc.dim() != 2 or logits.shape != loc.shape[:1]:
            got = f"logits {tuple(logits.shape)}, loc {tuple(loc.shape)}"
            raise InputError("logits (C,) and loc (C, D)", got, "one row of loc a class")
        self.event_shape = tuple(loc.shape[1:])
        self.components = Components(logits, loc, scale)
        with isolated_rng(torch.device("cpu"), seed):
            self.encoder = nn.Linear(loc.shape[1], len(loc)).to(loc.device) if _amortised(guide) else None
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
        """Draw data from the model, (count, D)."""
        return _simulate(self, self.components.loc.new_zeros(count, *self.event_shape), seed)

    def _log_joint(self, x: Tensor) -> Tensor:
        classes = torch.arange(len(self.components.loc), device=x.device)
        log_px_z: Tensor = self.components(classes).log_prob(x.unsqueeze(-2))
        return self.components.logits.log_softmax(-1) + log_px_z


class NonlinearDecoder(nn.Module):
    r"""A VAE of one or two latent numbers, whose posterior bends; log p(x) is an integral that can be done.

    .. math:: \log p(x) = \log \int N(z; 0, I)\, p(x \mid \mathrm{decoder}(z))\, dz

    The guide is the VAE's: a diagonal normal, amortised.

    Args:
        data_dim: D.
        latent_dim: Z, 1 or 2.
        hidden: units of the decoder's hidden layer, and of the encoder's.
        likelihood: a name of :data:`~pyro_vae.likelihoods.LIKELIHOODS` with arguments.
        gain: factor of the decoder's initial weights; the greater, the further the posterior is from a normal.
        seed: fixes the initial parameters.

    Raises:
        InputError: another ``latent_dim``; whatever :class:`~pyro_vae.VAE` refuses.

    Example:
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
            raise InputError("a latent_dim of 1 or 2", latent_dim, "LinearGaussian, whose evidence is a formula")
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
        """Draw data from the model, (count, D)."""
        like = next(self.vae.parameters()).new_zeros(count, *self.event_shape)
        return _simulate(self, like, seed)


class DiscretePrior(nn.Module):
    """Logits of independent bits and of one class."""

    def __init__(self, bits: int, classes: int) -> None:
        super().__init__()
        self.bits = nn.Parameter(torch.randn(bits))
        self.kind = nn.Parameter(torch.randn(classes))


class DiscreteLatents(nn.Module):
    r"""Two discrete latent sites, bits and a class, and a neural decoder to binary data; log p(x) is a sum.

    .. math::

        c \sim \mathrm{Cat}(\pi), \quad b_h \sim \mathrm{Bernoulli}(\rho_h), \quad
        x_d \sim \mathrm{Bernoulli}(\sigma(\mathrm{decoder}(b, c)_d)), \quad
        \log p(x) = \log \sum_{b, c} p(b)\, p(c)\, p(x|b, c)

    The guide is factorised, its logits a neural function of x.

    Args:
        data_dim: D.
        bits: how many bits.
        classes: of the class.
        hidden: units of the hidden layer of decoder and encoder.
        gain: factor of the decoder's initial weights.
        seed: fixes the initial parameters.

    Example:
        >>> oracle = DiscreteLatents(data_dim=5)
        >>> oracle.log_evidence(oracle.simulate(3)).shape
        torch.Size([3])
    """

    def __init__(
        self, data_dim: int, bits: int = 3, classes: int = 4, hidden: int = 16, gain: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.event_shape = (data_dim,)
        self.bits, self.classes = bits, classes
        with isolated_rng(torch.device("cpu"), seed):
            self.prior = DiscretePrior(bits, classes)
            self.decoder = MLP((bits + classes,), (hidden,), (data_dim,), activation="tanh")
            self.encoder = MLP((data_dim,), (hidden,), (bits + classes,), activation="tanh")
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.mul_(gain)
        self.double()

    def model(self, x: Tensor) -> None:
        """p(c) p(b) p(x|b, c) for a batch x, (B, D)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(logits=self.prior.kind))
            bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior.bits).to_event(1))
            one_hot = nn.functional.one_hot(kind, self.classes).to(bits.dtype)
            shape = torch.broadcast_shapes(one_hot.shape[:-1], bits.shape[:-1])
            code = torch.cat([bits.expand(*shape, -1), one_hot.expand(*shape, -1)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(code).squeeze(-2)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(c|x) q(b|x) for a batch x, (B, D)."""
        pyro.module("encoder", self.encoder)
        logits = self.encoder(x).squeeze(-2)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Categorical(logits=logits[..., self.bits :]))
            pyro.sample("bits", dist.Bernoulli(logits=logits[..., : self.bits]).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats, by :func:`log_evidence_by_enumeration`."""
        return log_evidence_by_enumeration(cast(Program, self), x)

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Draw data from the model, (count, D)."""
        return _simulate(self, self.prior.bits.new_zeros(count, *self.event_shape), seed)


@torch.no_grad()
def log_evidence_by_enumeration(program: Program, x: Tensor, max_states: int = MAX_STATES) -> Tensor:
    r"""Return :math:`\log p(x) = \log \sum_z p(x, z)`, (B,), nats, exactly, for any program of discrete latents.

    The set of values of one latent must not depend on another latent.

    Args:
        program: the program.
        x: a batch, (B, *event_shape), on the program's device.
        max_states: how many joint states are summed at most.

    Raises:
        InputError: a continuous latent, or more states.

    Example:
        >>> mixture = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
        >>> x = mixture.simulate(5)
        >>> torch.allclose(log_evidence_by_enumeration(mixture, x), mixture.log_evidence(x))
        True
    """
    with own_store(program), explained("that runs on latents (states, 1, ...) beside x (data, ...)"):
        joint = Joint(program, x)
        states = joint.states(max_states)
        count = len(next(iter(states.values())))
        chunk = max(1, ELEMENTS_AT_ONCE // x.numel())
        parts = [{n: v[i : i + chunk] for n, v in states.items()} for i in range(0, count, chunk)]
        return torch.stack([joint.at(part).log_joint.logsumexp(0) for part in parts]).logsumexp(0)


@torch.no_grad()
def log_evidence_by_quadrature(
    program: Program, x: Tensor, tolerance: float = 1e-8, max_nodes: int = MAX_NODES
) -> Tensor:
    r"""Return :math:`\log p(x) = \log \int p(x, z)\, dz`, (B,), nats, for any program of one or two latent numbers.

    The trapezoidal rule on a grid over :math:`[-L, L]^n` in unconstrained latents, which converges faster than any
    power of the spacing h for a smooth integrand. L doubles until the outermost eighth of the grid holds less than
    ``tolerance``/100 of the integral; h halves until two grids agree within ``tolerance`` for every datum, and the
    finer one is returned, whose error is far smaller than the difference. (Gauss-Hermite rules, made for integrands
    near prior times polynomial, converge slowly for a posterior much narrower than the prior.)

    No rule can see what falls between all its nodes: a peak much narrower than 1/16 of the prior's scale that adds
    to a broad density, rather than standing alone, may be missed.

    Args:
        program: the program, in float64.
        x: a batch, (B, *event_shape), float64, on the program's device.
        tolerance: in nats.
        max_nodes: of one grid.

    Raises:
        InputError: more than two latent numbers, a discrete latent, single precision, or no agreement within
            ``max_nodes``.

    Example:
        >>> oracle = LinearGaussian(data_dim=3, latent_dim=2)
        >>> x = oracle.simulate(4)
        >>> bool((log_evidence_by_quadrature(oracle, x) - oracle.log_evidence(x)).abs().max() < 1e-8)
        True
    """
    kinds = {t.dtype for t in (x, *program.parameters()) if t.is_floating_point()}
    if kinds != {torch.float64}:
        got = ", ".join(sorted(map(str, kinds)))
        raise InputError("program and data in float64", got, "program.double() and x.double()")
    with own_store(program), explained("that runs on latents (nodes, 1, ...) beside x (data, ...)"):
        joint = Joint(program, x)
        if not 1 <= joint.size <= 2:
            raise InputError("one or two latent numbers", joint.size, "annealed_log_evidence, or importance sampling")
        return _converged(joint, tolerance, max_nodes)


def _converged(joint: Joint, tolerance: float, max_nodes: int) -> Tensor:
    half_width, halves, previous = 8.0, 64, None  # halves: intervals from the middle to an end
    while (2 * halves + 1) ** joint.size <= max_nodes:
        total, edge = _on_grid(joint, half_width, halves)
        if ((edge - total) > math.log(tolerance / 100)).any():
            half_width, halves, previous = 2 * half_width, 2 * halves, None
            continue
        if previous is not None and bool(((total - previous).abs() <= tolerance).all()):
            return total
        previous, halves = total, 2 * halves
    raise InputError(
        f"an integral that settles within {tolerance:g} nats on {max_nodes} nodes",
        f"none on the last grid, half-width {half_width:g}",
        "fewer data at once, a larger max_nodes or tolerance, or a likelihood that is less peaked",
    )


def _on_grid(joint: Joint, half_width: float, halves: int) -> tuple[Tensor, Tensor]:
    """Return the log of the integral over the grid, and of its part in the outermost eighth, (B,) each."""
    x, side, size = joint.x, 2 * halves + 1, joint.size
    spacing = half_width / halves
    totals, edges = [], []
    for part in torch.arange(side**size, device=x.device).split(max(1, ELEMENTS_AT_ONCE // x.numel())):
        index = torch.stack([part // side**axis % side for axis in range(size)], -1) - halves
        log_joint = joint.of_unconstrained((index.to(x.dtype) * spacing).unsqueeze(1)).log_joint
        outer = index.abs().amax(-1, keepdim=True) > 0.875 * halves
        totals.append(log_joint.logsumexp(0))
        edges.append(log_joint.masked_fill(~outer, -math.inf).logsumexp(0))
    log_volume = size * math.log(spacing)
    return torch.stack(totals).logsumexp(0) + log_volume, torch.stack(edges).logsumexp(0) + log_volume


def _simulate(program: nn.Module, like: Tensor, seed: int) -> Tensor:
    with isolated_rng(like.device, seed):
        return sample_prior(cast(Program, program), like).draw.to(like.device)


def _amortised(guide: str) -> bool:
    known: str = lookup({name: name for name in get_args(Guide)}, guide, "guide")
    return known == "encoder"
