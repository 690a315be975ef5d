"""Grids of images."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.figures.canvas import new_figure, save

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
    figure, axis = new_figure(canvas.shape[1] * pixel, canvas.shape[0] * pixel + 30)
    _show(axis, canvas, title)
    return save(figure, path)


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


def _show(axis: Axes, canvas: NDArray[np.float64], title: str) -> None:
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    axis.set_anchor("N")
