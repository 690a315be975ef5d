"""The interface of a variant, one way to take training steps, so that all are checked and timed alike."""

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
    """A variant is not available here; the message says why, and how to make it available."""


class Variant(ABC):
    """A program, a batch, and one way to take Adam steps on them.

    Args:
        size: of the program and its batch.
        vae: the program, on its device, with its initial parameters; the variant may change it.
        x: the batch of every step, (B, *event_shape).

    Raises:
        Unavailable: a package or device that it needs is missing.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        self.size, self.vae, self.x = size, vae, x

    @abstractmethod
    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps, wait for the device, and return the last loss, nats per example."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the context that :meth:`run` needs; it is entered outside the timing."""
        yield

    def close(self) -> None:  # noqa: B027  # most variants have nothing to free
        """Free what the variant keeps between measurements."""

    def seed(self, seed: int) -> None:
        """Seed the noise of the following steps."""
        seed_noise(seed, self.x.device)

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters by name."""
        return {name: p.detach().clone() for name, p in self.vae.named_parameters()}

    def memory(self) -> float | None:
        """Return the working memory of a step, in bytes."""
        self.vae.zero_grad()  # so that the profiler sees the allocation of every tensor that a step frees
        return working_memory(lambda: self.run(1, 0.0), self.x.device)


def layers_of(network: torch.nn.Module) -> torch.nn.Module:
    """Return the layers of a network, without its checks and reshapes."""
    layers: torch.nn.Module = network.get_submodule("layers")
    return layers
