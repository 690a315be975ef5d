"""What a benchmark found: plain values, ready for tables, JSON and figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyro_vae.studies.benchmark.agreement import Agreement

Status = Literal["measured", "absent", "disagrees", "failed"]


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the quartiles around it."""

    median: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles.

    Example:
        >>> spread([3.0, 1.0, 2.0, 4.0, 5.0])
        Spread(median=3.0, lower=2.0, upper=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


@dataclass(frozen=True)
class Row:
    """One variant on one size."""

    variant: str
    title: str
    status: Status
    reason: str = ""  # why there is no figure
    rounds: tuple[float, ...] = ()  # seconds a step, a figure a round
    first_step: float | None = None  # seconds until the first step is done, loading the compiler and compiling included
    memory: float | None = None  # bytes that a step works with
    agreement: Agreement | None = None

    @property
    def seconds(self) -> Spread | None:
        """Of a step."""
        return spread(self.rounds) if self.rounds else None

    def times(self, other: "Row") -> Spread | None:
        """Return how many times as long this one takes as the other: the ratio of each round, then the median."""
        if not (self.rounds and other.rounds):
            return None
        return spread([mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)])

    def amortises_after(self, other: "Row") -> float | None:
        """Return the number of steps that amortises a slower start; infinity for never."""
        if self.seconds is None or other.seconds is None or self.first_step is None or other.first_step is None:
            return None
        saved = other.seconds.median - self.seconds.median
        return max(0.0, (self.first_step - other.first_step) / saved) if saved > 0 else float("inf")


@dataclass(frozen=True)
class SizeReport:
    """Every variant on one size."""

    name: str
    title: str
    operations: float  # of the matrix products of a step
    bytes: float
    steps: int  # a round
    rows: tuple[Row, ...]

    def row(self, variant: str) -> Row | None:
        """Return the row of a variant, if it was asked for."""
        return next((row for row in self.rows if row.variant == variant), None)

    def ratio(self, over: str, under: str) -> Spread | None:
        """Return how many times as long one variant takes as another."""
        first, second = self.row(over), self.row(under)
        return first.times(second) if first and second else None


@dataclass(frozen=True)
class Point:
    """One size of a series in which a single quantity changes."""

    axis: str
    value: int
    report: SizeReport


@dataclass(frozen=True)
class BoundSpeed:
    """How fast the importance-weighted bound L_K of held-out images is."""

    how: str
    images: int
    particles: int
    rounds: tuple[float, ...]  # seconds for all images

    @property
    def seconds(self) -> Spread:
        """For all images."""
        return spread(self.rounds)

    @property
    def images_per_second(self) -> Spread:
        """The rate."""
        return spread([self.images / seconds for seconds in self.rounds])


@dataclass(frozen=True)
class Report:
    """All that one run of the benchmark found."""

    device: str  # cpu or cuda
    sizes: tuple[SizeReport, ...]
    scaling: tuple[Point, ...]
    evaluations: tuple[BoundSpeed, ...]
    rate: float | None  # operations a second, measured; CUDA only
    bandwidth: float | None  # bytes a second, likewise

    def size(self, name: str) -> SizeReport | None:
        """Return the report of a size, if it was asked for."""
        return next((size for size in self.sizes if size.name == name), None)

    def roofline(self, size: SizeReport) -> float | None:
        """Return the larger of bytes over bandwidth and operations over rate, in seconds a step."""
        if self.rate is None or self.bandwidth is None:
            return None
        return max(size.operations / self.rate, size.bytes / self.bandwidth)

    @property
    def wrong(self) -> tuple[Row, ...]:
        """The rows that were asked for and came to nothing, through a fault: other maths, or an error."""
        reports = (*self.sizes, *(point.report for point in self.scaling))
        return tuple(row for report in reports for row in report.rows if row.status in ("disagrees", "failed"))
