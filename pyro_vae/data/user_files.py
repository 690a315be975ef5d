"""The user's images: a file with one array or named splits, or a folder of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.data.image_folder import SPLITS, Found, read_folder
from pyro_vae.data.images import Binarization, Images
from pyro_vae.data.levels import check_shape, to_levels
from pyro_vae.data.reading import Array, check_not_empty, read_npy, read_npz, reading
from pyro_vae.data.splits import Parts

IMAGES, LABELS = ("images", "x"), ("labels", "y")


def read_user_files(path: Path) -> Parts:
    """Read ``.npy``, ``.npz``, ``.pt`` or a folder of pictures.

    An archive contains one array (under any name, or ``images`` or ``x`` among others) and optionally ``labels``;
    or ``train`` and optionally ``validation`` (``valid``, ``val``), ``test`` and ``<split>_labels``. Missing splits
    are taken from ``train`` at random.

    Raises:
        InputError: the file, or something in it, is not usable; the message names both.
    """
    if path.is_dir():
        return _assemble(read_folder(path), str(path), "folder of pictures")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        expected = f"a folder of pictures or a file {', '.join(READERS)}"
        raise InputError(expected, f"{str(path)!r}", "numpy.save(path, images)")
    found = _by_name(READERS[suffix](path), str(path))
    return _assemble(found, str(path), f"{suffix} file")


def default_binarization(images: Images) -> Binarization:
    """Return the default for a user's images: dynamic for grey ones, whose levels are probabilities, else none.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> default_binarization(Images(torch.tensor([[[7, 99]]], dtype=torch.uint8)))
        'dynamic'
    """
    event = images.event_shape
    several_channels = len(event) > 2 and 1 not in (event[0], event[-1])
    return "none" if several_channels or images.is_binary else "dynamic"


def _read_pt(path: Path) -> dict[str, Array]:
    """Read a tensor or a dict of tensors; other pickled objects are rejected, since they can run code."""
    check_not_empty(path)
    with reading(path, "a tensor or a dict of tensors") as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
        tensors = content if isinstance(content, dict) else {IMAGES[0]: content}
        return {str(name): _to_numpy(value) for name, value in tensors.items()}


def _to_numpy(value: object) -> Array:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} where a tensor should be")
    plain = value.detach()
    if plain.dtype == torch.bfloat16:  # numpy has none
        plain = plain.float()
    array: Array = plain.numpy()
    return array


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": lambda path: {IMAGES[0]: read_npy(path)},
    ".npz": read_npz,
    ".pt": _read_pt,
}


def _by_name(arrays: dict[str, Array], where: str) -> dict[str, Found]:
    named = {name for names in SPLITS.values() for name in names}
    if named & arrays.keys():
        return _splits(arrays, where)
    return {"train": _sole(arrays, where)}


def _sole(arrays: dict[str, Array], where: str) -> Found:
    labels = _one_of(arrays, LABELS, where)
    others = [name for name in arrays if name not in LABELS]
    images = _one_of(arrays, IMAGES, where)
    if images is None and len(others) == 1:
        images = arrays[others[0]]
    if images is None:
        got = ", ".join(arrays) or "none"
        raise InputError(f"one array, or one called images, or train in {where}", got, "renaming the arrays")
    return images, labels


def _splits(arrays: dict[str, Array], where: str) -> dict[str, Found]:
    """Return the named splits; an unknown name is an error, since it may be a misspelt split."""
    known = {f"{name}{end}" for names in SPLITS.values() for name in names for end in ("", "_labels")}
    if "train" not in arrays or not arrays.keys() <= known:
        expected = f"train, validation, test, each with or without <split>_labels, in {where}"
        raise InputError(expected, ", ".join(arrays), "renaming the arrays, or leaving out the others")
    found: dict[str, Found] = {}
    for split, names in SPLITS.items():
        images = _one_of(arrays, names, where)
        if images is not None:
            found[split] = images, _one_of(arrays, tuple(f"{name}_labels" for name in names), where)
    return found


def _one_of(arrays: dict[str, Array], names: tuple[str, ...], where: str) -> Array | None:
    there = [name for name in names if name in arrays]
    if len(there) > 1:
        raise InputError(f"one of {', '.join(names)} in {where}", f"{' and '.join(there)}", "leaving one out")
    return arrays[there[0]] if there else None


def _assemble(found: dict[str, Found], where: str, what: str) -> Parts:
    """Store all splits alike: levels of 255 in one are levels of 255 in the others."""
    for split, (images, _) in found.items():
        check_shape(images, f"{split} of {where}" if len(found) > 1 else where)
    _check_alike({split: images for split, (images, _) in found.items()}, where)
    pixels, top = to_levels(np.concatenate([images for images, _ in found.values()]), where)
    stored = torch.split(pixels, [len(images) for images, _ in found.values()])
    splits = {
        split: Images(part, _to_labels(labels, len(part), where), top)
        for part, (split, (_, labels)) in zip(stored, found.items(), strict=True)
    }
    validation, test = splits.get("validation"), splits.get("test")
    return Parts(splits["train"], validation, test, source=f"{what} {where}", given="as given")


def _check_alike(arrays: dict[str, Array], where: str) -> None:
    kinds = {split: (array.dtype, array.shape[1:]) for split, array in arrays.items()}
    if len(set(kinds.values())) > 1:
        got = "; ".join(f"{split} {dtype} {shape}" for split, (dtype, shape) in kinds.items())
        raise InputError(f"one dtype and one image shape in {where}", got, "saving the splits alike")


def _to_labels(labels: Array | None, number: int, where: str) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.shape not in ((number,), (number, 1)):
        expected = f"integer labels of shape ({number},) in {where}"
        raise InputError(expected, f"{labels.dtype} {labels.shape}", "numbering the classes from 0")
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))
