"""Where an evaluation runs: evaluation mode, the program's own parameter store, random states of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_vae.devices import isolated_rng
from pyro_vae.program import Program, own_store


@contextmanager
def evaluating(program: Program, device: torch.device, seed: int) -> Iterator[None]:
    """Run a block that looks at a program and changes nothing: neither its mode nor the caller's random states.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE((4,), latent_dim=2)
        >>> with evaluating(vae, torch.device("cpu"), seed=0):
        ...     vae.training
        False
        >>> vae.training
        True
    """
    was_training = getattr(program, "training", True)
    program.train(False)
    try:
        with isolated_rng(device, seed), own_store(program):
            yield
    finally:
        program.train(was_training)
