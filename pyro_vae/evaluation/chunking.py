"""How much of an evaluation is done at once: what bounds its memory."""

from torch import Tensor

DECODES_AT_ONCE = 5000  # data times particles that go through the decoder together
PARTICLES_AT_ONCE = 100


def particle_chunks(num_particles: int) -> list[int]:
    """Return the particles of every chunk.

    Example:
        >>> particle_chunks(250)
        [100, 100, 50]
    """
    starts = range(0, num_particles, PARTICLES_AT_ONCE)
    return [min(PARTICLES_AT_ONCE, num_particles - start) for start in starts]


def data_chunks(x: Tensor, num_particles: int) -> tuple[Tensor, ...]:
    """Return the data in chunks that may each take that many particles, in chunks of their own.

    Example:
        >>> import torch
        >>> [len(part) for part in data_chunks(torch.zeros(120, 4), 1000)]
        [50, 50, 20]
    """
    parts: tuple[Tensor, ...] = x.split(max(1, DECODES_AT_ONCE // max(1, min(num_particles, PARTICLES_AT_ONCE))))
    return parts
