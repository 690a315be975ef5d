"""A part of an evaluation: what it computes for a chunk of data, and the figures it makes of all chunks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


@dataclass(frozen=True)
class Part:
    """A part of the evaluation.

    Args:
        what: one line for people.
        count: how many data it takes.
        chunk: data in a chunk; a finished chunk is kept.
        work: (subject, where, seed) -> name -> values, the data in their first dimension; random states are its own.
        entries: (subject, values of all chunks) -> figures.
        options: the options that a chunk depends on.
        depends: what else it depends on.
        takes_train: whether it depends on the training data.
        per_datum: whether the values are of data, one by one.
        refuses: why it cannot be computed for a subject; empty if it can.
    """

    what: str
    count: Callable[[Subject], int]
    chunk: Callable[[Subject], int]
    work: Callable[[Subject, slice, int], Values]
    entries: Callable[[Subject, Values], list[Entry]]
    options: tuple[str, ...] = ()
    depends: Callable[[Subject], Mapping[str, Any]] = lambda subject: {}
    takes_train: bool = False
    per_datum: bool = False
    refuses: Callable[[Subject], str] = lambda subject: ""


FEW = 10  # data that are annealed together


def continuous_only(subject: Subject) -> str:
    """Refuse discrete latents."""
    return "" if subject.continuous else "Expected continuous latents, which gradients move; got discrete ones"


def all_data(subject: Subject) -> int:
    """Return how many data the evaluation takes."""
    return subject.options.num_data or len(subject)
