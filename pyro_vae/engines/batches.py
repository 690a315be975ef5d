"""The batches of one epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.base.random import generator
from pyro_vae.data import Images


@dataclass(frozen=True, eq=False)
class Batches:
    """The rest of one epoch, from batch ``start`` on.

    Args:
        images: the data, on the device of the engine.
        order: (N,) their order in this epoch; of fewer examples, the epoch ends early.
        size: examples in a batch; the last batch may be smaller.
        start: the first batch to take.
        key: with the number of a batch, fixes its binarization.
        learning_rates: of every batch of the whole epoch.
        kl_weights: of every batch of the whole epoch.

    Example:
        >>> import torch
        >>> images = Images(torch.arange(10.0).reshape(5, 2))
        >>> rates, weights = [0.1] * 3, [1.0] * 3
        >>> epoch = Batches(images, torch.arange(5), 2, start=1, key=(0,), learning_rates=rates, kl_weights=weights)
        >>> [x.tolist() for x in epoch]
        [[[4.0, 5.0], [6.0, 7.0]], [[8.0, 9.0]]]
    """

    images: Images
    order: Tensor
    size: int
    start: int
    key: tuple[int, ...]
    learning_rates: Sequence[float]
    kl_weights: Sequence[float]

    def __len__(self) -> int:
        """Return how many batches the whole epoch has."""
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        """Gather and binarize one batch after the other, each (B, *event_shape)."""
        return (self.batch(number) for number in range(self.start, len(self)))

    def batch(self, number: int) -> Tensor:
        """Gather and binarize one batch; the same number gives the same batch."""
        index = self.order[number * self.size : (number + 1) * self.size]
        return self.images.batch(index, generator(self.images.device, *self.key, number))
