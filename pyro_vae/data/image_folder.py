"""A folder of pictures: flat or one folder per class, with or without folders train, validation and test."""

from pathlib import Path

import numpy as np
from PIL import Image

from pyro_vae.base.errors import InputError
from pyro_vae.data.reading import Array, reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
NO_GREY = (".gif", ".webp")  # formats without a grey mode: palette or RGB only
Found = tuple[Array, Array | None]  # images (N, *event_shape), labels (N,)


def read_folder(folder: Path) -> dict[str, Found]:
    """Read every picture of a folder, sorted by path; hidden files are skipped.

    Grey pictures give (N, H, W), colour pictures (N, 3, H, W), both uint8; GIF and WebP pictures are grey if in all
    of them the three channels are equal. With one folder per class, labels number the sorted folder names. Folders
    named train (required), validation and test are splits.

    Raises:
        InputError: no picture, folders of different depths, pictures of different size or kind (the message names
            two), or a broken, animated, transparent or 16-bit picture.
    """
    files = _files(folder)
    groups = _groups(folder, files)
    classes = _classes(folder, groups)
    pixels = dict(zip(files, _stack(files), strict=True))
    return {
        split: (np.stack([pixels[folder / file] for file in members]), _labels(rests, classes))
        for split, (members, rests) in groups.items()
    }


def _files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in paths if not _hidden(path.relative_to(folder)))
    if not files:
        raise InputError(f"pictures {', '.join(SUFFIXES)} in {folder}", "none", "the folder that holds them")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


Group = tuple[list[Path], list[Path]]  # paths from the folder, and the same without the split's name


def _groups(folder: Path, files: list[Path]) -> dict[str, Group]:
    """Group the files by split, if the top folders are named like splits."""
    inner = [file.relative_to(folder) for file in files]
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    tops = {path.parts[0] for path in inner}
    if "train" not in tops or not tops <= split_of.keys():
        return {"train": (inner, inner)}
    groups: dict[str, Group] = {}
    for path in inner:
        members, rests = groups.setdefault(split_of[path.parts[0]], ([], []))
        members.append(path)
        rests.append(Path(*path.parts[1:]))
    return groups


def _classes(folder: Path, groups: dict[str, Group]) -> list[str]:
    """Return the sorted class folders; none if the folder is flat."""
    rests = [rest for _, group in groups.values() for rest in group]
    by_depth = {len(rest.parts): rest for rest in rests}
    if by_depth.keys() not in ({1}, {2}):
        expected = f"pictures all flat, or all in one folder per class, in {folder}"
        raise InputError(expected, " and ".join(f"'{rest}'" for rest in by_depth.values()), "moving the files")
    return sorted({rest.parts[0] for rest in rests}) if 2 in by_depth else []


def _labels(rests: list[Path], classes: list[str]) -> Array | None:
    return np.array([classes.index(rest.parts[0]) for rest in rests]) if classes else None


def _stack(files: list[Path]) -> list[Array]:
    """Read all pictures; raise at one that differs from the first in size or kind."""
    pictures: list[Array] = []
    for file in files:
        pictures.append(_read(file))
        if pictures[-1].shape != pictures[0].shape:
            got = f"{files[0]} {_size(pictures[0])} and {file} {_size(pictures[-1])}"
            raise InputError("pictures of one size and kind", got, "resizing or converting them")
    if all(file.suffix.lower() in NO_GREY for file in files) and all(map(_colourless, pictures)):
        return [picture[0] for picture in pictures]
    return pictures


def _colourless(picture: Array) -> bool:
    return picture.ndim == 3 and bool((picture == picture[0]).all())


def _size(picture: Array) -> str:
    return f"{picture.shape[-2]} x {picture.shape[-1]} {'grey' if picture.ndim == 2 else 'colour'}"


def _read(path: Path) -> Array:
    with reading(path, "a picture") as file, Image.open(file) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise InputError(f"a still picture in {path}", f"{frames} frames", "one file a frame")
        return _levels(_opaque(picture, path), path)


def _opaque(picture: Image.Image, path: Path) -> Image.Image:
    """Drop an alpha channel that is opaque everywhere; transparent pixels need a background, which the user chooses."""
    if picture.mode not in ("LA", "PA", "RGBA") and "transparency" not in picture.info:
        return picture
    if picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(f"an opaque picture in {path}", "transparent pixels", "pasting it on a background")
    return picture.convert("L" if picture.mode in ("L", "LA") else "RGB")


def _levels(picture: Image.Image, path: Path) -> Array:
    """Return (H, W) or (3, H, W) uint8; a palette counts as colour."""
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if picture.mode in ("RGB", "P"):
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    raise InputError(f"an 8-bit grey or RGB picture in {path}", f"mode {picture.mode}", "converting it")
