"""Conversion of arrays to stored pixels: uint8 levels where they are exact, else float32."""

import numpy as np
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.data.reading import Array

TOLERANCE = 1e-6  # of a value in [0, 1]: float32 holds k / 255 to 6e-8, float16 only to 2e-4


def to_levels(array: Array, where: str) -> tuple[Tensor, int]:
    """Return pixels and the level that means 1.0, exact and as compact as possible.

    ============================  =======  =========
    values                        stored   max_value
    ============================  =======  =========
    bool, or only 0 and 1         uint8    1
    uint8, or k/255 to 1e-6       uint8    255
    other floating in [0, 1]      float32  255 (unused)
    ============================  =======  =========

    Files hold images: other numbers are refused, and named for what they look like.

    Raises:
        InputError: another dtype, no event dimension, no image, NaN, infinity, or values outside [0, 1].

    Example:
        >>> import numpy as np
        >>> to_levels(np.array([[0.0, 0.2, 1.0]]), "x")
        (tensor([[  0,  51, 255]], dtype=torch.uint8), 255)
    """
    check_shape(array, where)
    if array.dtype.kind == "f":
        _check_unit_range(array, where)
        return _from_floating(array)
    if array.dtype not in (np.dtype(bool), np.dtype(np.uint8)):
        raise _other_numbers(array, where)
    # Levels 0 and 1 alone are a binary set: nobody means 1/255 as the brightest grey.
    binary = array.max() == 1
    return _tensor(array, np.uint8), 1 if binary else 255


def check_shape(array: Array, where: str) -> None:
    """Check for shape (N, ...), with an event dimension and at least one image."""
    if array.ndim < 2:
        hint = "array[None] for a single image, or array.reshape(N, ...)"
        raise InputError(f"images of shape (N, ...) in {where}", f"shape {array.shape}", hint)
    if array.size == 0:
        raise InputError(f"at least one image in {where}", f"shape {array.shape}", "a set that is not empty")


def _from_floating(array: Array) -> tuple[Tensor, int]:
    if bool(((array == 0) | (array == 1)).all()):
        return _tensor(array, np.uint8), 1
    scaled = np.multiply(array, 255, dtype=np.float32, casting="same_kind")
    nearest = np.rint(scaled)
    if np.abs(scaled - nearest).max() <= 255 * TOLERANCE:
        return _tensor(nearest, np.uint8), 255
    return _tensor(array, np.float32), 255


def _tensor(array: Array, dtype: type[np.generic]) -> Tensor:
    # order="C": a file may have Fortran order or another byte order, which torch does not accept.
    return torch.from_numpy(array.astype(dtype, order="C", copy=False))


def _check_unit_range(array: Array, where: str) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"finite pixels in {where}", "NaN or infinity", "removing those images")
    if low < 0 or high > 1:
        raise _other_numbers(array, where)


def _other_numbers(array: Array, where: str) -> InputError:
    """Return the error for numbers that are no pixels: counts, measurements, or levels of another dtype."""
    if array.dtype.kind not in "iuf":
        hint = "array.astype('uint8') for levels 0 to 255, or floating values from 0 to 1"
        return InputError(f"uint8, bool or floating pixels in {where}", f"dtype {array.dtype}", hint)
    low, high = array.min(), array.max()
    floating = array.dtype.kind == "f"
    expected = f"floating pixels from 0 to 1 in {where}" if floating else f"uint8, bool or floating pixels in {where}"
    found = f"{low:.6g} to {high:.6g}" if floating else f"dtype {array.dtype}, {low} to {high}"
    if low < 0 or (floating and bool((array != np.rint(array)).any())):
        in_python = "fit(program, torch.from_numpy(x)) in Python, which takes any numbers under a likelihood of theirs"
        scaled = "(x - min) / (max - min) where they are brightnesses"
        return InputError(expected, f"{found}, measurements or unscaled pixels", f"{in_python}, or {scaled}")
    if high <= 1:
        return InputError(expected, f"{found}, binary values", "array.astype('uint8')")
    counts = "fit(program, torch.from_numpy(x).float()) in Python, with a Poisson or negative binomial likelihood"
    levels = "array / array.max()" if high > 255 else "array.astype('uint8')"
    got = f"{found}, whole numbers: counts, or grey levels of another dtype"
    return InputError(expected, got, f"{counts}, for counts; {levels} for grey levels")
