"""Pictures: arrays and records in, a figure file out. The only module that imports matplotlib.

Figures are drawn on matplotlib's object interface: no backend, style or other global setting is touched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae import comparison as stats
from pyro_vae.benchmark.records import Point, Report, SizeReport
from pyro_vae.comparison import EstimatorReport, GradientReport
from pyro_vae.errors import InputError
from pyro_vae.loop import EpochRecord
from pyro_vae.race import Lap

PIXEL, MIN_WIDTH = 3, 480  # screen pixels a data pixel, and at least for a whole picture


def reconstructions(path: Path, originals: Tensor, means: Tensor) -> Path:
    """Draw rows in pairs: originals, and right below each its reconstruction's mean; (n, *event_shape) both."""
    columns = min(len(originals), 10)
    rows = []
    for original, mean in zip(originals.split(columns), means.split(columns), strict=True):
        missing = original.new_ones(columns - len(original), *original.shape[1:])
        rows += [original, missing, mean, missing]
    return grid(
        path,
        torch.cat(rows),
        "originals, each above its reconstruction (mean of p(x|z), z ~ q(z|x))",
        columns,
    )


def grid(path: Path, images: Tensor, title: str, columns: int | None = None) -> Path:
    """Draw images (n, *event_shape) as a grid, square by default."""
    canvas = tile(images, columns or math.ceil(math.sqrt(len(images))))
    pixel = max(PIXEL, MIN_WIDTH / canvas.shape[1])
    figure, axis = _figure(canvas.shape[1] * pixel, canvas.shape[0] * pixel + 30)
    _show(axis, canvas, title)
    return _save(figure, path)


def curves(path: Path, history: Sequence[EpochRecord]) -> Path:
    """Draw the training objective and the held-out bound (with two standard errors) against epochs.

    Raises:
        InputError: no epoch is finished yet.
    """
    if not history:
        raise InputError("a run with at least one finished epoch", "none", "training on with --resume")
    figure, axis = _figure(640, 420)
    epochs = [record.epoch for record in history]
    whole = [record.objective if record.kl_weight == 1 else math.nan for record in history]
    axis.plot(epochs, whole, marker=".", label="training, mean over the epoch")
    if any(record.kl_weight != 1 for record in history):
        weighted = [record.objective if record.kl_weight != 1 else math.nan for record in history]
        axis.plot(epochs, weighted, ":", label="training objective while the KL is down-weighted (no bound)")
    held_out = [(r.epoch, r.bound, r.bound_standard_error or 0.0) for r in history if r.bound is not None]
    if held_out:
        at, bound, error = (np.array(column) for column in zip(*held_out, strict=True))
        (line,) = axis.plot(at, bound, marker=".", label="held out, ± 2 standard errors")
        axis.fill_between(at, bound - 2 * error, bound + 2 * error, color=line.get_color(), alpha=0.2)
        each = [r.bounds for r in history if r.bounds]
        if each:
            axis.plot(at, np.array(each), color=line.get_color(), linewidth=0.7, alpha=0.5)
    axis.set(xlabel="epoch", ylabel="bound on log p(x), nats per datum")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return _save(figure, path)


def comparison(path: Path, points: Mapping[int, Sequence[EstimatorReport]], laps: Sequence[Lap]) -> Path:
    """Draw signal-to-noise ratios against particles, φ's variance against training, and what training gave."""
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
    return _save(figure, path)


