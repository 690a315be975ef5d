"""Small numerical tools that every layer shares: means with standard errors, bounded scales."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean of independent terms with its standard error, in the unit of the terms.

    Example:
        >>> estimate(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(mean=2.0, standard_error=0.5773502691896258, count=3)
    """

    mean: float
    standard_error: float  # NaN for a single term: one term says nothing of its spread
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


def estimate(terms: Tensor) -> Estimate:
    r"""Return the mean of a flat tensor and its standard error :math:`s/\sqrt{n}`, computed in float64."""
    values = terms.detach().flatten().double()
    n = len(values)
    spread = values.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
    return Estimate(values.mean().item(), spread, n)


def bounded_below(log_scale: Tensor, floor: float) -> Tensor:
    r"""Keep a log-scale above ``log(floor)``, smoothly: :math:`\log f + \mathrm{softplus}(s - \log f)`.

    Far above the floor the value is unchanged; far below it the gradient fades instead of stopping dead,
    as it would with a clamp.

    Args:
        log_scale: any shape.
        floor: the smallest scale, in the unit of the data; positive.

    Example:
        >>> bounded_below(torch.tensor([-50.0, -2.0]), floor=0.01).exp()
        tensor([0.0100, 0.1453])
    """
    log_floor = math.log(floor)
    return log_floor + F.softplus(log_scale - log_floor)
