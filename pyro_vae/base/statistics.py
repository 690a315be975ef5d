"""Estimates with standard errors, running moments, log-mean-exp and bounded scales."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, in one unit.

    It prints to two digits of the standard error; without one, to four digits.

    Example:
        >>> import torch
        >>> from pyro_vae.base import Estimate, estimate
        >>> found = estimate(torch.tensor([1.0, 2.0, 3.0]))
        >>> found
        Estimate(value=2.0, standard_error=0.5773502691896258, count=3)
        >>> print(found, Estimate(-100.65412, 0.2571), Estimate(3.14159), Estimate(-41.2, 12.3), sep=", ")
        2.00 ± 0.58, -100.65 ± 0.26, 3.142, -41 ± 12
    """

    value: float
    standard_error: float = math.nan  # NaN if unknown, as for a single term
    count: int | None = None  # number of terms of the mean

    def __str__(self) -> str:
        error = self.standard_error
        if not (math.isfinite(self.value) and math.isfinite(error) and error > 0):
            return f"{self.value:.4g}"
        digits = min(6, max(0, 1 - math.floor(math.log10(error))))
        return f"{self.value:.{digits}f} ± {error:.{digits}f}"


def estimate(terms: Tensor) -> Estimate:
    r"""Return the mean of a flat tensor and its standard error :math:`s/\sqrt{n}`, computed in float64."""
    values = terms.detach().flatten().double()
    n = len(values)
    spread = values.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    return Estimate(values.mean().item(), spread, n)


