"""The results of a benchmark: plain values for tables, JSON and figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyro_vae.studies.benchmark.agreement import Agreement

Status = Literal["measured", "absent", "disagrees", "failed"]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles.

    Example:
        >>> from pyro_vae.studies.benchmark import spread
        >>> spread([3.0, 1.0, 2.0, 4.0, 5.0])
        Spread(median=3.0, lower=2.0, upper=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


@dataclass(frozen=True)
class Row:
    """The result of one variant on one size."""

    variant: str
    title: str
    status: Status
    reason: str = ""  # why it was not timed
    rounds: tuple[float, ...] = ()  # seconds per step, one value per round
    first_step: float | None = None  # seconds from construction to the end of the first step, with compilation
    memory: float | None = None  # bytes, the working memory of a step
    agreement: Agreement | None = None

    @property
    def seconds(self) -> Spread | None:
        """Seconds per step."""
        return spread(self.rounds) if self.rounds else None

    def ratio_to(self, other: "Row") -> Spread | None:
        """Return the ratio of the times per step, taken in each round; None unless both were timed."""
        if not (self.rounds and other.rounds):
            return None
        return spread([mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)])

    def amortises_after(self, other: "Row") -> float | None:
        """Return the number of steps after which a slower first step is amortised; infinity for never."""
        if self.seconds is None or other.seconds is None or self.first_step is None or other.first_step is None:
            return None
        saved = other.seconds.median - self.seconds.median
        return max(0.0, (self.first_step - other.first_step) / saved) if saved > 0 else float("inf")


@dataclass(frozen=True)
class SizeReport:
    """The results of every variant on one size."""

    name: str
    title: str
    operations: float  # in the matrix products of a step
    bytes: float  # read and written by a step
    steps: int  # per round
    rows: tuple[Row, ...]

    def row(self, variant: str) -> Row | None:
        """Return the row of a variant; None if it was not requested."""
        return next((row for row in self.rows if row.variant == variant), None)

    def ratio(self, over: str, under: str) -> Spread | None:
        """Return the ratio of two variants' times per step; None unless both were timed."""
        first, second = self.row(over), self.row(under)
        return first.ratio_to(second) if first and second else None


@dataclass(frozen=True)
class Point:
    """One size of a series that varies a single quantity."""

    axis: str
    value: int
    report: SizeReport


@dataclass(frozen=True)
class BoundSpeed:
    """The speed of the importance-weighted bound L_K on images."""

    variant: str  # svi: eager; compiled
    num_images: int
    num_particles: int
    rounds: tuple[float, ...]  # seconds for all images

    @property
    def seconds(self) -> Spread:
        """Seconds for all images."""
        return spread(self.rounds)

    @property
    def images_per_second(self) -> Spread:
        """Images per second."""
        return spread([self.num_images / seconds for seconds in self.rounds])


@dataclass(frozen=True)
class Report:
    """The results of one run of the benchmark."""

    device: str  # cpu or cuda
    sizes: tuple[SizeReport, ...]
    scaling: tuple[Point, ...]
    evaluations: tuple[BoundSpeed, ...]
    rate: float | None  # operations per second, measured; CUDA only
    bandwidth: float | None  # bytes per second, measured; CUDA only

    def size(self, name: str) -> SizeReport | None:
        """Return the report of a size; None if it was not requested."""
        return next((size for size in self.sizes if size.name == name), None)

    def roofline(self, size: SizeReport) -> float | None:
        """Return the larger of bytes / bandwidth and operations / rate, in seconds per step."""
        if self.rate is None or self.bandwidth is None:
            return None
        return max(size.operations / self.rate, size.bytes / self.bandwidth)

    @property
    def wrong(self) -> tuple[Row, ...]:
        """The rows of variants that compute other maths or raised an error."""
        reports = (*self.sizes, *(point.report for point in self.scaling))
        return tuple(row for report in reports for row in report.rows if row.status in ("disagrees", "failed"))
