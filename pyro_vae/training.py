"""Training: the loop, and what surrounds it as hooks."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.checking import check_particles, check_program
from pyro_vae.data import Images, as_images
from pyro_vae.devices import generator, isolated_rng, resolve_device, rng_state, set_rng_state
from pyro_vae.elbo import ESTIMATORS, Estimator, Weighted
from pyro_vae.engines import AUTO, ENGINES, SCHEDULES, Batches, Engine, StepInfo, choose_engine
from pyro_vae.errors import InputError, NonFiniteError, lookup
from pyro_vae.evaluation.likelihood import held_out_bounds
from pyro_vae.numerics import Estimate
from pyro_vae.program import Program, as_program, load_parameters, own_store
from pyro_vae.replicates import Replicates, members
from pyro_vae.specs import from_spec

CHECKED = 100  # data on which a program is tried out before training


@dataclass(frozen=True)
class Settings:
    """How to train: everything but the program and the data. The fields are those of :func:`fit`."""

    estimator: str | ELBO = "trace_elbo"
    engine: str = AUTO
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    clip_norm: float | None = None
    kl_warmup: float = 0.0
    patience: int | None = None
    eval_particles: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_particles", *_given(self, "patience")):
            _at_least_one(name, getattr(self, name))
        for name in ("learning_rate", *_given(self, "clip_norm")):
            _number(name, getattr(self, name), "as a finite number above 0", lambda v: v > 0)
        _number("kl_warmup", self.kl_warmup, "as a finite number of epochs, 0 or more", lambda v: v >= 0)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError("a seed that is a whole number of at least 0", self.seed, "--seed 0")


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

    program: Program
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


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained program and how it came about."""

    program: Program
    history: list[EpochRecord]
    stopped: str  # why training ended before the last epoch; empty if it did not


def fit(
    program: object,
    train: Images | Tensor,
    *,
    validation: Images | Tensor | None = None,
    device: str | torch.device = "auto",
    hooks: Sequence[Hook] = (),
    resume: dict[str, Any] | None = None,
    **settings: Any,
) -> FitResult:
    r"""Train a program by stochastic variational inference.

    Each epoch takes the data in a fresh order, in batches gathered and binarized on the device; order and
    binarization of any batch follow from (seed, epoch, batch) alone. The caller's random states and parameter
    store are left as they were. The program is moved to the device and trained in place.

    Args:
        program: a :class:`~pyro_vae.VAE`, any ``nn.Module`` with ``model(x)`` and ``guide(x)``, the pair
            of functions ``(model, guide)``, or :class:`~pyro_vae.Replicates` of a program.
        train: the data; a plain tensor's first dimension is the data.
        validation: held-out data; each epoch reports its bound with a standard error.
        device: ``auto`` (CUDA where present), ``cpu`` or ``cuda``.
        hooks: watchers, called in their order.
        resume: a state of :meth:`Loop.state_dict` to continue from.
        settings: the fields of :class:`Settings`:

            * estimator: a name of :data:`~pyro_vae.elbo.ESTIMATORS` with arguments
              (``"trace_elbo:num_particles=5"``), or any ``pyro.infer.ELBO``;
            * engine: ``svi``, ``compiled``, or ``auto``: the compiled one from
              :data:`~pyro_vae.engines.choice.PAYS_FROM` steps on, where the program can be traced;
            * epochs, batch_size: how often over the data, in batches of how many;
            * optimizer, learning_rate: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments
              (``"adam:eps=1e-4"``), and its step. The loss is a sum over the batch, as Pyro has it;
            * schedule: a name of :data:`~pyro_vae.engines.SCHEDULES` with arguments (``"cosine:final=0.1"``);
            * clip_norm: largest norm of the whole gradient; None for no limit;
            * kl_warmup: epochs over which the weight of log p(z) − log q(z|x) rises linearly to 1;
            * patience: stop after this many epochs without a better held-out bound; None never stops;
            * eval_particles: draws a datum for the held-out bound;
            * seed: fixes order, binarization and noise.

    Returns:
        The program, one :class:`EpochRecord` an epoch, and why training stopped early if it did.

    Raises:
        InputError: an argument that does not fit; the message says which and what to try.
        NonFiniteError: a loss or gradient that is not finite, before it reaches the parameters.

    Example:
        >>> from pyro_vae import VAE
        >>> x = torch.bernoulli(torch.full((64, 8, 8), 0.3))
        >>> result = fit(VAE((8, 8), latent_dim=2, hidden=(16,)), x, epochs=2, batch_size=32, device="cpu")
        >>> [record.step for record in result.history]
        [2, 4]
    """
    loop = _loop(program, train, validation, resolve_device(device), _settings(settings), resume)
    with isolated_rng(loop.train.device, loop.settings.seed), loop.engine:
        if resume is not None:
            loop.load_state_dict(resume)
        try:
            for hook in hooks:
                hook.preparing(loop)
            _prepare(loop)
            _run(loop, hooks)
        finally:
            for hook in hooks:
                hook.closed()
    return FitResult(loop.program, loop.history, loop.stopping)


