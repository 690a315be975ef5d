"""Grids of images."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

from pyro_vae.base.errors import InputError
from pyro_vae.figures.canvas import new_figure, save

PIXEL, MIN_WIDTH = 3, 480  # screen pixels per pixel, and at least for a whole picture
LINE = 0.5  # grey of the lines between images


def plot_pairs(path: Path, originals: Tensor, means: Tensor, what: str = "mean of p(x|z)") -> Path:
    """Plot rows in pairs: originals, and below each its reconstruction, which is ``what``; (n, *event_shape) both."""
    columns = min(len(originals), 10)
    rows = []
    for original, mean in zip(originals.split(columns), means.split(columns), strict=True):
        missing = original.new_ones(columns - len(original), *original.shape[1:])
        rows += [original, missing, mean, missing]
    title = f"originals, each above its reconstruction ({what}, z ~ q(z|x))"
    return plot_grid(path, torch.cat(rows), title, columns)


def plot_grid(path: Path, images: Tensor, title: str, columns: int | None = None) -> Path:
    """Plot images (n, *event_shape) as a grid, square by default."""
    canvas = tile(images, columns or math.ceil(math.sqrt(len(images))))
    pixel = max(PIXEL, MIN_WIDTH / canvas.shape[1])
    figure, axis = new_figure(canvas.shape[1] * pixel, canvas.shape[0] * pixel + 30)
    _show(axis, canvas, title)
    return save(figure, path)


def tile(images: Tensor, columns: int) -> NDArray[np.float64]:
    """Return images row by row with a line between them: (rows, columns) or (rows, columns, 3), in [0, 1].

    Values outside [0, 1], where a Gaussian's means may lie, are clipped.

    Args:
        images: (n, H, W) or (n, 1 | 3, H, W); (n, D) is shown as rows of pixels.
        columns: images in a row, at most n.

    Raises:
        InputError: another shape.

    Example:
        >>> tile(torch.zeros(6, 8, 8), columns=3).shape
        (19, 28)
    """
    channels = _with_channels(images).double().clamp(0, 1)
    # make_grid adds no lines around a single image: each brings those above and to its left
    grid = make_grid(pad(channels, (1, 0, 1, 0), value=LINE), nrow=columns, padding=0, pad_value=LINE)
    canvas = pad(grid, (0, 1, 0, 1), value=LINE).numpy()
    return canvas[0] if channels.shape[1] == 1 else np.moveaxis(canvas, 0, -1)


def _with_channels(images: Tensor) -> Tensor:
    """Return images as (n, channels, H, W)."""
    if images.ndim == 2:
        return images[:, None, None]
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    hint = "pyro-vae sample, for arrays"
    raise InputError("images (n, H, W) or (n, 1 or 3, H, W)", f"shape {tuple(images.shape)}", hint)


def _show(axis: Axes, canvas: NDArray[np.float64], title: str) -> None:
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    axis.set_anchor("N")