def _against_particles(
    axis: Axes, reports: Sequence[EstimatorReport], group: str, figure: Callable[[GradientReport], stats.Figure]
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
        mean = [lap.log_evidence.mean for lap in found]
        error = [lap.log_evidence.standard_error for lap in found]
        (dot, *_) = axis.errorbar(mean, y, xerr=error, fmt="o", capsize=3, label=after)
        for lap, height in zip(found, y, strict=True):
            axis.plot(lap.replicates, [height] * len(lap.replicates), "|", color=dot.get_color())
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set(title="held-out log p(x) after training", xlabel=f"L_{laps[0].num_particles}, nats per datum")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def benchmark(path: Path, report: Report) -> Path:
    """Draw how many times as fast as stock Pyro each variant is on each size, and cost against size.

    Raises:
        InputError: nothing was measured.
    """
    sizes = [size for size in report.sizes if any(row.rounds for row in size.rows)]
    if not sizes:
        raise InputError("a benchmark of at least one size and variant", "none", "the defaults of pyro-vae bench")
    series = list(dict.fromkeys(point.axis for point in report.scaling))
    figure = Figure(figsize=(max(9.0, 4.2 * len(series)), 4.4 * (1 + bool(series))), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, *below = np.atleast_1d(np.asarray(figure.subfigures(1 + bool(series), 1)))
    _speed_bars(above.subplots(), sizes)
    for panel in below:
        axes = panel.subplots(1, len(series), squeeze=False)[0]
        for axis, name in zip(axes, series, strict=True):
            _cost_curves(axis, name, [point for point in report.scaling if point.axis == name])
    return _save(figure, path)


def _speed_bars(axis: Axes, sizes: Sequence[SizeReport]) -> None:
    """Bars of stock's time over each variant's; of engine svi's where stock was not measured."""
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
    axis.set(xscale="log", yscale="log", xlabel=name, ylabel="ms a step", title=f"cost against {name}")
    axis.set_xticks([p.value for p in points], [str(p.value) for p in points])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=7)


def latent_scatter(path: Path, means: Tensor, labels: Tensor | None) -> Path:
    """Draw posterior means (N, 2), coloured by label (N,) where there are labels."""
    figure, axis = _figure(620, 560)
    x, y = means.double().numpy().T
    size = 20 if len(means) < 1000 else 4
    if labels is None:
        axis.scatter(x, y, s=size)
    else:
        few = int(labels.max()) < 10
        colours, limits = ("tab10", (-0.5, 9.5)) if few else ("turbo", (None, None))
        points = axis.scatter(x, y, s=size, c=labels.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1])
        figure.colorbar(points, label="label", ticks=range(10) if few else None)
    axis.set(xlabel="mean of q, dimension 1", ylabel="mean of q, dimension 2", aspect="equal")
    axis.set_title("posterior means of held-out data", fontsize=9)
    return _save(figure, path)


def tile(images: Tensor, columns: int) -> NDArray[np.float64]:
    """Lay images out row by row with a line between them: (rows, columns) or (rows, columns, 3), in [0, 1].

    Images are (n, H, W), or (n, 1 | 3, H, W); data of one dimension are drawn as rows of pixels. Values outside
    [0, 1] (a Gaussian's means may lie there) are cut off for the picture.

    Example:
        >>> import torch
        >>> tile(torch.zeros(6, 8, 8), columns=3).shape
        (19, 28)
    """
    pixels = images.double().numpy().clip(0, 1)
    if pixels.ndim == 2:
        pixels = pixels[:, None, :]
    if pixels.ndim == 4:
        pixels = np.moveaxis(pixels, 1, -1)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        shape = tuple(images.shape)
        raise InputError("images (n, H, W) or (n, 1 or 3, H, W)", f"shape {shape}", "pyro-vae sample, for arrays")
    n, height, width, channels = pixels.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 0.5)
    for k in range(n):
        top, left = (k // columns) * (height + 1) + 1, (k % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = pixels[k]
    return canvas[..., 0] if channels == 1 else canvas


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many screen pixels, with its axes."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _show(axis: Axes, canvas: NDArray[np.float64], title: str) -> None:
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    axis.set_anchor("N")


def _save(figure: Figure, path: Path) -> Path:
    partial = path.with_name(f".{path.stem}.partial.png")
    try:
        figure.savefig(partial)
        partial.replace(path)
    except OSError as error:
        raise InputError("a picture that can be written", f"{path}: {error.strerror}", "another path") from None
    return path
