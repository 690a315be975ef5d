"""Figures on matplotlib's object interface: no backend, style or other global setting is touched."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_vae.base.errors import InputError


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many screen pixels, with its axes."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    partial = path.with_name(f".{path.stem}.partial.png")
    try:
        figure.savefig(partial)
        partial.replace(path)
    except OSError as error:
        raise InputError("a picture that can be written", f"{path}: {error.strerror}", "another path") from None
    return path
