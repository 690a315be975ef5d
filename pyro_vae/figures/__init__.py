"""Figures: arrays and records in, a picture file out. The only package that imports matplotlib."""

from pyro_vae.figures.benchmark import benchmark_figure
from pyro_vae.figures.curves import latent_scatter, training_curves
from pyro_vae.figures.gallery import draw_all
from pyro_vae.figures.gradients import gradient_figure
from pyro_vae.figures.images import grid, reconstructions

__all__ = [
    "benchmark_figure",
    "draw_all",
    "gradient_figure",
    "grid",
    "latent_scatter",
    "reconstructions",
    "training_curves",
]
