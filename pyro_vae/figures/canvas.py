"""Figures by matplotlib's object interface: it changes no backend, style or other global setting."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_vae.base.files import atomic_write


def new_canvas(width: float, height: float) -> Figure:
    """Return an empty figure of that many screen pixels."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that many screen pixels, with its axes."""
    figure = new_canvas(width, height)
    return figure, figure.subplots()


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    with atomic_write(path) as partial:
        figure.savefig(partial)
    return path
