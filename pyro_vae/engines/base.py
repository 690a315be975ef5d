"""What an engine is: a way to execute one step of training, and the tables of optimisers and schedules."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engines.batches import Batches
from pyro_vae.errors import InputError

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class StepInfo:
    """What one step did."""

    objective: float  # nats per datum; a bound where kl_weight is 1, else not one
    kl_weight: float
    learning_rate: float
    grad_norm: float  # Euclidean, over all parameters, before clipping


class Engine(Protocol):
    """Executes steps on one program; used as a context manager, inside which the program's store is active."""

    def __enter__(self) -> Self:
        """Activate the program's parameters."""

    def __exit__(self, *exc: object) -> None:
        """Put back what was active before."""

    def prepare(self, x: Tensor, kl_weight: float) -> None:
        """Make ready for batches such as x; what the first step would refuse is refused now."""

    def step(self, x: Tensor, learning_rate: float, kl_weight: float) -> StepInfo:
        """Take one gradient step on a batch (B, *event_shape)."""

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch, some at a time; parameters stand where the last step of a list left them."""

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, loadable with ``weights_only``."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


def one_by_one(engine: Engine, batches: Batches) -> Iterator[list[StepInfo]]:
    """Run an epoch by single steps, each batch made just before its step."""
    rates, weights = batches.learning_rates, batches.kl_weights
    for number in range(batches.start, len(batches)):
        yield [engine.step(batches.batch(number), rates[number], weights[number])]


Schedule = Callable[[float, int], float]  # (epoch, with its fraction; all epochs) -> factor of the learning rate


def constant() -> Schedule:
    """The learning rate as given."""
    return lambda epoch, epochs: 1.0


def cosine(final: float = 0.0) -> Schedule:
    """From 1 to ``final`` along half a cosine over all epochs.

    Example:
        >>> cosine()(5.0, 10)
        0.5
    """
    _share("final", final)
    return lambda epoch, epochs: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


def exponential(gamma: float = 0.99) -> Schedule:
    """Times ``gamma`` after every epoch."""
    _share("gamma", gamma)
    return lambda epoch, epochs: gamma ** int(epoch)


def multistep(every: int = 10, gamma: float = 0.1) -> Schedule:
    """Times ``gamma`` after every ``every`` epochs."""
    _share("gamma", gamma)
    if not isinstance(every, int) or every < 1:
        raise InputError("every as a whole number of epochs, at least 1", repr(every), "every=10")
    return lambda epoch, epochs: gamma ** (int(epoch) // every)


def _share(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"a {name} from 0 to 1", value, f"{name}=0.5")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "multistep": multistep,
}
