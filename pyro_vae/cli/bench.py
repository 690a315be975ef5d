"""The command ``bench``: the speed of a step, beside the alternatives."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.files import check_output, write_json
from pyro_vae.cli.options import Words
from pyro_vae.cli.progress import say
from pyro_vae.figures.benchmark import plot_benchmark
from pyro_vae.studies.benchmark.goals import Outcome, outcomes
from pyro_vae.studies.benchmark.machine import Machine, describe_machine
from pyro_vae.studies.benchmark.memory import MEANING
from pyro_vae.studies.benchmark.records import Report, Row, SizeReport, Spread
from pyro_vae.studies.benchmark.sizes import SIZES
from pyro_vae.studies.benchmark.suite import COMPILES, SCALING, VARIANTS, Plan, benchmark

SLOW = (*COMPILES, "numpyro")  # left out by --quick
EVALUATED = {"cpu": 100, "cuda": 10_000}


@dataclass(frozen=True)
class BenchOptions:
    """Time a step of every engine and peer, in turn, after a check that their maths agree.

    Args:
        device: cpu, cuda, or auto: cuda where available.
        sizes: names separated by commas; by default mlp,iwae-1,iwae-5,iwae-50,conv.
        variants: names separated by commas; by default all: stock,stock-unvalidated,elbo-module,svi,compiled,hand,
            hand-compiled,numpyro,floor.
        rounds: rounds of timing; 15 by default.
        threads: torch's threads; torch chooses by default. JAX has its own pool.
        scaling: also measure cost against batch size, latent dimensions and particles.
        quick: a smoke test of seconds: the smallest size, three short rounds, nothing that compiles unless named. Its
            figures mean little.
        json: write every figure to this file.
        figure: plot the figures to this file.
    """

    device: str = "auto"
    sizes: Words | None = None
    variants: Words | None = None
    rounds: int | None = None
    threads: PositiveInt | None = None
    scaling: bool = True
    quick: bool = False
    json: str | None = None
    figure: str | None = None

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 2:
            raise InputError("rounds of at least 2", self.rounds, "rounds=2")

    def plan(self) -> Plan:
        """Return what to measure."""
        device = resolve_device(self.device)
        sizes = self.sizes or (["mlp"] if self.quick else list(SIZES))
        variants = self.variants or [name for name in VARIANTS if not (self.quick and name in SLOW)]
        axes = {axis: values for axis, (_, _, values, _) in SCALING.items()}
        if self.quick:
            few = {"batch": (8, 32)} if self.scaling else {}
            return Plan(device, sizes, variants, self.rounds or 3, 0.01, 8, few, 2, 50)
        scaling = axes if self.scaling else {}
        return Plan(device, sizes, variants, self.rounds or 15, scaling=scaling, num_images=EVALUATED[device.type])


def bench(wanted: BenchOptions, console: Console) -> int:
    """Measure, print tables, write JSON and figure; 1 if a variant computed something else or failed."""
    for path in (wanted.json, wanted.figure):
        check_output(path)
    plan = wanted.plan()
    with _threads(wanted.threads), console.status("starting") as status:
        machine = describe_machine(plan.device)
        report = benchmark(plan, lambda what, done, total: status.update(f"{what}, {done} of {total}"))
    _print(report, machine, plan, console)
    if wanted.json:
        write_json(Path(wanted.json), as_json(report, machine, wanted))
        say(console, f"figures   {wanted.json}")
    if wanted.figure:
        plot_benchmark(Path(wanted.figure), report)
        say(console, f"picture   {wanted.figure}")
    return 1 if report.wrong else 0


def as_json(report: Report, machine: Machine, wanted: BenchOptions) -> dict[str, object]:
    """Return every figure, with the derived ones."""
    return {
        "command": " ".join(["pyro-vae", *sys.argv[1:]]),
        "options": asdict(wanted),
        "machine": machine,
        "memory": MEANING,
        "sizes": [_size_as_json(size, report) for size in report.sizes],
        "scaling": [
            {"axis": point.axis, "value": point.value, **_size_as_json(point.report, report)}
            for point in report.scaling
        ],
        "evaluation": [
            {**asdict(found), "images_per_second": asdict(found.images_per_second)} for found in report.evaluations
        ],
        "device": {"operations_per_second": report.rate, "bytes_per_second": report.bandwidth},
        "goals": [asdict(outcome) for outcome in outcomes(report)],
    }


def _size_as_json(size: SizeReport, report: Report) -> dict[str, object]:
    rows = []
    for row in size.rows:
        passed = None if row.agreement is None else row.agreement.passed
        found = {**asdict(row), "agrees": passed, "seconds": row.seconds and asdict(row.seconds)}
        found |= {"over_svi": _as_dict(size.ratio(row.variant, "svi")), "amortises_after_steps": _amortises(size, row)}
        rows.append(found)
    return {**asdict(size), "rows": rows, "roofline_seconds": report.roofline(size)}


def _as_dict(figure: Spread | None) -> dict[str, float] | None:
    return None if figure is None else asdict(figure)


def _print(report: Report, machine: Machine, plan: Plan, console: Console) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    for line in (
        f"machine   {machine['processor']}, {machine['cores']} cores; on {machine['device']}",
        f"torch     {machine['threads']} threads, float32 products {machine['float32_matmul_precision']}; {versions}",
        f"rounds    {plan.rounds}, variants interleaved; medians and quartiles; memory beyond parameters and optimiser",
    ):
        say(console, line)
    for size in report.sizes:
        console.print(speed_table(size, report))
        console.print(start_table(size))
    if report.scaling:
        console.print(scaling_table(report))
    for found in report.evaluations:
        rate = written(found.images_per_second)
        how = {"svi": "eager", "compiled": "compiled, compilation included"}[found.variant]
        text = f"L_{found.num_particles} of {found.num_images} images, 784-200-200-50, {how}: {rate} images/s"
        say(console, text)
    console.print(goal_table(outcomes(report)))
    for row in report.wrong:
        say(console, f"{row.status}: {row.variant}: {row.reason}", style="red")


def speed_table(size: SizeReport, report: Report) -> Table:
    """Return the time of a step for each variant, relative to stock Pyro and to the floor."""
    title = f"{size.name}: {size.title}; {size.operations / 1e6:.0f} million operations per step"
    table = _table(title, "", "ms per step", "× as fast as stock", "× the floor")
    for row in size.rows:
        if row.rounds:
            faster, over = size.ratio("stock", row.variant), size.ratio(row.variant, "floor")
            table.add_row(row.title, written(row.seconds, 1e3), written(faster), written(over))
        else:
            table.add_row(row.title, f"[{'dim' if row.status == 'absent' else 'red'}]{row.status}[/]", "", "")
    bound = report.roofline(size)
    if bound is not None:
        table.add_row("floor: larger of bytes / bandwidth, operations / rate", f"{1e3 * bound:.4f}", "", "computed")
    return table


def start_table(size: SizeReport) -> Table:
    """Return for each variant the first step, when it is amortised, memory, and how the maths was checked."""
    table = _table("", "", "first step", "amortised after", "MB", "maths")
    for row in size.rows:
        if not row.rounds:
            table.add_row(row.title, "", "", "", row.reason)
            continue
        first = "" if row.first_step is None else f"{row.first_step:.2f} s"
        memory = "" if not row.memory else f"{row.memory / 1e6:.1f}"
        agreement = row.agreement
        same = "" if agreement is None else "same noise" if agreement.same_noise else "in distribution"
        table.add_row(row.title, first, _amortises_text(size, row), memory, same)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _amortises(size: SizeReport, row: Row) -> float | None:
    """Return the steps after which a slower start than that of engine svi is amortised."""
    base = size.row("svi")
    slow_start = row.variant in SLOW
    return row.amortises_after(base) if base is not None and slow_start else None


def _amortises_text(size: SizeReport, row: Row) -> str:
    steps = _amortises(size, row)
    if steps is None:
        return ""
    return "never" if steps == float("inf") else f"{steps:,.0f} steps"


def scaling_table(report: Report) -> Table:
    """Return the growth of time beside that of work, each variant relative to the smallest value of the series."""
    names = list(dict.fromkeys(row.variant for point in report.scaling for row in point.report.rows))
    title = "time against work: ms per step, and relative to the first line"
    table = _table(title, "", "", "work", *(VARIANTS[name][0].partition(":")[0] for name in names))
    for axis in dict.fromkeys(point.axis for point in report.scaling):
        points = [point for point in report.scaling if point.axis == axis]
        first = points[0].report
        for point in points:
            work = f"× {point.report.operations / first.operations:.1f}"
            cells = [_growth(point.report.row(name), first.row(name)) for name in names]
            table.add_row(axis, str(point.value), work, *cells)
    return table


def _growth(row: Row | None, first: Row | None) -> str:
    if row is None or row.seconds is None:
        return "" if row is None else row.status
    growth = f" (× {row.seconds.median / first.seconds.median:.1f})" if first and first.seconds else ""
    return f"{1e3 * row.seconds.median:.2f}{growth}"


def goal_table(found: Sequence[Outcome]) -> Table:
    """Return each goal with its figure, or with the reason why there is none."""
    table = _table("goals", "", "goal", "figure", "")
    for outcome in found:
        if outcome.figure is None:
            table.add_row(outcome.goal, outcome.wanted, f"[dim]{outcome.reason}[/]", "")
        else:
            verdict = "[green]met[/]" if outcome.met else "[yellow]not met[/]"
            table.add_row(outcome.goal, outcome.wanted, f"{written(outcome.figure)} {outcome.unit}", verdict)
    return table


def written(figure: Spread | None, unit: float = 1.0) -> str:
    """Return a median with its quartiles as text.

    Example:
        >>> written(Spread(0.0123, 0.012, 0.0131), 1e3), written(None)
        ('12.3 (12.0–13.1)', '')
    """
    if figure is None:
        return ""
    values = [unit * value for value in (figure.median, figure.lower, figure.upper)]
    digits = next((d for limit, d in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if values[0] >= limit), 4)
    middle, lower, upper = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({lower}–{upper})"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Give torch that many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
