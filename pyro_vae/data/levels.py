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
        hint = (
            "array.astype('uint8') for levels 0 to 255, floating values from 0 to 1, or fit(program, array) for counts"
        )
        raise InputError(f"uint8, bool or floating pixels in {where}", f"dtype {array.dtype}", hint)
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
        hint = "(x - min) / (max - min), or uint8 levels 0 to 255"
        raise InputError(f"floating pixels from 0 to 1 in {where}", f"{low:.6g} to {high:.6g}", hint)