def _prepare(loop: Loop) -> None:
    """Make the engine ready on a batch of either size, and use up no noise."""
    loop.program.train(True)
    with isolated_rng(loop.train.device):
        for size in (loop.settings.batch_size, len(loop.train) % loop.settings.batch_size):
            if size:  # gathered, as the batches of a step are
                x = loop.train.batch(torch.arange(size, device=loop.train.device))
                loop.engine.prepare(x, loop.kl_weight())


def _run(loop: Loop, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        hook.started(loop)
    while loop.goes_on():
        for info in _epoch(loop):
            for hook in hooks:
                hook.stepped(loop, info)
        if loop.position.batch == loop.batches:
            record = _end_epoch(loop)
            for hook in hooks:
                hook.epoch_ended(loop, record)
    for hook in hooks:
        hook.stopped(loop)


def _epoch(loop: Loop) -> Iterator[StepInfo]:
    """Take the remaining steps of the current epoch, yielding each; ends early when asked to stop."""
    settings, position, device = loop.settings, loop.position, loop.train.device
    key = settings.seed, position.epoch
    order = torch.randperm(len(loop.train), generator=generator(device, *key, 0), device=device)
    batches = Batches(
        images=loop.train,
        order=order,
        size=settings.batch_size,
        start=position.batch,
        key=(*key, 1),
        learning_rates=_learning_rates(loop),
        kl_weights=[loop.kl_weight(batch - position.batch) for batch in range(loop.batches)],
    )
    loop.program.train(True)
    blocks = loop.engine.run(batches)
    while not loop.stopping:
        start = time.perf_counter()
        infos = next(blocks, None)
        position.seconds += time.perf_counter() - start
        if infos is None:
            return
        for index, info in enumerate(infos):
            _count(loop, info)
            loop.settled = index == len(infos) - 1
            yield info


def _count(loop: Loop, info: StepInfo) -> None:
    position, size = loop.position, loop.settings.batch_size
    data = min(size, len(loop.train) - position.batch * size)
    position.objective_sum += info.objective * data
    position.seen += data
    position.kl_weight = min(info.kl_weight, position.kl_weight if position.batch else 1.0)
    position.learning_rate = info.learning_rate
    position.batch, position.step = position.batch + 1, position.step + 1


def _learning_rates(loop: Loop) -> list[float]:
    """Return the learning rate of every batch of the current epoch."""
    settings, epoch, batches = loop.settings, loop.position.epoch, loop.batches
    schedule = from_spec(SCHEDULES, settings.schedule, "schedule")
    return [settings.learning_rate * schedule(epoch + batch / batches, settings.epochs) for batch in range(batches)]


def _end_epoch(loop: Loop) -> EpochRecord:
    position = loop.position
    record = EpochRecord(
        epoch=position.epoch + 1,
        step=position.step,
        objective=position.objective_sum / position.seen,
        kl_weight=position.kl_weight,
        learning_rate=position.learning_rate,
        seconds=position.seconds,
    )
    if loop.validation is not None:
        mean, each = _held_out(loop, loop.validation)
        improved = mean.mean > position.best
        error = mean.standard_error
        record = replace(record, improved=improved, bound=mean.mean, bound_standard_error=error, bounds=list(each))
        if improved:
            position.best, position.best_epoch = mean.mean, record.epoch
    position.epoch, position.batch, position.objective_sum, position.seen = record.epoch, 0, 0.0, 0
    loop.history.append(record)
    return record


def _held_out(loop: Loop, validation: Images) -> tuple[Estimate, tuple[float, ...]]:
    """Return the held-out bound, and that of each replicate; parameters that a step ruined are an error."""
    ruined = [f"parameter {name}" for name, p in loop.program.named_parameters() if not p.isfinite().all()]
    particles, seed = loop.settings.eval_particles, loop.settings.seed
    try:
        if not ruined:
            return held_out_bounds(loop.program, validation, particles, seed)
    except ValueError as error:  # Pyro's validation meets a distribution's parameter that is not finite
        ruined = [f"held-out bound, {str(error).splitlines()[0]}"]
    raise NonFiniteError(loop.position.step, math.nan, ", ".join(ruined))


def _try_estimator(estimator: ELBO, program: Program, x: Tensor) -> None:
    """Let one of our estimators refuse the program before anything is written; a copy, for it may remember."""
    if isinstance(estimator, Estimator):
        estimator = copy.deepcopy(estimator)
        program.train(False)
        with isolated_rng(x.device), own_store(program):
            estimator.of_draw(estimator.draw(program.model, program.guide, (x,), {}))
        program.train(True)


def _loop(
    thing: object,
    train: Any,
    validation: Any,
    device: torch.device,
    settings: Settings,
    resumed: dict[str, Any] | None,
) -> Loop:
    train = as_images(train).to(device)
    validation = None if validation is None else as_images(validation).to(device)
    if settings.batch_size > len(train):
        raise InputError(
            f"a batch_size of at most {len(train)}, the number of data", settings.batch_size, f"{len(train)}"
        )
    if validation is not None and validation.event_shape != train.event_shape:
        shapes = f"of shape {tuple(train.event_shape)}", tuple(validation.event_shape)
        raise InputError(f"validation data {shapes[0]}, as the training data", shapes[1], "data of one kind")
    if settings.patience and validation is None:
        raise InputError("validation data for patience", "none", "fit(..., validation=data.validation)")
    from_spec(SCHEDULES, settings.schedule, "schedule")
    estimator = settings.estimator
    if isinstance(estimator, str):
        estimator = from_spec(ESTIMATORS, estimator, "estimator")
    if not isinstance(estimator, ELBO):
        raise InputError("an estimator by name, or a pyro.infer.ELBO", repr(estimator), "'trace_elbo'")
    if settings.kl_warmup and isinstance(estimator, Estimator):
        Weighted(estimator, 0.5)  # refuses estimators that hold for the unweighted KL alone
    with isolated_rng(device, settings.seed):
        example = train.batch(slice(0, CHECKED))
        program = as_program(thing, example.cpu())  # the user's networks are still there
        program.to(device)
        for member in members(program):
            check_program(member, example)
        if validation is not None:
            check_particles(members(program)[0], example)
        _try_estimator(estimator, members(program)[0], example[:10])
    name, why = _engine(settings, math.ceil(len(train) / settings.batch_size), program, estimator, example, resumed)
    engine = from_spec(
        ENGINES,
        name,
        "engine",
        program=program,
        estimator=estimator,
        optimizer=settings.optimizer,
        clip_norm=settings.clip_norm,
    )
    return Loop(program, engine, name, why, train, validation, settings)


def _engine(
    settings: Settings, batches: int, program: Program, estimator: ELBO, x: Tensor, resumed: dict[str, Any] | None
) -> tuple[str, str]:
    """Return the engine by its specification, and why that one; a resumed run keeps the one it began with."""
    asked = settings.engine
    lookup({AUTO: None, **ENGINES}, asked.partition(":")[0].strip(), "engine")
    if resumed is not None:
        began = resumed.get("engine_name", "svi")  # what all runs had before there was a choice
        if asked not in (AUTO, began):
            raise InputError(f"engine {began}, with which the run began", asked, f"--engine {began}")
        return began, "the run began with it"
    if asked != AUTO:
        if isinstance(program, Replicates) and not asked.startswith("compiled"):
            raise InputError("engine compiled for replicates, which train in one graph", asked, "--engine compiled")
        return asked, "asked for"
    trial = copy.deepcopy(estimator)
    return choose_engine(program, trial, settings.optimizer, x, settings.epochs * batches)


def _settings(values: dict[str, Any]) -> Settings:
    for name in values:
        lookup(Settings.__dataclass_fields__, name, "setting")
    return Settings(**values)


def _given(settings: Settings, name: str) -> list[str]:
    """Return the name unless its value is None, which switches that setting off."""
    return [] if getattr(settings, name) is None else [name]


def _at_least_one(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} as a whole number of at least 1", repr(value), f"--{name} 1")


def _number(name: str, value: Any, what: str, accepts: Any) -> None:
    fine = isinstance(value, int | float) and math.isfinite(value) and accepts(value)
    if not fine:
        raise InputError(f"{name} {what}", repr(value), f"leaving --{name} out")
