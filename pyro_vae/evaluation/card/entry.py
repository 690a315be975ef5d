"""One figure of the card: what it is of, how it was computed and its standard error."""

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.base.statistics import Estimate, estimate

NATS = "nats per datum"


SHARE = "share of data"


@dataclass(frozen=True)
class Entry:
    """One figure of the card.

    Args:
        name: what :class:`Evaluation` is indexed by.
        label: what the card calls it.
        mean: the figure; the mean over data where it is one.
        standard_error: of the mean; NaN where none is known.
        unit: nats per datum, bits per dim, share of the data, ...
        count: how many data it is of.
        how: how it was computed.
        trust: when not to trust it, on this program where that can be told.
        part: the part of the evaluation that gave it.

    Example:
        >>> print(Entry("elbo", "ELBO", -100.654, 0.257, NATS, 10_000, "50 draws a datum"))
        ELBO: -100.65 ± 0.26 nats per datum (10000 data; 50 draws a datum)
    """

    name: str
    label: str
    mean: float
    standard_error: float
    unit: str
    count: int
    how: str
    trust: str = ""
    part: str = ""

    @property
    def figure(self) -> str:
        """The mean, and its standard error where one is known."""
        return str(Estimate(self.mean, self.standard_error))

    def __str__(self) -> str:
        return f"{self.label}: {self.figure} {self.unit} ({self.count} data; {self.how})"


def over_data(name: str, label: str, values: Tensor, unit: str, how: str, trust: str = "") -> Entry:
    """Return the entry of a mean over data, with the standard error of that mean.

    Example:
        >>> over_data("elbo", "ELBO", torch.tensor([1.0, 2.0, 3.0]), NATS, "1 draw").figure
        '2.00 ± 0.58'
    """
    found = estimate(values)
    return Entry(name, label, found.value, found.standard_error, unit, len(values), how, trust)


def share(name: str, label: str, hits: Tensor, how: str, trust: str = "") -> Entry:
    r"""Return the entry of a share of data, (n,) bool, with its binomial standard error.

    The error is that at :math:`(h + 2) / (n + 4)` for h hits (Agresti and Coull, The American Statistician 52,
    1998): no hit among n data does not mean that there is none among all.

    Example:
        >>> share("k_hat", "k-hat > 0.7", torch.tensor([True, False, False, False]), "PSIS").figure
        '0.25 ± 0.17'
    """
    p, n = hits.double().mean().item(), len(hits)
    q = (p * n + 2) / (n + 4)
    return Entry(name, label, p, math.sqrt(q * (1 - q) / (n + 4)), SHARE, n, how, trust)


def count_entry(name: str, label: str, value: float, of: int, count: int, how: str, trust: str) -> Entry:
    """Return the entry of a count of dimensions, which has no standard error."""
    return Entry(name, label, value, float("nan"), f"of {of}", count, how, trust)
