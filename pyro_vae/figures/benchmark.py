"""Figures of a benchmark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.base.errors import InputError
from pyro_vae.figures.canvas import new_canvas, save
from pyro_vae.studies.benchmark.records import Point, Report, SizeReport


def plot_benchmark(path: Path, report: Report) -> Path:
    """Plot the speed of each variant relative to stock Pyro on each size, and the scaling series.

    Raises:
        InputError: no variant was timed.
    """
    sizes = [size for size in report.sizes if any(row.rounds for row in size.rows)]
    if not sizes:
        raise InputError("a benchmark with at least one timed variant", "none", "variants=svi,compiled")
    series = list(dict.fromkeys(point.axis for point in report.scaling))
    figure = new_canvas(max(900, 420 * len(series)), 440 * (1 + bool(series)))
    above, *below = np.atleast_1d(np.asarray(figure.subfigures(1 + bool(series), 1)))
    _speed_bars(above.subplots(), sizes)
    for panel in below:
        axes = panel.subplots(1, len(series), squeeze=False)[0]
        for axis, name in zip(axes, series, strict=True):
            _cost_curves(axis, name, [point for point in report.scaling if point.axis == name])
    return save(figure, path)


def _speed_bars(axis: Axes, sizes: Sequence[SizeReport]) -> None:
    """Plot each variant's speed relative to stock Pyro, or to engine svi unless stock was timed on every size."""
    base = "stock" if all((row := size.row("stock")) and row.rounds for size in sizes) else "svi"
    variants = {row.variant: row.title for size in sizes for row in size.rows if row.rounds and row.variant != base}
    width = 0.8 / max(1, len(variants))
    for number, (variant, title) in enumerate(variants.items()):
        found = [(at, size.ratio(base, variant)) for at, size in enumerate(sizes)]
        measured = [(at + (number + 0.5) * width - 0.4, ratio) for at, ratio in found if ratio is not None]
        heights = [ratio.median for _, ratio in measured]
        errors = [
            [r.median - r.lower for _, r in measured],
            [r.upper - r.median for _, r in measured],
        ]
        axis.bar([at for at, _ in measured], heights, width, yerr=errors, label=title, error_kw={"lw": 0.8})
    axis.axhline(1, color="black", lw=0.8)
    axis.set_xticks(range(len(sizes)), [f"{size.name}\n{size.title}" for size in sizes], fontsize=7)
    words = {"stock": "stock Pyro", "svi": "engine svi"}
    axis.set(title="speed of a step; quartiles of interleaved rounds", ylabel=f"times as fast as {words[base]}")
    axis.legend(frameon=False, fontsize=7, ncols=2)


def _cost_curves(axis: Axes, name: str, points: Sequence[Point]) -> None:
    for variant, title in {row.variant: row.title for p in points for row in p.report.rows if row.rounds}.items():
        rows = [(p.value, p.report.row(variant)) for p in points]
        found = [(value, row.seconds) for value, row in rows if row is not None and row.seconds is not None]
        medians = [1e3 * seconds.median for _, seconds in found]
        spreads = [
            [1e3 * (s.median - s.lower) for _, s in found],
            [1e3 * (s.upper - s.median) for _, s in found],
        ]
        axis.errorbar([value for value, _ in found], medians, spreads, marker="o", capsize=3, label=title)
    axis.set(xscale="log", yscale="log", xlabel=name, ylabel="ms per step", title=f"cost against {name}")
    axis.set_xticks([p.value for p in points], [str(p.value) for p in points])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=7)
