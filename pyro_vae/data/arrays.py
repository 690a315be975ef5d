"""Arrays of NumPy as tensors."""

from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError

Array: TypeAlias = npt.NDArray[Any]


def is_array(thing: object) -> TypeGuard[Array]:
    """Whether a thing is an array of NumPy."""
    return isinstance(thing, np.ndarray)


def to_tensor(array: Array) -> Tensor:
    """Return an array of numbers as a tensor: floating as float32, as in data files; bool, uint8 and integers likewise.

    Raises:
        InputError: text, objects, dates or complex numbers.

    Example:
        >>> import numpy as np
        >>> to_tensor(np.array([[0.5, 1.0]])), to_tensor(np.array([3, 4], dtype=np.uint16))
        (tensor([[0.5000, 1.0000]]), tensor([3, 4]))
    """
    if array.dtype.kind not in "biuf":
        hint = "np.stack(rows), of one length each" if array.dtype.kind == "O" else "array.astype('float32')"
        raise InputError("an array of numbers", f"dtype {array.dtype}", hint)
    kind = np.float32 if array.dtype.kind == "f" else array.dtype.type
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        kind = np.int64  # torch computes with no larger unsigned integers
    own = array.astype(kind, order="C", copy=False)  # a file may have another byte order, which torch does not take
    return torch.from_numpy(own if own.flags.writeable else own.copy())
