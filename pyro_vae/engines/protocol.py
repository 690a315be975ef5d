"""What an engine is: a way to execute one step of training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.types import State
from pyro_vae.engines.batches import Batches
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.protocol import Program


@dataclass(frozen=True)
class StepInfo:
    """What one step did."""

    objective: float  # nats per example; a bound only where kl_weight is 1
    kl_weight: float
    learning_rate: float
    grad_norm: float  # Euclidean, over all parameters, before clipping; of replicates, the largest
    replicates: tuple[float, ...] = ()  # the objective of each, if there are several


class Engine(Protocol):
    """Executes steps on one program; used as a context manager, inside which the program's store is active."""

    def __enter__(self) -> Self:
        """Activate the program's parameters."""

    def __exit__(self, *exc: object) -> None:
        """Restore what was active before."""

    def prepare(self, x: Tensor, kl_weight: float) -> None:
        """Prepare for batches of the shape of x; what the first step would refuse is refused now."""

    def step(self, x: Tensor, learning_rate: float, kl_weight: float) -> StepInfo:
        """Take one gradient step on a batch (B, *event_shape)."""

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch, some at a time; the parameters are those after the last step of a list."""

    def state_dict(self) -> State:
        """Return the optimiser's state, loadable with ``weights_only``."""

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`."""


class EngineValue(Protocol):
    """A frozen value that says how steps are executed, and starts an engine for a program."""

    def start(
        self,
        program: Program | Replicates,
        estimator: ELBO,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        kl_weighted: bool = False,
    ) -> Engine:
        """Return the engine for a program; ``kl_weighted`` says whether steps may weight the KL."""


def one_by_one(engine: Engine, batches: Batches) -> Iterator[list[StepInfo]]:
    """Run an epoch by single steps, each batch made just before its step."""
    rates, weights = batches.learning_rates, batches.kl_weights
    for number in range(batches.start, len(batches)):
        yield [engine.step(batches.batch(number), rates[number], weights[number])]
