"""One figure of the card: its estimate, unit, how it was computed, and its caveat."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from pyro_vae.base.statistics import Estimate, estimate

NATS = "nats per example"
SHARE = "share of examples"


@dataclass(frozen=True)
class Entry:
    """One figure of the card.

    Args:
        name: the key of the figure in a :class:`~pyro_vae.evaluation.Card`.
        label: its name in the printed card.
        estimate: the figure, its standard error (NaN if none is known), and its number of examples.
        unit: nats per example, bits per dim, share of the examples, ...
        how: how it was computed.
        caveat: when it misleads.
        part: the part of the evaluation that computed it.

    Example:
        >>> print(Entry("elbo", "ELBO", Estimate(-100.654, 0.257, 10_000), NATS, "50 particles per example"))
        ELBO: -100.65 ± 0.26 nats per example (10000 examples; 50 particles per example)
    """

    name: str
    label: str
    estimate: Estimate
    unit: str
    how: str
    caveat: str = ""
    part: str = ""

    @property
    def value(self) -> float:
        """The figure; the mean over examples where it is one."""
        return self.estimate.value

    @property
    def standard_error(self) -> float:
        """Its standard error; NaN where none is known."""
        return self.estimate.standard_error

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.estimate.count or 0

    def __str__(self) -> str:
        return f"{self.label}: {self.estimate} {self.unit} ({self.count} examples; {self.how})"


def mean_entry(name: str, label: str, values: Tensor, unit: str, how: str, caveat: str = "") -> Entry:
    """Return the entry of a mean over examples, with the standard error of that mean.

    Example:
        >>> import torch
        >>> print(mean_entry("elbo", "ELBO", torch.tensor([1.0, 2.0, 3.0]), NATS, "1 particle").estimate)
        2.00 ± 0.58
    """
    return Entry(name, label, estimate(values), unit, how, caveat)


def share_entry(name: str, label: str, hits: Tensor, how: str, caveat: str = "") -> Entry:
    r"""Return the entry of a share of examples, (n,) bool, with its binomial standard error.

    The standard error is that of the share :math:`(h + 2) / (n + 4)` for h hits, so that shares of 0 and 1 have one.

    Source: Agresti and Coull, The American Statistician 52, 1998.

    Example:
        >>> import torch
        >>> print(share_entry("k_hat", "k-hat > 0.7", torch.tensor([True, False, False, False]), "PSIS").estimate)
        0.25 ± 0.17
    """
    p, n = hits.double().mean().item(), len(hits)
    q = (p * n + 2) / (n + 4)
    return Entry(name, label, Estimate(p, math.sqrt(q * (1 - q) / (n + 4)), n), SHARE, how, caveat)


def count_entry(name: str, label: str, value: float, of: int, count: int, how: str, caveat: str = "") -> Entry:
    """Return the entry of a number of dimensions, which has no standard error."""
    return Entry(name, label, Estimate(value, count=count), f"of {of}", how, caveat)


def in_part(entry: Entry, part: str) -> Entry:
    """Return the entry as one of a part."""
    return replace(entry, part=part)
