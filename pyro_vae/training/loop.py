"""A training run in progress: its position, its epochs, its state, and the hooks that watch it."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from pyro_vae.base.errors import InputError, NonFiniteError
from pyro_vae.base.random import generator, rng_state, set_rng_state
from pyro_vae.base.registry import from_spec
from pyro_vae.base.statistics import Estimate
from pyro_vae.base.types import State
from pyro_vae.data import Data
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.protocol import Engine, StepInfo
from pyro_vae.engines.schedules import SCHEDULES
from pyro_vae.evaluation.methods.bounds import held_out_bounds
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.contexts import load_parameters
from pyro_vae.program.protocol import Program
from pyro_vae.training.settings import Settings


@dataclass
class Position:
    """How far a run is; with parameters, optimiser and random states, all that resuming needs."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    objective_sum: float = 0.0  # nats, over the examples of this epoch so far
    seen: int = 0  # examples of this epoch so far
    kl_weight: float = 1.0  # least of this epoch so far
    learning_rate: float = 0.0  # of the last step
    best: float = -math.inf  # best held-out bound, nats per example
    best_epoch: int = 0
    seconds: float = 0.0  # in steps


@dataclass(frozen=True)
class EpochRecord:
    """The figures of one epoch; nats per example."""

    epoch: int
    step: int
    objective: float  # mean of −loss/B over the epoch, with the program's scales; a bound only where kl_weight is 1
    kl_weight: float  # the least of the epoch
    learning_rate: float
    seconds: float
    bound: float | None = None  # held out; None without validation data
    bound_standard_error: float | None = None
    improved: bool = False
    bounds: list[float] = field(default_factory=list)  # of each replicate, if there are several; bound: their mean


class Hook:
    """Watches a loop; override the methods of interest."""

    def preparing(self, loop: "Loop") -> None:
        """The engine is about to be prepared, which may take a while and may still refuse the program."""

    def started(self, loop: "Loop") -> None:
        """Training starts or resumes."""

    def stepped(self, loop: "Loop", info: StepInfo) -> None:
        """One step is done; ``loop.position`` includes it."""

    def epoch_ended(self, loop: "Loop", record: EpochRecord) -> None:
        """One epoch is done; ``loop.position`` is at the start of the next."""

    def stopped(self, loop: "Loop") -> None:
        """Training ends, by itself or after :meth:`Loop.stop`; not after an error."""

    def closed(self) -> None:
        """Training is over, by an error too: close what was opened."""


