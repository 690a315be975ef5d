"""The parts of the card on annealing: AIS, and bounds from both sides."""

from typing import Any

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import FEW, Part, continuous_only
from pyro_vae.evaluation.methods.annealing import annealed_log_evidence, bidirectional
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


def annealing(subject: Subject, where: slice, seed: int) -> Values:
    """Log p(x) by annealing from the prior, (B,), and how often its moves are accepted."""
    found = annealed_log_evidence(subject.program, subject.x[where], seed=seed, **_settings(subject))
    assert found.acceptance is not None
    return {"annealed": found.value, "annealed_error": found.standard_error, "acceptance": found.acceptance}


def annealing_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) by annealed importance sampling."""
    trust = "from below: few temperatures make it too low; the sandwich says by how much, on the model's own data"
    how = f"{_chains(subject)}; {values['acceptance'].mean():.0%} accepted; {subject.pixels}"
    return [over_data("annealed", "log p(x), AIS", values["annealed"], NATS, how, trust)]


def sandwich(subject: Subject, where: slice, seed: int) -> Values:
    """Lower and upper bound of log p(x), (B,), for data that the model makes."""
    found = bidirectional(subject.program, subject.x[where], seed=seed, **_settings(subject))
    return {"lower": found.lower.value, "upper": found.upper.value}


def sandwich_entries(subject: Subject, values: Values) -> list[Entry]:
    """Both sides, and their distance."""
    how = f"simulated data; {_chains(subject)}, tuned before"
    trust = "of the model's own data; on held-out data annealing may be less accurate than the width says"
    return [
        over_data("sandwich_lower", "log p(x) of own data, lower", values["lower"], NATS, f"forward; {how}", trust),
        over_data("sandwich_upper", "log p(x) of own data, upper", values["upper"], NATS, f"reverse; {how}", trust),
        over_data("sandwich_width", "width of the sandwich", values["upper"] - values["lower"], NATS, how, trust),
    ]


def _settings(subject: Subject) -> dict[str, Any]:
    return {"chains": subject.options.annealing_chains, "temperatures": subject.options.annealing_temperatures}


def _chains(subject: Subject) -> str:
    return f"{subject.options.annealing_chains} chains of {subject.options.annealing_temperatures} temperatures"


ANNEALING = Part(
    what="log p(x) by annealed importance sampling",
    count=lambda subject: subject.options.annealing_data,
    chunk=lambda subject: FEW,
    work=annealing,
    entries=annealing_entries,
    options=("annealing_chains", "annealing_temperatures"),
    per_datum=True,
    refuses=continuous_only,
)


SANDWICH = Part(
    what="log p(x) of simulated data between two bounds, by bidirectional Monte Carlo",
    count=lambda subject: subject.options.sandwich_data,
    chunk=lambda subject: FEW,
    work=sandwich,
    entries=sandwich_entries,
    options=("annealing_chains", "annealing_temperatures"),
    refuses=continuous_only,
)
