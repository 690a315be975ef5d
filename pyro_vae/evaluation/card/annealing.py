"""The parts of the card on annealing: AIS, and bounds from both sides."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import (
    ANNEALED_TOGETHER,
    Part,
    continuous_only,
    placed,
    simulated_pairs,
    tensors_of,
)
from pyro_vae.evaluation.methods.annealing import annealed_log_evidence, bidirectional
from pyro_vae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class Annealed:
    """log p(x) by annealing from the prior, its standard error, and the acceptance rate, each (B,)."""

    annealed: Tensor
    annealed_error: Tensor
    acceptance: Tensor


@dataclass(frozen=True, eq=False)
class BothSides:
    """Lower and upper bound of log p(x), (B,), nats, for examples that the model generates."""

    lower: Tensor
    upper: Tensor


def annealing(subject: Subject, where: slice, seed: int) -> Annealed:
    """Return log p(x) by annealing from the prior."""
    chains, temperatures = subject.options.annealing_chains, subject.options.annealing_temperatures
    found = annealed_log_evidence(
        subject.program, subject.x[where], seed=seed, chains=chains, temperatures=temperatures
    )
    assert found.acceptance is not None
    return Annealed(found.value, found.standard_error, found.acceptance)


def annealing_entries(subject: Subject, found: Annealed) -> list[Entry]:
    """Return log p(x) by annealed importance sampling."""
    caveat = "a lower bound, too low with few temperatures; the sandwich shows by how much, on simulated examples"
    how = f"{_chains(subject)}; {found.acceptance.mean():.0%} accepted; {subject.pixels}"
    return [mean_entry("annealed", "log p(x), AIS", found.annealed, NATS, how, caveat)]


def sandwich(subject: Subject, where: slice, seed: int) -> BothSides:
    """Return lower and upper bound of log p(x) for simulated examples."""
    chains, temperatures = subject.options.annealing_chains, subject.options.annealing_temperatures
    found = bidirectional(subject.program, subject.alone[where], seed=seed, chains=chains, temperatures=temperatures)
    return BothSides(found.lower.value, found.upper.value)


def sandwich_entries(subject: Subject, found: BothSides) -> list[Entry]:
    """Return both bounds, and their difference."""
    how = f"simulated examples; {_chains(subject)}, step sizes tuned in a separate run"
    caveat = "on simulated examples; on held-out examples annealing may be less accurate than the width shows"
    lower, upper = f"forward; {how}", f"reverse; {how}"
    return [
        mean_entry("sandwich_lower", "log p(x) of simulated x, lower", found.lower, NATS, lower, caveat),
        mean_entry("sandwich_upper", "log p(x) of simulated x, upper", found.upper, NATS, upper, caveat),
        mean_entry("sandwich_width", "width of the sandwich", found.upper - found.lower, NATS, how, caveat),
    ]


def _chains(subject: Subject) -> str:
    return f"{subject.options.annealing_chains} chains of {subject.options.annealing_temperatures} temperatures"


ANNEALING = Part(
    what="log p(x) by annealed importance sampling",
    result=Annealed,
    count=lambda subject: subject.options.annealing_examples,
    chunk=lambda subject: ANNEALED_TOGETHER,
    work=annealing,
    entries=annealing_entries,
    options=("annealing_chains", "annealing_temperatures"),
    per_example=tensors_of,
    refuses=lambda subject: placed(subject) or continuous_only(subject),
)
SANDWICH = Part(
    what="log p(x) of simulated examples between two bounds, by bidirectional Monte Carlo",
    result=BothSides,
    count=lambda subject: subject.options.sandwich_examples,
    chunk=lambda subject: ANNEALED_TOGETHER,
    work=sandwich,
    entries=sandwich_entries,
    options=("annealing_chains", "annealing_temperatures"),
    refuses=lambda subject: placed(subject) or continuous_only(subject) or simulated_pairs(subject),
)