@dataclass
class Loop:
    """A training run in progress, as hooks see it."""

    program: Program | Replicates
    engine: Engine
    engine_name: str
    why: str  # this engine
    train: Data
    validation: Data | None
    settings: Settings
    position: Position = field(default_factory=Position)
    history: list[EpochRecord] = field(default_factory=list)
    stopping: str = ""
    settled: bool = True  # whether the parameters are those of the position; an engine may be some steps ahead
    _clock: float = 0.0  # since when the engine has been working

    @property
    def batches(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return math.ceil(len(self.train) / self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, unless it is stopped."""
        return total_steps(self.settings, len(self.train))

    def stop(self, reason: str) -> None:
        """Ask the loop to end before its next step."""
        self.stopping = self.stopping or reason

    def unfinished(self) -> bool:
        """Whether there are steps left to take; patience and max_steps are reasons to stop, also after resuming."""
        settings, position = self.settings, self.position
        if settings.patience and position.epoch - position.best_epoch >= settings.patience:
            self.stop(f"no better held-out bound for {settings.patience} epochs")
        if position.epoch >= settings.epochs:
            return False
        if settings.max_steps is not None and position.step >= settings.max_steps:
            self.stop(f"max_steps={settings.max_steps}")
        return not self.stopping

    def epoch(self) -> Batches:
        """Return the remaining batches of the current epoch, and start the clock."""
        settings, position, device = self.settings, self.position, self.train.device
        key = settings.seed, position.epoch
        order = torch.randperm(len(self.train), generator=generator(device, *key, 0), device=device)
        self.program.train(True)
        batches = Batches(
            data=self.train,
            order=order[: (position.batch + self.total_steps - position.step) * settings.batch_size],
            size=settings.batch_size,
            start=position.batch,
            key=(*key, 1),
            learning_rates=self._learning_rates(),
            kl_weights=[self.kl_weight(batch - position.batch) for batch in range(self.batches)],
        )
        self._clock = time.perf_counter()
        return batches

    def count(self, infos: list[StepInfo], hooks: Sequence[Hook]) -> None:
        """Count steps that the engine has taken, and tell the hooks; only the engine's time is counted."""
        self.position.seconds += time.perf_counter() - self._clock
        for number, info in enumerate(infos, 1):
            self._count(info)
            self.settled = number == len(infos)
            for hook in hooks:
                hook.stepped(self, info)
        self._clock = time.perf_counter()

    def end_epoch(self, hooks: Sequence[Hook]) -> None:
        """Record the epoch and tell the hooks, if all its batches are done."""
        if self.position.batch < self.batches:
            return
        record = self._record()
        position = self.position
        position.epoch, position.batch, position.objective_sum, position.seen = record.epoch, 0, 0.0, 0
        self.history.append(record)
        for hook in hooks:
            hook.epoch_ended(self, record)

    def state_dict(self) -> State:
        """Return all that resuming needs, in types that load with ``weights_only``."""
        return {
            "program": self.program.state_dict(),
            "engine": self.engine.state_dict(),
            "engine_name": self.engine_name,
            "settings": self.settings.shared(),
            "rng": rng_state(self.train.device),
            "position": asdict(self.position),
            "history": [asdict(record) for record in self.history],
        }

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`."""
        load_parameters(self.program, state["program"])
        self.engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"], self.train.device)
        self.position = Position(**state["position"])
        self.history = [EpochRecord(**record) for record in state["history"]]

    def kl_weight(self, later: int = 0) -> float:
        """The KL's weight in the coming step, or so many later: linear over ``kl_warmup`` epochs, never 0, then 1."""
        steps = self.settings.kl_warmup * self.batches
        return min(1.0, (self.position.step + later + 1) / steps) if steps else 1.0

    def _learning_rates(self) -> list[float]:
        """Return the learning rate of every batch of the current epoch."""
        settings, epoch, batches = self.settings, self.position.epoch, self.batches
        schedule = from_spec(SCHEDULES, settings.schedule, "schedule")
        return [settings.learning_rate * schedule(epoch + batch / batches, settings.epochs) for batch in range(batches)]

    def _count(self, info: StepInfo) -> None:
        position, size = self.position, self.settings.batch_size
        examples = min(size, len(self.train) - position.batch * size)
        position.objective_sum += info.objective * examples
        position.seen += examples
        position.kl_weight = min(info.kl_weight, position.kl_weight if position.batch else 1.0)
        position.learning_rate = info.learning_rate
        position.batch, position.step = position.batch + 1, position.step + 1

    def _record(self) -> EpochRecord:
        position = self.position
        record = EpochRecord(
            epoch=position.epoch + 1,
            step=position.step,
            objective=position.objective_sum / position.seen,
            kl_weight=position.kl_weight,
            learning_rate=position.learning_rate,
            seconds=position.seconds,
        )
        if self.validation is None:
            return record
        mean, each = self._held_out(self.validation)
        improved = mean.value > position.best
        if improved:
            position.best, position.best_epoch = mean.value, record.epoch
        error = mean.standard_error
        return replace(record, improved=improved, bound=mean.value, bound_standard_error=error, bounds=list(each))

    def _held_out(self, validation: Data) -> tuple[Estimate, tuple[float, ...]]:
        """Return the held-out bound, and that of each replicate; parameters that are not finite are an error."""
        ruined = [f"parameter {name}" for name, p in self.program.named_parameters() if not p.isfinite().all()]
        try:
            if not ruined:
                particles, plate = self.settings.eval_particles, self.settings.vectorize_particles
                return held_out_bounds(
                    self.program, validation, particles, self.settings.seed, vectorize_particles=plate
                )
        except InputError:
            raise
        except ValueError as error:  # Pyro's validation finds a distribution's parameter that is not finite
            ruined = [f"held-out bound, {str(error).splitlines()[0]}"]
        raise NonFiniteError(self.position.step, math.nan, ", ".join(ruined))


def total_steps(settings: Settings, examples: int) -> int:
    """Return the steps of a whole run: all epochs, or max_steps.

    Example:
        >>> total_steps(Settings(epochs=3, batch_size=4), 10), total_steps(Settings(epochs=3, max_steps=5), 10)
        (9, 3)
    """
    steps = settings.epochs * math.ceil(examples / settings.batch_size)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)
