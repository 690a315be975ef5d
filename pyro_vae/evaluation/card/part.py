"""A part of an evaluation: a typed result for each chunk of examples, and the figures computed from all chunks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from torch import Tensor

from pyro_vae.base.types import Json
from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.capabilities import why_not
from pyro_vae.program.validation import Need

R = TypeVar("R")  # a frozen dataclass of tensors and plain values
PerLatent: TypeAlias = Mapping[str, Mapping[str, list[float]]]
ANNEALED_TOGETHER = 10  # examples


@dataclass(frozen=True)
class Part(Generic[R]):
    """A part of the evaluation.

    Args:
        what: one line that describes it.
        result: the type of the result, a frozen dataclass of tensors whose first dimension is the examples (if there is
            more than one chunk).
        count: number of examples.
        chunk: examples per chunk; a finished chunk is saved.
        work: (subject, where, seed) -> the result of a chunk; the caller isolates random states.
        entries: (subject, the result of all chunks) -> figures.
        options: the options that a chunk depends on.
        depends: other things that a chunk depends on.
        takes_train: whether it depends on the training data.
        per_example: result -> name -> the values of each example.
        per_latent: result -> site -> name -> a number for every latent dimension.
        refuses: why it is not available for a subject; empty if it is.
        omits: figure -> why that one figure is not available; empty if it is.
        needs: of the program's plates: ``card``, a plate of the examples around all sites and all other plates, no
            scale; ``bound``, one plate of the examples that all sites share; ``training``, nothing.
        concerns: whether it is computed where it is not asked for by name.
    """

    what: str
    result: type[R]
    count: Callable[[Subject], int]
    chunk: Callable[[Subject], int]
    work: Callable[[Subject, slice, int], R]
    entries: Callable[[Subject, R], list[Entry]]
    options: tuple[str, ...] = ()
    depends: Callable[[Subject], Mapping[str, Json]] = lambda subject: {}
    takes_train: bool = False
    per_example: Callable[[R], Mapping[str, Tensor]] = lambda result: {}
    per_latent: Callable[[R], PerLatent] = lambda result: {}
    refuses: Callable[[Subject], str] = lambda subject: ""
    omits: Callable[[Subject], Mapping[str, str]] = lambda subject: {}
    needs: Need = "card"
    concerns: Callable[[Subject], bool] = lambda subject: True

    def why_not(self, subject: Subject) -> str:
        """Return why it is not available for a subject; empty if it is."""
        return subject.lacks[self.needs] or self.refuses(subject)


class Results:
    """The results of the parts that were computed."""

    def __init__(self) -> None:
        self._found: dict[type[object], object] = {}

    def put(self, result: object) -> None:
        """Add the result of a part, by its type."""
        self._found[type(result)] = result

    def of(self, part: Part[R]) -> R | None:
        """Return the result of a part, or None if it was not computed."""
        found = self._found.get(part.result)
        assert found is None or isinstance(found, part.result)
        return found


def tensors_of(result: object) -> dict[str, Tensor]:
    """Return the fields of a dataclass that are tensors, by name."""
    return {name: value for name, value in vars(result).items() if isinstance(value, Tensor)}


def simulated_pairs(subject: Subject) -> str:
    """Refuse a program from which x and its latents cannot be simulated, or that has none of that x to score."""
    return several(subject) or subject.capabilities.no_x or subject.capabilities.no_simulated_latents


def several(subject: Subject) -> str:
    """Refuse several tensors."""
    return why_not(lambda: subject.alone)


def placed(subject: Subject) -> str:
    """Refuse particles one by one: latents of the part's own choice are placed in a plate of particles."""
    if subject.options.vectorize_particles:
        return ""
    return (
        "Expected particles in a plate, for latents that are not drawn from the guide; got vectorize_particles=False. "
        "Try a program that broadcasts over particles"
    )


def continuous_only(subject: Subject) -> str:
    """Refuse discrete latents."""
    return "" if subject.continuous else "Expected continuous latents, for gradients; got discrete ones"
