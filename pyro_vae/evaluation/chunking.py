"""How much of an evaluation is in memory at once."""

from torch import Tensor

from pyro_vae.base.statistics import chunk_sizes

DECODED_AT_ONCE = 5000  # examples times particles that go through the decoder together
PARTICLES_AT_ONCE = 100
STATES_AT_ONCE = 4000  # particles or chains, times examples


def particle_chunks(num_particles: int) -> list[int]:
    """Return the particles of every chunk.

    Example:
        >>> particle_chunks(250)
        [100, 100, 50]
    """
    return chunk_sizes(num_particles, PARTICLES_AT_ONCE)


def example_chunks(x: Tensor, num_particles: int) -> tuple[Tensor, ...]:
    """Split examples so that each chunk takes that many particles, in :func:`particle_chunks`.

    Example:
        >>> import torch
        >>> [len(part) for part in example_chunks(torch.zeros(120, 4), 1000)]
        [50, 50, 20]
    """
    return _split(x, max(1, min(num_particles, PARTICLES_AT_ONCE)), DECODED_AT_ONCE)


def state_chunks(x: Tensor, states: int) -> tuple[Tensor, ...]:
    """Split examples so that ``states`` per example are in memory together."""
    return _split(x, states, STATES_AT_ONCE)


def sample_chunks(x: Tensor, samples: int) -> list[int]:
    """Return the samples of every chunk, for examples whose samples are in memory together."""
    return chunk_sizes(samples, max(1, STATES_AT_ONCE // len(x)))


def _split(x: Tensor, states: int, at_once: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.split(max(1, at_once // states))
    return parts
