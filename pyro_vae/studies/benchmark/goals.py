"""The project's speed goals beside the measured figures."""

from dataclasses import dataclass
from typing import Literal

from pyro_vae.studies.benchmark.records import Report, Spread

REPLICATES = 16
EVALUATED = 10_000  # images in the goal for L_5000


@dataclass(frozen=True)
class Goal:
    """A ratio between two variants on one size, and its limit."""

    text: str
    device: Literal["cpu", "cuda"]
    over: str
    under: str
    limit: float
    sense: Literal["≥", "≤"]
    size: str = "mlp"

    def figure(self, report: Report) -> Spread | None:
        """Return the ratio; None unless both variants were timed."""
        size = report.size(self.size)
        return size.ratio(self.over, self.under) if size else None

    def missing(self, report: Report) -> str:
        """Return why there is no ratio."""
        size = report.size(self.size)
        if size is None:
            return f"size {self.size} was not measured"
        rows = {name: size.row(name) for name in (self.over, self.under)}
        return "; ".join(
            f"{name}: {row.reason if row else 'not requested'}"
            for name, row in rows.items()
            if row is None or not row.rounds
        )


@dataclass(frozen=True)
class Outcome:
    """A goal with its figure, or with the reason why there is none."""

    goal: str
    wanted: str
    figure: Spread | None = None
    unit: str = "×"
    reason: str = ""
    met: bool | None = None


GOALS = (
    Goal("engine compiled against stock Pyro", "cpu", "stock", "compiled", 3.0, "≥"),
    Goal("engine compiled against NumPyro", "cpu", "numpyro", "compiled", 1.5, "≥"),
    Goal("engine compiled against the loop by hand under torch.compile", "cpu", "hand-compiled", "compiled", 1.05, "≥"),
    Goal("engine compiled over the matrix products alone", "cpu", "compiled", "floor", 1.6, "≤"),
    Goal("on a GPU, engine compiled against stock Pyro", "cuda", "stock", "compiled", 40.0, "≥"),
    Goal("on a GPU, engine compiled against NumPyro", "cuda", "numpyro", "compiled", 1.5, "≥"),
)
ELSEWHERE = {"cpu": "measured on the CPU only", "cuda": "no GPU here"}


def outcomes(report: Report) -> list[Outcome]:
    """Return every goal with its figure, or with the reason why it was not measured."""
    return [*(_of_ratio(goal, report) for goal in GOALS), _of_replicates(report), _of_evaluation(report)]


def _of_ratio(goal: Goal, report: Report) -> Outcome:
    wanted = f"{goal.sense} {goal.limit:g} ×"
    if report.device != goal.device:
        return Outcome(goal.text, wanted, reason=ELSEWHERE[goal.device])
    figure = goal.figure(report)
    if figure is None:
        return Outcome(goal.text, wanted, reason=goal.missing(report))
    met = figure.median >= goal.limit if goal.sense == "≥" else figure.median <= goal.limit
    return Outcome(goal.text, wanted, figure, met=met)


def _of_replicates(report: Report) -> Outcome:
    text, limit = f"on a GPU, {REPLICATES} replicates against one", 3.0
    wanted = f"≤ {limit:g} ×"
    if report.device != "cuda":
        return Outcome(text, wanted, reason=ELSEWHERE["cuda"])
    points = {point.value: point.report.row("compiled") for point in report.scaling if point.axis == "replicates"}
    one, many = points.get(1), points.get(REPLICATES)
    figure = many.ratio_to(one) if one and many else None
    if figure is None:
        return Outcome(text, wanted, reason="replicates were not measured")
    return Outcome(text, wanted, figure, met=figure.median <= limit)


def _of_evaluation(report: Report) -> Outcome:
    text, limit = f"on a GPU, L_5000 of {EVALUATED:,} images, 784-200-200-50", 10.0
    wanted = f"≤ {limit:g} s"
    if report.device != "cuda":
        return Outcome(text, wanted, reason=ELSEWHERE["cuda"])
    fitting = [e for e in report.evaluations if (e.num_images, e.num_particles) == (EVALUATED, 5000)]
    if not fitting:
        return Outcome(text, wanted, reason=f"L_5000 of {EVALUATED:,} images was not measured")
    figure = min((e.seconds for e in fitting), key=lambda seconds: seconds.median)
    return Outcome(text, wanted, figure, "s", met=figure.median <= limit)
