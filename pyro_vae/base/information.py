r"""Entropies and divergences of Pyro and torch distributions: in closed form where torch has one, else sampled.

==================  ============================================
self-information    :math:`-\log p(x)`
entropy             :math:`H(p) = -E_p \log p`
cross-entropy       :math:`H(p, q) = -E_p \log q = H(p) + KL(p \| q)`
KL divergence       :math:`KL(p \| q) = E_p \log p - \log q`
==================  ============================================

Entropies of densities are differential: they depend on the unit of x and may be negative.

:func:`closed_form_kl` serves the estimators and the card; the others are public for users, in nats or bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.statistics import chunk_sizes

Unit = Literal["nats", "bits"]
SAMPLES_AT_ONCE = 1000
NATS: dict[str, float] = {"nats": 1.0, "bits": math.log(2)}


@dataclass(frozen=True, eq=False)
class Information:
    """An amount of information for each element of a batch."""

    value: Tensor  # of the batch shape
    standard_error: Tensor | None  # likewise; None where the value is exact
    unit: Unit = "nats"

    @property
    def exact(self) -> bool:
        """Whether the value is a closed form and not a mean of samples."""
        return self.standard_error is None

    def to(self, unit: Unit) -> "Information":
        """Return the same amount in another unit.

        Example:
            >>> import math
            >>> import torch
            >>> from pyro_vae.base import Information
            >>> Information(torch.tensor(math.log(8)), None).to("bits").value
            tensor(3.)
        """
        factor = _nats(self.unit) / _nats(unit)
        error = None if self.standard_error is None else self.standard_error * factor
        return Information(self.value * factor, error, unit)


def self_information(p: Distribution, x: Tensor, unit: Unit = "nats") -> Information:
    r"""Return :math:`-\log p(x)`, the surprise of x, of p's batch shape.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli
        >>> from pyro_vae.base import self_information
        >>> self_information(Bernoulli(0.25), torch.tensor(1.0), unit="bits").value
        tensor(2.)
    """
    return Information(-p.log_prob(x), None).to(unit)


def entropy(p: Distribution, unit: Unit = "nats", num_samples: int = 10_000, seed: int = 0) -> Information:
    r"""Return the entropy :math:`H(p) = -E_p \log p`, of p's batch shape.

    Args:
        p: the distribution.
        unit: ``nats`` or ``bits``.
        num_samples: drawn where torch has no closed form.
        seed: of these draws; the caller's random states are left as they were.

    Raises:
        InputError: an unknown unit; fewer than 2 samples where there is no closed form.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> from pyro_vae.base import entropy
        >>> entropy(Bernoulli(0.5), unit="bits").value
        tensor(1.)
    """
    exact = _closed(lambda: p.entropy())
    return (exact or _sampled(p, lambda x: -p.log_prob(x), num_samples, seed)).to(unit)


def cross_entropy(
    p: Distribution, q: Distribution, unit: Unit = "nats", num_samples: int = 10_000, seed: int = 0
) -> Information:
    r"""Return the cross-entropy :math:`H(p, q) = -E_p \log q`; arguments as for :func:`entropy`.

    It is exact where torch has the entropy of p, and the divergence from q is known (:func:`closed_form_kl`). Batch
    shapes are broadcast.

    Raises:
        InputError: event shapes that differ; else as for :func:`entropy`.

    Example:
        >>> from torch.distributions import Normal
        >>> from pyro_vae.base import cross_entropy, entropy
        >>> found = cross_entropy(Normal(0.0, 1.0), Normal(1.0, 1.0))
        >>> round(found.value.item() - entropy(Normal(0.0, 1.0)).value.item(), 6), found.exact
        (0.5, True)
    """
    p, q = _alongside(p, q)
    divergence = closed_form_kl(p, q)
    exact = None if divergence is None else _closed(lambda: p.entropy() + divergence)
    return (exact or _sampled(p, lambda x: -q.log_prob(x), num_samples, seed)).to(unit)


def kl(p: Distribution, q: Distribution, unit: Unit = "nats", num_samples: int = 10_000, seed: int = 0) -> Information:
    r"""Return the divergence :math:`KL(p \| q) = E_p [\log p - \log q]`; arguments as for :func:`entropy`.

    Batch shapes are broadcast.

    Raises:
        InputError: event shapes that differ; else as for :func:`entropy`.

    Example:
        >>> from torch.distributions import Normal, StudentT
        >>> from pyro_vae.base import kl
        >>> kl(Normal(0.0, 1.0), Normal(2.0, 1.0))
        Information(value=tensor(2.), standard_error=None, unit='nats')
        >>> kl(Normal(0.0, 1.0), StudentT(3.0)).exact
        False
    """
    p, q = _alongside(p, q)
    exact = closed_form_kl(p, q)
    if exact is not None:
        return Information(exact, None).to(unit)
    return _sampled(p, lambda x: p.log_prob(x) - q.log_prob(x), num_samples, seed).to(unit)


def closed_form_kl(p: Distribution, q: Distribution) -> Tensor | None:
    r"""Return :math:`KL(p \| q)` in closed form, of the broadcast batch shape, or None where none is known.

    Estimators and the card take their closed-form KL from here: torch's formulas, and for a normal p with a covariance
    S, full or of low rank, against a diagonal normal q = N(m, diag s²)

    .. math::

        KL(p \| q) = \sum_j \Big( \log s_j + \tfrac12 \log 2\pi + \frac{S_{jj} + (\mu_j - m_j)^2}{2 s_j^2} \Big) - H(p)

    Example:
        >>> from torch.distributions import Normal, StudentT
        >>> closed_form_kl(Normal(0.0, 1.0), Normal(2.0, 1.0)), closed_form_kl(Normal(0.0, 1.0), StudentT(3.0))
        (tensor(2.), None)
    """
    p, q = _expanded(p, q)
    if isinstance(p, MultivariateNormal | LowRankMultivariateNormal) and _is_diagonal_normal(q):
        return _kl_to_diagonal_normal(p, q.base_dist)
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        return None


def _is_diagonal_normal(fn: Distribution) -> TypeGuard[Independent[Normal]]:
    return isinstance(fn, Independent) and isinstance(fn.base_dist, Normal) and len(fn.event_shape) == 1


def _kl_to_diagonal_normal(p: MultivariateNormal | LowRankMultivariateNormal, q: Normal) -> Tensor:
    """Return the cross-entropy minus the entropy: of a diagonal q it takes the variances of p alone."""
    squares = (p.stddev / q.scale).square() + ((p.loc - q.loc) / q.scale).square()
    cross_entropy = q.scale.log() + 0.5 * math.log(2 * math.pi) + 0.5 * squares
    kl: Tensor = cross_entropy.sum(-1) - p.entropy()  # type: ignore[no-untyped-call]
    return kl


def _alongside(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    """Check that both have one event shape, and return them with one batch shape."""
    if p.event_shape != q.event_shape:
        got = f"{tuple(p.event_shape)} and {tuple(q.event_shape)}"
        raise InputError("two distributions of one event shape", got, "the same .to_event in both")
    return _expanded(p, q)


def _expanded(p: Distribution, q: Distribution) -> tuple[Distribution, Distribution]:
    """Return both with one batch shape: some of torch's closed forms index one by the other."""
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    both = (d if shape == d.batch_shape else d.expand(shape) for d in (p, q))
    return next(both), next(both)


def _closed(formula: Callable[[], Tensor]) -> Information | None:
    """Return a closed form of torch, or None where it is not implemented."""
    try:
        return Information(formula(), None)
    except NotImplementedError:
        return None


@torch.no_grad()
def _sampled(p: Distribution, integrand: Callable[[Tensor], Tensor], num_samples: int, seed: int) -> Information:
    if num_samples < 2:
        raise InputError("num_samples of at least 2, for a standard error", num_samples, "num_samples=10_000")
    with isolated_rng(_device(p), seed):
        terms = torch.cat(
            [integrand(p.sample(torch.Size([count]))) for count in chunk_sizes(num_samples, SAMPLES_AT_ONCE)]
        )
    return Information(terms.mean(0), terms.std(0, correction=1) / math.sqrt(num_samples))


def _device(p: Distribution) -> torch.device:
    """Return the device of a distribution's parameters, looking through wrappers."""
    parts: list[object] = list(vars(p).values())
    for part in parts:
        if isinstance(part, Tensor):
            return part.device
    inner = [_device(part) for part in parts if isinstance(part, Distribution)]
    return inner[0] if inner else torch.device("cpu")


def _nats(unit: str) -> float:
    return lookup(NATS, unit, "unit")
