"""A training run in progress: where it stands, what an epoch gave, and what watches it."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from pyro_vae.base.random import rng_state, set_rng_state
from pyro_vae.data import Images
from pyro_vae.engines.protocol import Engine, StepInfo
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.contexts import load_parameters
from pyro_vae.program.protocol import Program
from pyro_vae.training.settings import Settings


@dataclass
class Position:
    """Where a run stands; with the parameters, optimiser and random states, all that a resumed run needs."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    objective_sum: float = 0.0  # nats, over the data of this epoch so far
    seen: int = 0  # data of this epoch so far
    kl_weight: float = 1.0  # least of this epoch so far
    learning_rate: float = 0.0  # of the last step
    best: float = -math.inf  # best held-out bound, nats per datum
    best_epoch: int = 0
    seconds: float = 0.0  # time spent in steps


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; nats per datum."""

    epoch: int
    step: int
    objective: float  # mean over the epoch; a bound where kl_weight is 1
    kl_weight: float  # the least of the epoch
    learning_rate: float
    seconds: float
    bound: float | None = None  # held out; None without validation data
    bound_standard_error: float | None = None
    improved: bool = False
    bounds: list[float] = field(default_factory=list)  # of each replicate, if there are several; bound: their mean


class Hook:
    """Something that watches a loop; override what is of interest."""

    def preparing(self, loop: "Loop") -> None:
        """The engine is about to be made ready, which may take a while and may still refuse the program."""

    def started(self, loop: "Loop") -> None:
        """Training begins or continues."""

    def stepped(self, loop: "Loop", info: StepInfo) -> None:
        """One step is done, and ``loop.position`` counts it."""

    def epoch_ended(self, loop: "Loop", record: EpochRecord) -> None:
        """One epoch is done, and ``loop.position`` stands at the start of the next."""

    def stopped(self, loop: "Loop") -> None:
        """Training ends, by itself or because :meth:`Loop.stop` was called; not after an error."""

    def closed(self) -> None:
        """Training is over in whatever way, an error included: let go of what was opened."""


@dataclass
class Loop:
    """A training run in progress, as hooks see it."""

    program: Program | Replicates
    engine: Engine
    engine_name: str
    why: str  # this engine
    train: Images
    validation: Images | None
    settings: Settings
    position: Position = field(default_factory=Position)
    history: list[EpochRecord] = field(default_factory=list)
    stopping: str = ""
    settled: bool = True  # whether the parameters stand where the position says; an engine may be some steps ahead

    @property
    def batches(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return math.ceil(len(self.train) / self.settings.batch_size)

    def stop(self, reason: str) -> None:
        """Ask the loop to end before its next step."""
        self.stopping = self.stopping or reason

    def goes_on(self) -> bool:
        """Whether there is a next epoch; out of patience is a reason to stop, also right after resuming."""
        patience = self.settings.patience
        if patience and self.position.epoch - self.position.best_epoch >= patience:
            self.stop(f"no better held-out bound for {patience} epochs")
        return self.position.epoch < self.settings.epochs and not self.stopping

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, in types that load with ``weights_only``."""
        return {
            "program": self.program.state_dict(),
            "engine": self.engine.state_dict(),
            "engine_name": self.engine_name,
            "rng": rng_state(self.train.device),
            "position": asdict(self.position),
            "history": [asdict(record) for record in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        load_parameters(self.program, state["program"])
        self.engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"], self.train.device)
        self.position = Position(**state["position"])
        self.history = [EpochRecord(**record) for record in state["history"]]

    def kl_weight(self, later: int = 0) -> float:
        """The KL's weight in the coming step, or so many later: linear over ``kl_warmup`` epochs, never 0, then 1."""
        steps = self.settings.kl_warmup * self.batches
        return min(1.0, (self.position.step + later + 1) / steps) if steps else 1.0
