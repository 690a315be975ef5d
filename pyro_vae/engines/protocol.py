"""What an engine is: a way to execute one step of training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from pyro_vae.engines.batches import Batches


@dataclass(frozen=True)
class StepInfo:
    """What one step did."""

    objective: float  # nats per datum; a bound where kl_weight is 1, else not one
    kl_weight: float
    learning_rate: float
    grad_norm: float  # Euclidean, over all parameters, before clipping; of replicates, the largest
    replicates: tuple[float, ...] = ()  # the objective of each, where there are several


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
