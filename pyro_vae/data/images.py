"""A set of images on a device: stored as grey levels, scaled and binarized batch by batch."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.data.arrays import Array, is_array, to_tensor

Binarization = Literal["dynamic", "threshold", "none"]
BINARIZATIONS: tuple[Binarization, ...] = get_args(Binarization)


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    r"""N images, stored compactly; a batch holds numbers in [0, 1].

    A grey level :math:`l` stands for :math:`p = l / \text{max\_value}`. A batch is

    ===========  ==================================================
    binarize     value of a pixel
    ===========  ==================================================
    none         :math:`p`
    threshold    1 where :math:`p \ge 0.5`, else 0
    dynamic      a new sample of :math:`\text{Bernoulli}(p)`
    ===========  ==================================================

    References:
        Salakhutdinov and Murray, On the quantitative analysis of deep belief networks, ICML 2008
        (a pixel's grey level as the probability of a one).

    Args:
        pixels: (N, \*event_shape), uint8 levels 0..max_value, or floating (used unchanged).
        labels: (N,) int64, or None.
        max_value: the uint8 level that means 1.0: 255, 16 for ``digits``, 1 for binary sets.
        binarize: one of ``BINARIZATIONS``.

    Raises:
        InputError: an invalid dtype, shape, level or name.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> images = Images(torch.tensor([[0, 255], [51, 204]], dtype=torch.uint8))
        >>> images.batch(slice(0, 2))
        tensor([[0.0000, 1.0000],
                [0.2000, 0.8000]])
    """

    pixels: Tensor
    labels: Tensor | None = None
    max_value: int = 255
    binarize: Binarization = "none"

    def __post_init__(self) -> None:
        """Check the fields once, so that batches need no checks."""
        lookup({name: name for name in BINARIZATIONS}, self.binarize, "binarization")
        _check_pixels(self.pixels)
        _check_range(self)
        _check_labels(self.labels, len(self.pixels))

    def __repr__(self) -> str:
        shape, labels = "x".join(map(str, self.event_shape)), "" if self.labels is None else ", labels"
        return f"Images({len(self)} of {shape}, {self.pixels.dtype}, binarize={self.binarize!r}{labels}, {self.device})"

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.pixels)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image."""
        return self.pixels.shape[1:]

    @property
    def device(self) -> torch.device:
        """The device of the pixels, and of the batches."""
        return self.pixels.device

    @cached_property
    def is_binary(self) -> bool:
        """Whether every batch consists of 0 and 1.

        Example:
            >>> import torch
            >>> from pyro_vae.data import Images
            >>> Images(torch.tensor([[0, 1]], dtype=torch.uint8), max_value=1).is_binary
            True
        """
        if self.binarize != "none":
            return True
        one = 1 if self.pixels.is_floating_point() else self.max_value
        return bool(((self.pixels == 0) | (self.pixels == one)).all())

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images on another device; the levels are copied, not the floating pixels."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        r"""Gather, scale and binarize images, on the device of the pixels.

        Args:
            index: indices (B,), or a slice.
            generator: a generator on the same device, used by ``dynamic`` only; None means torch's global one.

        Returns:
            (B, \*event_shape), float32; floating pixels keep their dtype.

        Example:
            >>> import torch
            >>> from pyro_vae.data import Images
            >>> grey = Images(torch.full((1, 4), 128, dtype=torch.uint8), binarize="threshold")
            >>> grey.batch(torch.tensor([0, 0]))
            tensor([[1., 1., 1., 1.],
                    [1., 1., 1., 1.]])
        """
        where = index if isinstance(index, slice) else index.to(self.device)
        grey = _scaled(self.pixels[where], self.max_value)
        if self.binarize == "dynamic":
            return torch.bernoulli(grey, generator=generator)
        if self.binarize == "threshold":
            return (grey >= 0.5).to(grey.dtype)
        return grey

    def binarized(self, seed: int) -> Tensor:
        r"""Return the whole set, (N, \*event_shape), binarized once, for evaluation and pictures.

        The same seed gives the same pixels on one device type.

        Example:
            >>> import torch
            >>> from pyro_vae.data import Images
            >>> grey = Images(torch.full((2, 3), 100, dtype=torch.uint8), binarize="dynamic")
            >>> torch.equal(grey.binarized(seed=1), grey.binarized(seed=1))
            True
        """
        return self.batch(slice(None), torch.Generator(self.device).manual_seed(seed))

    def subset(self, index: Tensor) -> "Images":
        """Return the images at ``index``, (B,), with their labels.

        Example:
            >>> import torch
            >>> from pyro_vae.data import Images
            >>> len(Images(torch.rand(10, 2)).subset(torch.tensor([0, 7])))
            2
        """
        where = index.to(self.device)
        labels = None if self.labels is None else self.labels[where]
        return replace(self, pixels=self.pixels[where], labels=labels)


def as_images(x: Images | Tensor | Array) -> Images:
    r"""Return :class:`Images` unchanged, and a tensor or an array (N, \*event_shape) as images.

    uint8 means level / 255, unless the greatest level is 1: then, like bool, it means 0 and 1. Floating values are used
    unchanged, those of an array as float32; they may lie outside [0, 1].

    Raises:
        InputError: not a tensor or an array, an array of text or objects, no event dimension, no image, NaN or
            infinity, or another integer dtype.

    Example:
        >>> import torch
        >>> from pyro_vae.data import as_images
        >>> as_images(torch.tensor([[True, False]])).batch(slice(None))
        tensor([[1., 0.]])
    """
    if isinstance(x, Images):
        return x
    x = to_tensor(x) if is_array(x) else x
    if not isinstance(x, Tensor):
        raise InputError(
            "images, a tensor or an array", type(x).__name__, "data.train or data.test, or torch.as_tensor(x)"
        )
    if x.dtype == torch.bool:
        return Images(x.to(torch.uint8), max_value=1)
    _check_pixels(x)
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError("finite pixels", "NaN or infinity", "x[x.flatten(1).isfinite().all(1)]")
    # Levels 0 and 1 alone are a binary set: nobody means 1/255 as the brightest grey.
    binary = x.dtype == torch.uint8 and int(x.max()) == 1
    return Images(x, max_value=1 if binary else 255)


def _scaled(pixels: Tensor, max_value: int) -> Tensor:
    # Cast first: uint8 / int would take torch's default dtype, a global setting.
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32) / max_value


def _check_pixels(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        hint = "x.float() for counts and other numbers, x.to(torch.uint8) for levels 0 to 255"
        raise InputError("uint8 or floating pixels", f"{pixels.dtype}", hint)
    if pixels.dim() < 2:
        shape = tuple(pixels.shape)
        hint = "x.unsqueeze(0) for a single image, or a mapping {'x': x} for one number an example"
        raise InputError("images of shape (N, ...)", f"shape {shape}", hint)
    if pixels.numel() == 0:
        raise InputError("at least one image", f"shape {tuple(pixels.shape)}", "a set that is not empty")


def _check_range(images: Images) -> None:
    if not 1 <= images.max_value <= 255:
        raise InputError("max_value from 1 to 255", images.max_value, "255 for ordinary grey levels")
    floating = images.pixels.is_floating_point()
    if floating and images.binarize == "none":
        return
    top = 1 if floating else images.max_value
    low, high = (end.item() for end in torch.aminmax(images.pixels))
    # Written so that NaN fails, too. On CUDA a probability above 1 would abort the process.
    if not (low >= 0 and high <= top):
        raise InputError(f"pixels from 0 to {top}", f"{low} to {high}", "scaling them, or binarize='none'")


def _check_labels(labels: Tensor | None, number: int) -> None:
    if labels is not None and (labels.shape != (number,) or labels.dtype != torch.int64):
        got = f"shape {tuple(labels.shape)}, {labels.dtype}"
        raise InputError(f"labels of shape ({number},), torch.int64", got, "labels.reshape(-1).long()")
