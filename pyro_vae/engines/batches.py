"""The batches of one epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.random import generator
from pyro_vae.data import Data


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of one epoch, from number ``start``.

    Args:
        data: the data, on the device of the engine.
        order: (N,) indices of the examples, in the order of this epoch; with fewer than N, the epoch ends early.
        size: examples per batch; the last batch may be smaller.
        start: number of the first batch.
        key: (key, batch number) seeds the binarization of a batch.
        learning_rates: one per batch of the whole epoch.
        kl_weights: one per batch of the whole epoch.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> images = Images(torch.arange(10.0).reshape(5, 2))
        >>> rates, weights = [0.1] * 3, [1.0] * 3
        >>> epoch = Batches(images, torch.arange(5), 2, start=1, key=(0,), learning_rates=rates, kl_weights=weights)
        >>> [x.tolist() for x in epoch]
        [[[4.0, 5.0], [6.0, 7.0]], [[8.0, 9.0]]]
    """

    data: Data
    order: Tensor
    size: int
    start: int
    key: tuple[int, ...]
    learning_rates: Sequence[float]
    kl_weights: Sequence[float]

    def __len__(self) -> int:
        """Return the number of batches in the whole epoch."""
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, gathered and binarized, each (B, *event_shape), or the arguments of a call."""
        return (self.batch(number) for number in range(self.start, len(self)))

    def batch(self, number: int) -> Batch:
        """Gather and binarize one batch: a pure function of (key, number)."""
        index = self.order[number * self.size : (number + 1) * self.size]
        return self.data.batch(index, generator(self.data.device, *self.key, number))
