"""Tables and lines for the terminal."""

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich import box
from rich.markup import escape
from rich.table import Table

from pyro_vae.base.statistics import Estimate
from pyro_vae.evaluation.card.card import Card, rows
from pyro_vae.studies.crosscheck import Z_SCORE, Row
from pyro_vae.studies.gradients import EstimatorReport
from pyro_vae.studies.training import Lap


def check_table(rows: Sequence[Row]) -> Table:
    """Return the cross-check as a table: one line per comparison, one column per precision, the worst case of each."""
    limits = {row.dtype: row.limit for row in rows if row.quantity != Z_SCORE}
    table = Table(title="Pyro's ELBO against the hand-written one: largest relative error", box=box.SIMPLE)
    for column in ("comparison", "of", "device", *(f"{dtype}\n≤ {limit:g}" for dtype, limit in limits.items()), ""):
        table.add_column(column)
    for key in dict.fromkeys((row.comparison, row.quantity, row.device) for row in rows if row.quantity != Z_SCORE):
        same = [row for row in rows if (row.comparison, row.quantity, row.device) == key]
        worst = [_worst(row for row in same if row.dtype == dtype) for dtype in limits]
        fine = all(row.passed for row in same)
        table.add_row(*key, *(f"{row.error:.1e}" for row in worst), "[green]ok[/]" if fine else "[red]no[/]")
    return table


def z_score_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line per device for the comparison on fresh noise."""
    scores = [row for row in rows if row.quantity == Z_SCORE]
    return [
        f"fresh noise on {device}: {worst.comparison} within {worst.error:.1f} standard errors at worst "
        f"({worst.likelihood}; limit {worst.limit:g})"
        for device in dict.fromkeys(row.device for row in scores)
        for worst in [_worst(row for row in scores if row.device == device)]
    ]


def _worst(rows: Iterable[Row]) -> Row:
    return max(rows, key=lambda row: math.inf if math.isnan(row.error) else row.error / row.limit)


def mismatch_lines(rows: Sequence[Row]) -> list[str]:
    """Return one line per failed comparison: its case, and the tensor with the largest error."""
    return [
        f"mismatch: {row.comparison}: {row.quantity}{f' ({row.worst})' if row.worst else ''}, {row.likelihood}, "
        f"K={row.num_particles}, {row.dtype}, {row.device}: {row.error:.3g} > {row.limit:g}"
        for row in rows
        if not row.passed
    ]


def comparison_tables(reports: Sequence[EstimatorReport], where: str) -> list[Table]:
    """Return each estimator's bound and cost, and the quality of its gradients in θ and φ."""
    costs = Table(title=f"estimators at {where}", box=box.SIMPLE)
    for column in ("estimator", "bound, nats", "ESS/K", "ms per step", "MB"):
        costs.add_column(column, overflow="fold")
    for found in reports:
        figures = (f"{1e3 * found.seconds:.1f}", f"{found.memory:.1f}")
        costs.add_row(found.estimator, str(found.bound), str(found.ess), *figures)
    return [costs, *(_gradient_table(reports, where, group) for group in ("theta", "phi"))]


def _gradient_table(reports: Sequence[EstimatorReport], where: str, group: str) -> Table:
    name = {"theta": "θ (model)", "phi": "φ (guide)"}[group]
    table = Table(title=f"gradient of {name} at {where}", box=box.SIMPLE)
    for column in ("estimator", "SNR", "variance", "bias²", "DSNR", "cosine", "distance²"):
        table.add_column(column, overflow="fold")
    for report in reports:
        for found in report.gradients:
            if found.group == group:
                figures = (
                    found.snr,
                    found.variance,
                    found.bias_squared,
                    found.dsnr,
                    found.cosine,
                    found.distance_squared,
                )
                table.add_row(report.estimator, *("–" if figure is None else str(figure) for figure in figures))
    table.caption = escape("\n".join(_unknown_lines(reports, group)))
    table.caption_justify = "left"
    return table


def _unknown_lines(reports: Sequence[EstimatorReport], group: str) -> list[str]:
    """Return a line for each figure that the draws do not determine: of which estimator, and why."""
    gradients = [(report.estimator, found) for report in reports for found in report.gradients]
    return [f"{name}, {why}" for name, found in gradients if found.group == group for why in found.unknown]


def race_table(laps: Sequence[Lap]) -> Table:
    """Return one line per estimator and lap."""
    table = Table(title=f"held-out log p(x), L_{laps[0].num_particles}, nats per example", box=box.SIMPLE)
    spread = ("spread",) if laps[0].replicates else ()
    for column in ("estimator", "after", "steps", "seconds", "log p(x)", *spread):
        table.add_column(column)
    for lap in laps:
        deviation = [f"sd {statistics.stdev(lap.replicates):.2f}"] if lap.replicates else []
        figures = (str(lap.steps), f"{lap.seconds:.2f}", str(lap.log_evidence))
        table.add_row(lap.estimator, lap.after, *figures, *deviation)
    return table


def spread_line(bounds: Sequence[float]) -> str:
    """Return one line on the spread of replicates.

    Example:
        >>> spread_line([-100.0, -101.0, -99.0])
        'replicates: 3, their bounds from -101.00 to -99.00, standard deviation 1.00'
    """
    deviation = statistics.stdev(bounds) if len(bounds) > 1 else 0.0
    ends = f"from {min(bounds):.2f} to {max(bounds):.2f}"
    return f"replicates: {len(bounds)}, their bounds {ends}, standard deviation {deviation:.2f}"


def card_head(card: Card) -> list[str]:
    """Return what was evaluated, a line each."""
    return card.head


def card_table(card: Card, how: bool = True) -> Table:
    """Return the figures of an evaluation, one per line, a rule between parts; ``how``: with how it was computed."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("figure", "value", "unit"):
        table.add_column(column, no_wrap=True)
    table.add_column("examples", justify="right", no_wrap=True)
    if how:
        table.add_column("how", min_width=30)
    for entry, following in zip_longest(card.entries, card.entries[1:]):
        last = following is None or following.part != entry.part
        table.add_row(*map(escape, rows([entry])[0][: len(table.columns)]), end_section=last)
    return table


def card_notes(card: Card) -> list[str]:
    """Return the caveats, and what was left out and why."""
    return [*card.caveats, *(f"not computed: {part}: {why}" for part, why in card.left_out.items())]


def bound_line(split: str, count: int, bound: Estimate, binarize: str, num_particles: int) -> str:
    """Return one line on what a bound is of, with its standard error."""
    particles = "particle" if num_particles == 1 else "particles"
    how = {
        "dynamic": "binarized by a draw",
        "threshold": "binarized at one half",
        "none": "pixels as they are",
    }
    return (
        f"{split} bound {bound} nats per image ({count} images, {how[binarize]}; "
        f"ELBO, {num_particles} {particles} per image; ± one standard error)"
    )
