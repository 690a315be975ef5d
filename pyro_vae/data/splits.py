"""Training, validation and test images: as published, or split at random by a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images


@dataclass(frozen=True, eq=False)
class Parts:
    """The splits that a reader found; missing ones are taken from ``train`` at random.

    Args:
        train: the training images, or all images if there is no other split.
        validation: None if it is to be taken from ``train``.
        test: None if it is to be taken from ``train``.
        validation_size: number of validation images to take; None means a tenth.
        source: files and format, one line.
        given: the description of splits that are not random.
    """

    train: Images
    validation: Images | None = None
    test: Images | None = None
    validation_size: int | None = None
    source: str = ""
    given: str = "as published"


def complete(parts: Parts, seed: int) -> tuple[Images, Images, Images]:
    """Return train, validation and test; each missing one is a tenth (at least one image) of ``train``.

    Raises:
        InputError: too few images for non-empty splits, or an invalid seed.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> from pyro_vae.data.splits import Parts
        >>> whole = Images(torch.rand(50, 4))
        >>> [len(split) for split in complete(Parts(whole), seed=0)]
        [40, 5, 5]
    """
    total, tenth = len(parts.train), max(1, len(parts.train) // 10)
    validation = 0 if parts.validation else parts.validation_size or tenth
    test = 0 if parts.test else tenth
    least = 1 + bool(validation) + bool(test)
    if validation + test >= total:
        raise InputError(f"at least {least} images to split", total, "more images, or your own splits")
    indices = _random_parts(total, [test, validation], seed)
    return (
        parts.train.subset(indices[2]) if validation + test else parts.train,
        parts.validation or parts.train.subset(indices[1]),
        parts.test or parts.train.subset(indices[0]),
    )


def how_split(parts: Parts, seed: int) -> str:
    """Return how the splits were made, in words, for ``info.json``.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> from pyro_vae.data.splits import Parts
        >>> x = Images(torch.rand(9, 2))
        >>> how_split(Parts(x, test=x), seed=0)
        'validation by seed 0, the rest as published'
    """
    if parts.validation and parts.test:
        return parts.given
    if not parts.validation and not parts.test:
        return f"by seed {seed}"
    missing = "test" if parts.validation else "validation"
    return f"{missing} by seed {seed}, the rest {parts.given}"


def _random_parts(total: int, sizes: list[int], seed: int) -> list[Tensor]:
    """Divide 0..total-1 into disjoint random sets of the given sizes and the rest, each sorted."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("a seed from 0 to 2**63 - 1", repr(seed), "seed=0")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in torch.split(order, [*sizes, total - sum(sizes)])]
