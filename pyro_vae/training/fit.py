"""Training: a program, data and settings become a loop, and the loop is run."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError, NonFiniteError, lookup
from pyro_vae.base.random import generator, isolated_rng
from pyro_vae.base.registry import from_spec, to_spec
from pyro_vae.base.statistics import Estimate
from pyro_vae.data import Images, as_images
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.catalogue import ENGINES
from pyro_vae.engines.protocol import EngineValue, StepInfo
from pyro_vae.engines.schedules import SCHEDULES
from pyro_vae.engines.select import Auto, Compiled, StockSVI
from pyro_vae.evaluation.methods.bounds import held_out_bounds
from pyro_vae.models.replicates import Replicates, as_trainable, members
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program
from pyro_vae.program.validation import check_particles, check_program
from pyro_vae.training.loop import EpochRecord, Hook, Loop
from pyro_vae.training.settings import Settings

STARTED: dict[str, Callable[..., EngineValue]] = {"svi": StockSVI, "compiled": Compiled}
CHECKED = 100  # data on which a program is tried out before training


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained program and how it came about."""

    program: Program | Replicates
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
        resume: a state of :meth:`~pyro_vae.training.Loop.state_dict` to continue from.
        settings: the fields of :class:`~pyro_vae.training.Settings`:

            * estimator: a name of :data:`~pyro_vae.elbo.ESTIMATORS` with arguments
              (``"trace_elbo:num_particles=5"``), or any ``pyro.infer.ELBO``;
            * engine: ``svi``, ``compiled``, or ``auto``: the compiled one from
              :data:`~pyro_vae.engines.select.AMORTISES_FROM` steps on, where the program can be traced;
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
        The program, one :class:`~pyro_vae.training.fit.EpochRecord` an epoch, and why training stopped early if it did.

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
        improved = mean.value > position.best
        error = mean.standard_error
        record = replace(record, improved=improved, bound=mean.value, bound_standard_error=error, bounds=list(each))
        if improved:
            position.best, position.best_epoch = mean.value, record.epoch
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
        program = as_trainable(thing, example.cpu())  # the user's networks are still there
        program.to(device)
        for member in members(program):
            check_program(member, example)
        if validation is not None:
            check_particles(members(program)[0], example)
        _try_estimator(estimator, members(program)[0], example[:10])
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    value, why = _engine(settings, steps, program, estimator, example, resumed)
    engine = value.start(program, estimator, settings.optimizer, settings.clip_norm, kl_weighted=settings.kl_warmup > 0)
    return Loop(program, engine, to_spec(ENGINES, value), why, train, validation, settings)


def _engine(
    settings: Settings,
    steps: int,
    program: Program | Replicates,
    estimator: ELBO,
    x: Tensor,
    resumed: dict[str, Any] | None,
) -> tuple[EngineValue, str]:
    """Return the engine and the reason for it; a resumed run keeps the one it began with."""
    asked = settings.engine
    value: EngineValue | Auto = from_spec(ENGINES, asked, "engine") if isinstance(asked, str) else asked
    if resumed is not None:
        began = resumed["engine_name"]
        if not isinstance(value, Auto) and to_spec(ENGINES, value) != began:
            raise InputError(f"engine {began}, with which the run began", to_spec(ENGINES, value), f'engine="{began}"')
        kept: EngineValue = from_spec(STARTED, began, "engine")
        return kept, "the run began with it"
    if isinstance(value, Auto):
        return value.choose(program, copy.deepcopy(estimator), settings.optimizer, x, steps)
    return value, "asked for"


def _settings(values: dict[str, Any]) -> Settings:
    for name in values:
        lookup(Settings.__dataclass_fields__, name, "setting")
    return Settings(**values)
