"""Figures: arrays and records in, a picture file out. The only package that imports matplotlib."""

from pyro_vae.figures.benchmark import plot_benchmark
from pyro_vae.figures.curves import plot_latent_means, plot_training_curves
from pyro_vae.figures.gallery import Pictures, plot_all
from pyro_vae.figures.gradients import gradient_figure
from pyro_vae.figures.images import plot_grid, plot_pairs

__all__ = [
    "Pictures",
    "gradient_figure",
    "plot_all",
    "plot_benchmark",
    "plot_grid",
    "plot_latent_means",
    "plot_pairs",
    "plot_training_curves",
]
