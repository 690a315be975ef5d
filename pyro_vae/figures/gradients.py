"""Figures of a comparison of estimators."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_vae.base.statistics import Estimate
from pyro_vae.figures.canvas import save
from pyro_vae.studies.gradients import EstimatorReport, GradientReport
from pyro_vae.studies.training import Lap


def gradient_figure(path: Path, points: Mapping[int, Sequence[EstimatorReport]], laps: Sequence[Lap]) -> Path:
    """Plot signal-to-noise ratios against particles, φ's variance against training, and held-out log p(x)."""
    panels = 3 + bool(laps)
    figure = Figure(figsize=(4.6 * panels, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels))
    last = max(points)
    for axis, group, symbol in zip(axes, ("phi", "theta"), ("φ (guide)", "θ (model)"), strict=False):
        _against_particles(axis, points[last], group, lambda found: found.snr)
        axis.set(title=f"signal-to-noise ratio of {symbol}, step {last}", xlabel="particles", ylabel="SNR")
    if len(points) > 1:
        _against_training(axes[2], points)
    else:
        _against_particles(axes[2], points[last], "phi", lambda found: found.variance)
        axes[2].set(title=f"variance of φ's gradient, step {last}", xlabel="particles", ylabel="total variance")
    if laps:
        _finish_line(axes[3], laps)
    return save(figure, path)


def _against_particles(
    axis: Axes, reports: Sequence[EstimatorReport], group: str, figure: Callable[[GradientReport], Estimate]
) -> None:
    kinds = dict.fromkeys(report.estimator.partition(":")[0] for report in reports)
    for kind in kinds:
        own = sorted((r for r in reports if r.estimator.partition(":")[0] == kind), key=lambda r: r.particles)
        found = [(r.particles, figure(g)) for r in own for g in r.gradients if g.group == group]
        if found:
            x, y = [p for p, _ in found], [f.value for _, f in found]
            axis.errorbar(x, y, [f.standard_error for _, f in found], marker="o", capsize=3, label=kind)
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _against_training(axis: Axes, points: Mapping[int, Sequence[EstimatorReport]]) -> None:
    names = [report.estimator for report in next(iter(points.values()))]
    for name in names:
        found = [
            (step, g.variance.value)
            for step, reports in points.items()
            for r in reports
            for g in r.gradients
            if r.estimator == name and g.group == "phi"
        ]
        axis.plot([s for s, _ in found], [v for _, v in found], marker="o", label=name)
    axis.set(yscale="log", title="variance of φ's gradient", xlabel="steps of training", ylabel="total variance")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=7)


def _finish_line(axis: Axes, laps: Sequence[Lap]) -> None:
    names = list(dict.fromkeys(lap.estimator for lap in laps))
    for offset, after in ((-0.12, "equal steps"), (0.12, "equal time")):
        found = [lap for lap in laps if lap.after == after]
        y = [names.index(lap.estimator) + offset for lap in found]
        mean = [lap.log_evidence.value for lap in found]
        error = [lap.log_evidence.standard_error for lap in found]
        (dot, *_) = axis.errorbar(mean, y, xerr=error, fmt="o", capsize=3, label=after)
        for lap, height in zip(found, y, strict=True):
            axis.plot(lap.replicates, [height] * len(lap.replicates), "|", color=dot.get_color())
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set(title="held-out log p(x) after training", xlabel=f"L_{laps[0].num_particles}, nats per example")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
