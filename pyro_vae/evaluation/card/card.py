"""The card of an evaluation: its figures, and how it prints."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from pyro_vae.base.errors import lookup
from pyro_vae.base.types import Json
from pyro_vae.evaluation.card.entry import Entry


@dataclass(frozen=True, eq=False, repr=False)
class Card:
    r"""The figures of an evaluation on held-out examples; prints as a card, in a notebook as a table.

    Args:
        entries: the figures, in the order of the card.
        about: what was evaluated: data, binarization, likelihood, seed, device, options.
        left_out: part, or figure of one -> why it was not computed.
        per_example: name -> the values of each example, (n, ...), of the first n of ``index``, on the CPU.
        index: which examples, in the order in which they were evaluated; (N,).
        per_latent: site -> name -> a number for every latent dimension, in the order of the site's event.

    Example:
        >>> from pyro_vae.base import Estimate
        >>> from pyro_vae.evaluation.card import Entry
        >>> entry = Entry("elbo", "ELBO", Estimate(-100.654, 0.257, 10), "nats per example", "1 particle")
        >>> card = Card((entry,), {"data": "10 images"})
        >>> card["elbo"].value
        -100.654
        >>> card
        data        10 images
        <BLANKLINE>
        figure  value           unit              examples  how
        ELBO    -100.65 ± 0.26  nats per example        10  1 particle
    """

    entries: tuple[Entry, ...]
    about: Mapping[str, Json]
    left_out: Mapping[str, str] = field(default_factory=dict)
    per_example: Mapping[str, Tensor] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    per_latent: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return lookup({entry.name: entry for entry in self.entries}, name, "figure")

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __repr__(self) -> str:
        missing = [f"not computed: {part}: {why}" for part, why in self.left_out.items()]
        notes = [""] * bool(self.caveats) + self.caveats
        return "\n".join([*self.head, "", *_columns(self.entries), *notes, *missing])

    def _repr_html_(self) -> str:
        """Return the card for a notebook: head, figures with their caveats as tool tips, what was left out."""
        head = "<br>".join(html.escape(line) for line in self.head)
        titles = "".join(f"<th>{title}</th>" for title in TITLES)
        body = "".join(
            f'<tr title="{html.escape(entry.caveat)}">'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for entry, row in zip(self.entries, rows(self.entries), strict=True)
        )
        missing = "<br>".join(html.escape(f"not computed: {part}: {why}") for part, why in self.left_out.items())
        return f"<p>{head}</p><table><tr>{titles}</tr>{body}</table><p>{missing}</p>"

    @property
    def head(self) -> list[str]:
        """What was evaluated, one line each."""
        return [f"{name:<11} {value}" for name, value in self.about.items() if isinstance(value, str)]

    @property
    def caveats(self) -> list[str]:
        """The caveats, one line each; figures with one caveat share a line."""
        notes: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.caveat:
                notes.setdefault(entry.caveat, []).append(entry.label)
        return [f"{'; '.join(labels)}: {note}" for note, labels in notes.items()]

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per figure: part, label, value, standard_error, unit, examples, how, caveat; the name is the
        index.

        Example:
            >>> import torch
            >>> from pyro_vae import VAE, evaluate
            >>> x = torch.bernoulli(torch.full((40, 6), 0.3))
            >>> frame = evaluate(VAE((6,), latent_dim=2), x, only=["bounds"], device="cpu").to_dataframe()
            >>> list(frame.columns[:4]), int(frame.loc["elbo", "examples"])
            (['part', 'label', 'value', 'standard_error'], 40)
        """
        found = [
            (e.name, e.part, e.label, e.value, e.standard_error, e.unit, e.count, e.how, e.caveat) for e in self.entries
        ]
        columns = ["name", "part", "label", "value", "standard_error", "unit", "examples", "how", "caveat"]
        return pd.DataFrame(found, columns=columns).set_index("name")

    def as_dict(self) -> dict[str, Json]:
        """Return the card ready for JSON; values per example are left out."""
        return {
            "about": dict(self.about),
            "figures": [_as_dict(entry) for entry in self.entries],
            "left_out": dict(self.left_out),
            "latents": {site: dict(values) for site, values in self.per_latent.items()},
        }


TITLES = ("figure", "value", "unit", "examples", "how")


def rows(entries: Iterable[Entry]) -> list[tuple[str, str, str, str, str]]:
    """Return label, figure, unit, number of examples and how, as text, a tuple per figure."""
    return [(entry.label, str(entry.estimate), entry.unit, str(entry.count), entry.how) for entry in entries]


def _as_dict(entry: Entry) -> dict[str, Json]:
    return {
        "name": entry.name,
        "label": entry.label,
        "value": entry.value,
        "standard_error": entry.standard_error,
        "unit": entry.unit,
        "count": entry.count,
        "how": entry.how,
        "caveat": entry.caveat,
        "part": entry.part,
    }


def _columns(entries: Iterable[Entry]) -> list[str]:
    table = [TITLES, *rows(entries)]
    label, value, unit, count, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    return [f"{a:<{label}}  {b:<{value}}  {c:<{unit}}  {d:>{count}}  {e}" for a, b, c, d, e in table]
