"""Training, validation and test images: as they were published, or drawn by a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.data.images import Images


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reader found: some splits are there, and a seed draws the missing ones out of ``train``.

    Args:
        train: The training images, or all images where nothing else is given.
        validation: None if it is to be drawn.
        test: None if it is to be drawn.
        validation_size: How many to draw for validation; None means a tenth.
        source: Which files and format, one line.
        given: What to call a split that is not drawn.
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
        InputError: Too few images for splits that are not empty, or an unusable seed.

    Example:
        >>> whole = Images(torch.rand(50, 4))
        >>> [len(split) for split in complete(Parts(whole), seed=0)]
        [40, 5, 5]
    """
    total, tenth = len(parts.train), max(1, len(parts.train) // 10)
    validation = 0 if parts.validation else parts.validation_size or tenth
    test = 0 if parts.test else tenth
    least = 1 + bool(validation) + bool(test)
    if validation + test >= total:
        raise InputError(f"at least {least} images to split", total, "more images, or splits of your own")
    drawn = _drawn(total, [test, validation], seed)
    return (
        parts.train.subset(drawn[2]) if validation + test else parts.train,
        parts.validation or parts.train.subset(drawn[1]),
        parts.test or parts.train.subset(drawn[0]),
    )


def how_split(parts: Parts, seed: int) -> str:
    """Say how the splits came about, for ``run.json``.

    Example:
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


def _drawn(total: int, sizes: list[int], seed: int) -> list[Tensor]:
    """Divide 0..total-1 into disjoint sets of the given sizes and the rest, each in the order of the file."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("a seed from 0 to 2**63 - 1", repr(seed), "seed=0")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in torch.split(order, [*sizes, total - sum(sizes)])]