def bounded_below(log_scale: Tensor, floor: float) -> Tensor:
    r"""Bound a log-scale s smoothly from below by :math:`\log f`: :math:`\log f + \mathrm{softplus}(s - \log f)`.

    Far above the floor the value is unchanged; below it the gradient decays smoothly, where a clamp's would be zero.

    Args:
        log_scale: any shape.
        floor: the smallest scale, in the unit of the data; positive.

    Example:
        >>> import torch
        >>> bounded_below(torch.tensor([-50.0, -2.0]), floor=0.01).exp()
        tensor([0.0100, 0.1453])
    """
    log_floor = math.log(floor)
    return log_floor + F.softplus(log_scale - log_floor)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Mean, total variance and count of a stream of vectors: of all in row 0, without block i in row i + 1."""

    mean: Tensor  # (b + 1, D), float64
    variance: Tensor  # (b + 1,)
    count: Tensor  # (b + 1,)

    @property
    def signal(self) -> Tensor:
        r"""The squared norm of the expectation, :math:`\|\bar g\|^2 - V/N`, unbiased, (b + 1,); may be below 0."""
        return self.mean.square().sum(1) - self.variance / self.count


class Moments:
    """The running mean and total variance of a stream of vectors (Welford), in constant memory.

    They are kept in blocks, so that :func:`jackknife` gives a standard error for any function of mean and variance.

    Args:
        blocks: number of blocks; vectors go to them in turn.

    Example:
        >>> import torch
        >>> moments = Moments(blocks=2)
        >>> for value in (1.0, 2.0, 3.0, 6.0):
        ...     moments.add(torch.tensor([value]))
        >>> moments.mean(), moments.variance(), moments.count
        (tensor([3.], dtype=torch.float64), 4.666666666666667, 4)
        >>> moments.left_out().mean.flatten()  # of 1, 2, 3, 6; of 2, 6; of 1, 3
        tensor([3., 4., 2.], dtype=torch.float64)
    """

    def __init__(self, blocks: int = 20) -> None:
        self._counts = [0] * blocks
        self._means: list[Tensor] = [torch.zeros(())] * blocks
        self._squares = [0.0] * blocks  # sums of squared distances to the block's mean, over all coordinates
        self._next = 0

    @property
    def count(self) -> int:
        """The number of vectors added."""
        return sum(self._counts)

    def add(self, vector: Tensor) -> None:
        """Add a vector."""
        block = self._next
        self._next = (block + 1) % len(self._counts)
        value = vector.detach().double()
        mean = self._means[block] if self._counts[block] else torch.zeros_like(value)
        self._counts[block] += 1
        moved = mean + (value - mean) / self._counts[block]
        self._squares[block] += torch.dot(value - mean, value - moved).item()
        self._means[block] = moved

    def mean(self) -> Tensor:
        """Return the mean of all vectors."""
        kept = [(n, mean) for n, mean in zip(self._counts, self._means, strict=True) if n]
        return torch.stack([n * mean for n, mean in kept]).sum(0) / self.count

    def variance(self) -> float:
        """Return the unbiased variance summed over coordinates (the trace of the covariance)."""
        mean = self.mean()
        kept = [(n, block) for n, block in zip(self._counts, self._means, strict=True) if n]
        between = sum(n * (block - mean).square().sum().item() for n, block in kept)
        return (sum(self._squares) + between) / (self.count - 1)

    def left_out(self) -> LeftOut:
        """Return mean and variance of all vectors, and of those outside each block; every block must have some."""
        mean, means = self.mean(), torch.stack(self._means)
        count, squares = (means.new_tensor(v) for v in (self._counts, self._squares))
        rest = self.count - count
        away = means - mean
        without = mean - (count / rest)[:, None] * away
        total = self.variance() * (self.count - 1)
        outside = total - squares - count * self.count / rest * away.square().sum(1)
        return LeftOut(
            torch.cat([mean[None], without]),
            torch.cat([means.new_tensor([self.variance()]), (outside / (rest - 1)).clamp(min=0)]),
            torch.cat([means.new_tensor([self.count]), rest]),
        )


def jackknife(statistic: Callable[[int | None], float], blocks: int) -> tuple[float, float]:
    r"""Return a statistic of all blocks and its jackknife standard error, over the b leave-one-block-out values.

    .. math:: \mathrm{se}^2 = \frac{b - 1}{b} \sum_i (s_{-i} - \bar s)^2

    Args:
        statistic: called with the block to leave out, or None for all.
        blocks: b, the number of blocks.

    Example:
        >>> import torch
        >>> from pyro_vae.base import jackknife
        >>> data = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> leave = lambda b: (data if b is None else torch.cat([data[:b], data[b + 1:]])).mean().item()
        >>> value, error = jackknife(leave, 4)  # for a mean, the usual standard error
        >>> round(value, 6), round(error, 6)
        (3.0, 1.080123)
    """
    parts = torch.tensor([statistic(block) for block in range(blocks)], dtype=torch.float64)
    spread = (blocks - 1) / blocks * (parts - parts.mean()).square().sum()
    return statistic(None), math.sqrt(spread.item())


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Return :math:`\log \frac1K \sum_k w_k` along a dimension, without overflow.

    Example:
        >>> import torch
        >>> from pyro_vae.base import log_mean_exp
        >>> log_mean_exp(torch.tensor([1000.0, 1000.0]))
        tensor(1000.)
    """
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def importance_weights(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Return :math:`\tilde w_k = w_k / \sum_j w_j` along a dimension, without overflow.

    An entry of log w = −∞ has weight exactly 0, also where all of them are −∞.

    Example:
        >>> import torch
        >>> from pyro_vae.base import importance_weights
        >>> importance_weights(torch.tensor([1000.0, 1000.0, -torch.inf]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    return log_w.softmax(dim).masked_fill(log_w == -math.inf, 0.0)


def log_share_of_others(log_w: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - \tilde w_k)` along the first dimension: the others' share of the weights, as a log.

    No digit is lost where one weight is nearly 1. Of the largest weight the others are summed; any other is at most ½,
    where :math:`\log(1 - \tilde w)` is well conditioned. So memory is that of log w, and not its K-fold.

    Args:
        log_w: (K, ...).

    Example:
        >>> import torch
        >>> log_share_of_others(torch.tensor([0.0, -100.0]).double())
        tensor([-1.0000e+02, -3.7201e-44], dtype=torch.float64)
    """
    log_share = log_w.log_softmax(0)
    largest = torch.zeros_like(log_w, dtype=torch.bool).scatter(0, log_w.argmax(0, keepdim=True), True)
    others = log_share.masked_fill(largest, -math.inf).logsumexp(0)
    return torch.where(largest, others, (-log_share.exp()).log1p())


def mean_of_others(values: Tensor) -> Tensor:
    """Return for each entry along the first dimension the mean of the others; it is −∞ if one of those is.

    Args:
        values: (K, ...), K at least 2.

    Example:
        >>> import torch
        >>> mean_of_others(torch.tensor([1.0, 2.0, -torch.inf]))
        tensor([  -inf,   -inf, 1.5000])
    """
    infinite = values == -math.inf
    finite = values.masked_fill(infinite, 0.0)
    mean = (finite.sum(0) - finite) / (len(values) - 1)
    return mean.masked_fill(infinite.sum(0) - infinite.int() > 0, -math.inf)


def chunk_sizes(total: int, largest: int) -> list[int]:
    """Return the sizes of the chunks that make up ``total``, each at most ``largest``.

    Example:
        >>> chunk_sizes(250, 100)
        [100, 100, 50]
    """
    return [min(largest, total - start) for start in range(0, total, largest)]
