"""The protocol of engines: an engine executes training steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from pyro.infer import ELBO

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.base.types import State
from pyro_vae.engines.batches import Batches
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.protocol import Program


@dataclass(frozen=True)
class StepInfo:
    """The figures of one step."""

    objective: float  # −loss/B: nats per example, times the program's scales; a bound only where kl_weight is 1
    kl_weight: float
    learning_rate: float
    grad_norm: float  # Euclidean, over all parameters, before clipping; the largest of the replicates
    replicates: tuple[float, ...] = ()  # the objective of each replicate; empty for a single program


class Engine(Protocol):
    """Executes steps on a program or on replicates; a context manager that activates the program's parameter store."""

    def __enter__(self) -> Self:
        """Activate the program's parameter store."""

    def __exit__(self, *exc: object) -> None:
        """Restore the former parameter store."""

    def prepare(self, x: Batch, kl_weight: float) -> None:
        """Prepare for batches of the shape of x, and raise now what the first step would raise."""

    def step(self, x: Batch, learning_rate: float, kl_weight: float) -> StepInfo:
        """Take one gradient step on a batch (B, *event_shape), or on the arguments of a call."""

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch in blocks; on yielding a block, the parameters are those after its last step."""

    def state_dict(self) -> State:
        """Return the state of optimiser and estimator, loadable with ``weights_only``."""

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`."""


class EngineValue(Protocol):
    """An engine as a frozen value; :meth:`start` builds the engine for a program."""

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


def check_kl_weight(kl_weight: float, kl_weighted: bool) -> None:
    """Check that an engine was started for steps with this weight of the KL.

    Raises:
        InputError: a weight other than 1 on an engine started without ``kl_weighted``.
    """
    if kl_weight != 1 and not kl_weighted:
        raise InputError("a KL weight of 1 in an engine not started for another", kl_weight, "kl_weighted=True")


def one_by_one(engine: Engine, batches: Batches) -> Iterator[list[StepInfo]]:
    """Run an epoch step by step; each batch is gathered just before its step."""
    rates, weights = batches.learning_rates, batches.kl_weights
    for number in range(batches.start, len(batches)):
        yield [engine.step(batches.batch(number), rates[number], weights[number])]
