"""Figures on matplotlib's object interface: no backend, style or other global setting is touched."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_vae.base.files import atomic_write


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many screen pixels, with its axes."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    with atomic_write(path) as partial:
        figure.savefig(partial)
    return path
