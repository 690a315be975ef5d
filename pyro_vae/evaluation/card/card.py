"""The card of an evaluation: its figures, and how it prints."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.base.errors import lookup
from pyro_vae.evaluation.card.entry import Entry


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
        >>> from pyro_vae.evaluation.card.entry import NATS
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


def rows(entries: Iterable[Entry]) -> list[tuple[str, str, str, str, str]]:
    """Return label, figure, unit, number of data and how, as text, a tuple a figure."""
    return [(entry.label, entry.figure, entry.unit, str(entry.count), entry.how) for entry in entries]


def _columns(entries: Iterable[Entry]) -> list[str]:
    table = [("figure", "value", "unit", "data", "how"), *rows(entries)]
    label, value, unit, count, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    return [f"{a:<{label}}  {b:<{value}}  {c:<{unit}}  {d:>{count}}  {e}" for a, b, c, d, e in table]
