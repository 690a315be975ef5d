"""The card of an evaluation: its figures, each with what it is of, how it was computed and when not to trust it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import lookup
from pyro_vae.numerics import estimate

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
        return plus_minus(self.mean, self.standard_error)

    def __str__(self) -> str:
        return f"{self.label}: {self.figure} {self.unit} ({self.count} data; {self.how})"


@dataclass(frozen=True, eq=False)
class Evaluation:
    r"""What a program was found to be worth on held-out data; prints as a card.

    Args:
        entries: the figures, in the order of the card.
        about: what was evaluated: data, binarization, likelihood, seed, device, options.
        left_out: part -> why it was not computed.
        per_datum: name -> the values datum by datum, (n, ...), of the first n of ``index``, on the CPU.
        index: which data, in the order in which they were taken; (N,).
        per_latent: site -> name -> a number for every latent dimension, in the order of the site's event.

    Example:
        >>> card = Evaluation((Entry("elbo", "ELBO", -100.654, 0.257, NATS, 10, "1 draw"),), {"data": "10 images"})
        >>> card["elbo"].mean
        -100.654
        >>> print(card)
        data        10 images
        <BLANKLINE>
        figure  value           unit            data  how
        ELBO    -100.65 ± 0.26  nats per datum    10  1 draw
    """

    entries: tuple[Entry, ...]
    about: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    per_datum: Mapping[str, Tensor] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    per_latent: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return lookup({entry.name: entry for entry in self.entries}, name, "figure")

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __str__(self) -> str:
        head = [f"{name:<11} {value}" for name, value in self.about.items() if isinstance(value, str)]
        missing = [f"not computed: {part}: {why}" for part, why in self.left_out.items()]
        return "\n".join([*head, "", *_columns(self.entries), *([""] if self.trust else []), *self.trust, *missing])

    @property
    def trust(self) -> list[str]:
        """What to keep in mind, a line each: figures of one note share it."""
        notes: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.trust:
                notes.setdefault(entry.trust, []).append(entry.label)
        return [f"{', '.join(labels)}: {note}" for note, labels in notes.items()]

    def as_dict(self) -> dict[str, Any]:
        """Return the card ready for JSON; values datum by datum are left out."""
        figures = [asdict(entry) for entry in self.entries]
        latents = {site: dict(values) for site, values in self.per_latent.items()}
        return {
            "about": dict(self.about),
            "figures": figures,
            "left_out": dict(self.left_out),
            "latents": latents,
        }


def over_data(name: str, label: str, values: Tensor, unit: str, how: str, trust: str = "") -> Entry:
    """Return the entry of a mean over data, with the standard error of that mean.

    Example:
        >>> over_data("elbo", "ELBO", torch.tensor([1.0, 2.0, 3.0]), NATS, "1 draw").figure
        '2.00 ± 0.58'
    """
    found = estimate(values)
    return Entry(name, label, found.mean, found.standard_error, unit, found.count, how, trust)


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


def plus_minus(mean: float, standard_error: float) -> str:
    """Write a figure to two digits of its standard error; a figure without one to four digits.

    Example:
        >>> plus_minus(-100.65412, 0.2571), plus_minus(3.14159, math.nan), plus_minus(1.0, 0.0), plus_minus(-41.2, 12.3)
        ('-100.65 ± 0.26', '3.142', '1', '-41 ± 12')
    """
    if not (math.isfinite(mean) and math.isfinite(standard_error) and standard_error > 0):
        return f"{mean:.4g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(standard_error))))
    return f"{mean:.{digits}f} ± {standard_error:.{digits}f}"


def rows(entries: Iterable[Entry]) -> list[tuple[str, str, str, str, str]]:
    """Return label, figure, unit, number of data and how, as text, a tuple a figure."""
    return [(entry.label, entry.figure, entry.unit, str(entry.count), entry.how) for entry in entries]


def _columns(entries: Iterable[Entry]) -> list[str]:
    table = [("figure", "value", "unit", "data", "how"), *rows(entries)]
    label, value, unit, count, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    return [f"{a:<{label}}  {b:<{value}}  {c:<{unit}}  {d:>{count}}  {e}" for a, b, c, d, e in table]
