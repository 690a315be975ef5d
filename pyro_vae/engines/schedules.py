"""Learning-rate schedules: pure functions of the epoch."""

import math
from collections.abc import Callable

from pyro_vae.base.errors import InputError

Schedule = Callable[[float, int], float]  # (fractional epoch, number of epochs) -> factor of the learning rate


def constant() -> Schedule:
    """Keep the learning rate constant."""
    return lambda epoch, epochs: 1.0


def cosine(final: float = 0.0) -> Schedule:
    """Anneal the factor from 1 to ``final`` along half a cosine over all epochs.

    Example:
        >>> cosine()(5.0, 10)
        0.5
    """
    _check_fraction("final", final)
    return lambda epoch, epochs: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


def exponential(gamma: float = 0.99) -> Schedule:
    """Multiply the learning rate by ``gamma`` after each epoch."""
    _check_fraction("gamma", gamma)
    return lambda epoch, epochs: gamma ** int(epoch)


def multistep(every: int = 10, gamma: float = 0.1) -> Schedule:
    """Multiply the learning rate by ``gamma`` after every ``every`` epochs."""
    _check_fraction("gamma", gamma)
    if not isinstance(every, int) or every < 1:
        raise InputError("every as a whole number of epochs, at least 1", repr(every), "every=10")
    return lambda epoch, epochs: gamma ** (int(epoch) // every)


def _check_fraction(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"a {name} from 0 to 1", value, f"{name}=0.5")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "multistep": multistep,
}
