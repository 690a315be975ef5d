"""What every way of taking a step promises, so that all are checked and timed alike."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.base.random import seed_noise
from pyro_vae.models.vae import VAE
from pyro_vae.studies.benchmark.memory import working_memory
from pyro_vae.studies.benchmark.sizes import Size


class Unavailable(Exception):
    """This variant is not available here; the message says why, and what would make it so."""


class Variant(ABC):
    """A program, a batch, and a way of taking Adam's steps on it.

    Args:
        size: what is trained.
        vae: the program, on its device, with the parameters to start from; the variant's own.
        x: the batch of every step, (B, *event_shape).

    Raises:
        Unavailable: what it needs is not installed, or not in this version.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        self.size, self.vae, self.x = size, vae, x

    @abstractmethod
    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps, wait until the last is done, and return its loss, nats per example."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the surroundings that :meth:`run` needs; entering costs no step's time."""
        yield

    def close(self) -> None:  # noqa: B027  # most keep nothing
        """Free what is kept between measurements."""

    def seed(self, seed: int) -> None:
        """Fix the noise of the steps to come."""
        seed_noise(seed, self.x.device)

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters by the program's names."""
        return {name: p.detach().clone() for name, p in self.vae.named_parameters()}

    def memory(self) -> float | None:
        """Return the working memory of a step, in bytes."""
        self.vae.zero_grad()  # so that the profiler sees where every tensor came from that a step frees
        return working_memory(lambda: self.run(1, 0.0), self.x.device)


def bare(network: torch.nn.Module) -> torch.nn.Module:
    """Return the layers of a network without what checks and reshapes around them."""
    layers: torch.nn.Module = network.get_submodule("layers")
    return layers
