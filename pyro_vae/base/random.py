"""Random-number states: isolated for a block, and streams that are functions of a key."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import State

RngState = State


def rng_state(device: torch.device) -> RngState:
    """Return the random states of torch, Python and numpy, in types that ``torch.load(weights_only=True)`` reads."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: RngState = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: RngState, device: torch.device) -> None:
    """Restore what :func:`rng_state` returned.

    Raises:
        InputError: the state is from another device type, whose noise cannot be continued on this one.
    """
    if ("cuda" in state) != (device.type == "cuda"):
        was = "cuda" if "cuda" in state else "cpu"
        raise InputError(f"device {was}, on which the run was started", str(device), f"device='{was}'")
    version, internal, gauss = state["python"]
    kind, keys, position, has_gauss, cached = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def noise_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator of Pyro's noise on a device; cheap enough for every step."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_noise_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore what :func:`noise_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed that generator alone; ``torch.manual_seed`` seeds every device, which takes milliseconds."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run a block on isolated random states; the caller's are restored afterwards, also after an error.

    Args:
        device: the device whose generator the block uses, in addition to the CPU's.
        seed: seed of torch, numpy and Python for the block; None starts it from the caller's states.

    Example:
        >>> import torch
        >>> from pyro_vae.base import isolated_rng
        >>> with isolated_rng(torch.device("cpu"), seed=0):
        ...     x = torch.rand(2)
        >>> with isolated_rng(torch.device("cpu"), seed=0):
        ...     bool((x == torch.rand(2)).all())
        True
    """
    before = rng_state(device)
    try:
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        yield
    finally:
        set_rng_state(before, device)


def generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator whose stream is a function of a key, a tuple of integers such as (seed, epoch, batch).

    numpy's ``SeedSequence`` mixes the key, so the streams of different keys are independent, and any batch of any epoch
    can be made again without the batches before it.
    """
    seed = int(np.random.SeedSequence(key).generate_state(2, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)
