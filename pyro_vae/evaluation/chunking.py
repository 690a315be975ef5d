"""Chunks of examples and of particles: what bounds the memory of an evaluation."""

from typing import TypeVar

from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.statistics import chunk_sizes

DECODED_AT_ONCE = 5000  # examples times particles that the decoder maps together
X = TypeVar("X", Tensor, Batch)
PARTICLES_AT_ONCE = 100
STATES_AT_ONCE = 4000  # examples times particles or chains


def fitting(at_once: int, each: int) -> int:
    """Return how many groups of ``each`` rows fit into a chunk of ``at_once`` rows; at least one.

    Example:
        >>> fitting(2000, 50), fitting(10, 50)
        (40, 1)
    """
    return max(1, at_once // each)


def split_examples(x: X, each: int, at_once: int) -> tuple[X, ...]:
    """Split examples into chunks of at most ``at_once`` rows, where each example takes ``each`` rows.

    Example:
        >>> import torch
        >>> [len(part) for part in split_examples(torch.zeros(120, 4), 40, 2000)]
        [50, 50, 20]
    """
    parts: tuple[X, ...] = x.split(fitting(at_once, each))
    return parts


def particle_chunks(num_particles: int) -> list[int]:
    """Return the number of particles of every chunk.

    Example:
        >>> particle_chunks(250)
        [100, 100, 50]
    """
    return chunk_sizes(num_particles, PARTICLES_AT_ONCE)


def particle_pieces(num_particles: int, examples: int, at_once: int) -> list[int]:
    """Return the number of particles of every piece, each drawn for all ``examples`` together.

    Example:
        >>> particle_pieces(5, 1000, 2000)
        [2, 2, 1]
    """
    return chunk_sizes(num_particles, fitting(at_once, examples))


def example_chunks(x: X, num_particles: int) -> tuple[X, ...]:
    """Split examples that draw their particles in :func:`particle_chunks`.

    Example:
        >>> import torch
        >>> [len(part) for part in example_chunks(torch.zeros(120, 4), 1000)]
        [50, 50, 20]
    """
    return split_examples(x, max(1, min(num_particles, PARTICLES_AT_ONCE)), DECODED_AT_ONCE)


def state_chunks(x: X, states: int) -> tuple[X, ...]:
    """Split examples whose ``states`` particles or chains are in memory together."""
    return split_examples(x, states, STATES_AT_ONCE)


def sample_chunks(x: Batch, samples: int) -> list[int]:
    """Return the sizes of chunks of samples, each drawn for all examples of ``x`` together."""
    return chunk_sizes(samples, fitting(STATES_AT_ONCE, len(x)))
