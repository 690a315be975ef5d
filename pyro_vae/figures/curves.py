"""Training curves and latent scatter plots."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.figures.canvas import new_figure, save
from pyro_vae.training.loop import EpochRecord


def plot_training_curves(path: Path, history: Sequence[EpochRecord]) -> Path:
    """Plot the training objective and the held-out bound (with two standard errors) against epochs.

    Raises:
        InputError: no epoch is finished yet.
    """
    if not history:
        raise InputError("a run with at least one finished epoch", "none", "resuming the run")
    figure, axis = new_figure(640, 420)
    epochs = [record.epoch for record in history]
    whole = [record.objective if record.kl_weight == 1 else math.nan for record in history]
    axis.plot(epochs, whole, marker=".", label="training objective, mean over the epoch")
    if any(record.kl_weight != 1 for record in history):
        weighted = [record.objective if record.kl_weight != 1 else math.nan for record in history]
        axis.plot(epochs, weighted, ":", label="the same while the KL is down-weighted (no bound)")
    held_out = [(r.epoch, r.bound, r.bound_standard_error or 0.0) for r in history if r.bound is not None]
    if held_out:
        at, bound, error = (np.array(column) for column in zip(*held_out, strict=True))
        (line,) = axis.plot(at, bound, marker=".", label="held-out bound, ± 2 standard errors")
        axis.fill_between(at, bound - 2 * error, bound + 2 * error, color=line.get_color(), alpha=0.2)
        each = [r.bounds for r in history if r.bounds]
        if each:
            axis.plot(at, np.array(each), color=line.get_color(), linewidth=0.7, alpha=0.5)
    axis.set(xlabel="epoch", ylabel="nats per example")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return save(figure, path)


def plot_latent_means(path: Path, means: Tensor, labels: Tensor | None, how: str = "") -> Path:
    """Plot posterior means (N, 2), coloured by label (N,) where there are labels; ``how`` they were computed."""
    figure, axis = new_figure(620, 560)
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
    axis.set_title(f"posterior means of held-out examples{how}", fontsize=9)
    return save(figure, path)
