"""From arguments to a loop: data on the device, the program validated, the engine started."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from pyro.infer import ELBO

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.registry import from_spec, to_spec
from pyro_vae.base.types import State
from pyro_vae.data import Data, Given, as_data
from pyro_vae.data.columns import event_shapes
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.stock import sums_sites
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.catalogue import ENGINES
from pyro_vae.engines.protocol import Engine, EngineValue
from pyro_vae.engines.schedules import SCHEDULES
from pyro_vae.engines.select import Auto, Compiled, StockSVI
from pyro_vae.models.replicates import Replicates, as_trainable, first_of, members
from pyro_vae.program.call import data_for
from pyro_vae.program.protocol import Program
from pyro_vae.program.validation import Need, check_once, check_particles, check_program
from pyro_vae.training.loop import Loop, total_steps
from pyro_vae.training.settings import Settings
from pyro_vae.training.trial import try_estimator

CHECKED = 100  # examples on which a program is tried before training
STATE = {"program", "engine", "engine_name", "settings", "rng", "position", "history"}
STARTED: dict[str, Callable[..., EngineValue]] = {"svi": StockSVI, "compiled": Compiled}


def start_loop(
    thing: object,
    train: Given,
    validation: Given | None,
    device: torch.device,
    settings: Settings,
    resumed: State | None,
) -> Loop:
    """Return the loop of a training run, before its first step.

    The program runs a few times: :func:`~pyro_vae.program.validation.check_once` on one batch size, the estimator (or
    the engine, as it prepares) on another.

    Raises:
        InputError: an argument that does not fit; the message says which, and what to try.
    """
    images, held_out = _data(thing, train, validation, device, settings)
    if resumed is not None:
        _check_state(resumed, math.ceil(len(images) / settings.batch_size), settings)
    from_spec(SCHEDULES, settings.schedule, "schedule")
    estimator = _estimator(settings)
    need: Need = "training" if held_out is None else "bound"
    with isolated_rng(device, settings.seed):
        example = images.batch(slice(0, CHECKED))
        program = as_trainable(thing, example.cpu())  # the user's networks are still on the CPU
        program.to(device)
        for member in members(program):
            _check(member, example, settings, need, summed=sums_sites(estimator))
    loop = _begun(program, estimator, images, held_out, settings, resumed)
    if loop.engine_name == to_spec(ENGINES, StockSVI()):  # the compiled one runs the estimator as it prepares
        with isolated_rng(device, settings.seed):
            ragged = len(images) % settings.batch_size > 0
            weighted = settings.kl_warmup > 0
            try_estimator(estimator, members(program)[0], example, need, ragged=ragged, kl_weighted=weighted)
    return loop


def _check_state(state: object, batches: int, settings: Settings) -> None:
    """Refuse what is no state, one of other settings or of other data, and less training than is done."""
    if not isinstance(state, Mapping) or not state.keys() >= STATE:
        raise InputError("the state of a result to resume from", type(state).__name__, "resume=result.state")
    for name, value in settings.shared().items():
        began = state["settings"].get(name)
        if began != value and name == "estimator":  # described, not a value to write
            raise InputError(f"estimator {began}, with which training began", value, "the same estimator")
        if began != value:
            raise InputError(f"{name} {began!r}, with which training began", repr(value), f"{name}={began!r}")
    step, epoch, batch = (state["position"][name] for name in ("step", "epoch", "batch"))
    if epoch * batches + batch != step or batch > batches:
        got = f"{batches} batches per epoch, while batch {batch} of epoch {epoch + 1} was step {step}"
        raise InputError("the training data that the state began with", got, "the same training data")
    if settings.epochs < epoch + (batch > 0):
        done = f"{epoch + 1}, one of them begun" if batch else str(epoch)
        raise InputError(f"epochs of at least {done}", settings.epochs, f"epochs={epoch + (batch > 0)}")
    if settings.max_steps is not None and settings.max_steps < step:
        raise InputError(f"max_steps of at least {step}, which are done", settings.max_steps, f"max_steps={step}")


def prepare(loop: Loop) -> None:
    """Prepare the engine on a batch of the usual size, without using up noise."""
    with _as_in_a_step(loop.program, loop.train, loop.settings) as x:
        loop.engine.prepare(x, loop.kl_weight())


@contextmanager
def _as_in_a_step(program: Program | Replicates, images: Data, settings: Settings) -> Iterator[Batch]:
    """Run a block as a step runs, in training mode; yields a batch. Restores mode and noise."""
    was_training = getattr(program, "training", True)
    program.train(True)
    try:
        with isolated_rng(images.device):
            yield images.batch(torch.arange(settings.batch_size, device=images.device))  # gathered, as in a step
    finally:
        program.train(was_training)


def _check(program: Program, example: Batch, settings: Settings, need: Need, *, summed: bool) -> None:
    """Check the program on examples of another number than a batch's: no constant passes for ``len(x)`` in both."""
    x = example[:-1] if len(example) == settings.batch_size > 2 else example
    try:
        check_once(program, x, need=need, summed=summed)
        if need == "bound" and settings.eval_particles > 1 and settings.vectorize_particles:
            check_particles(program, x)
    except InputError:
        check_program(program, example, need=need, summed=summed)  # names the data's own shape
        raise


def _data(
    thing: object, train: Given, validation: Given | None, device: torch.device, settings: Settings
) -> tuple[Data, Data | None]:
    program = first_of(thing)
    images = data_for(program, as_data(train, settings.batch_size)).to(device)
    held_out = None if validation is None else data_for(program, as_data(validation)).to(device)
    if settings.batch_size > len(images):
        raise InputError(
            f"a batch_size of at most {len(images)}, the number of examples",
            settings.batch_size,
            f"batch_size={len(images)}",
        )
    if held_out is not None and event_shapes(held_out) != event_shapes(images):
        raise InputError(
            f"validation data of shape {_shapes(images)}, as the training data", _shapes(held_out), "data of one kind"
        )
    if settings.patience and held_out is None:
        raise InputError("validation data for patience", "none", "fit(..., validation=data.validation)")
    return images, held_out


def _shapes(data: Data) -> str:
    shapes = event_shapes(data)
    return str(shapes[0]) if shapes.keys() == {0} else ", ".join(f"{shape} as {name}" for name, shape in shapes.items())


def _estimator(settings: Settings) -> ELBO:
    estimator = settings.elbo
    if settings.kl_warmup and isinstance(estimator, Estimator):
        Weighted(estimator, 0.5)  # refuses estimators that hold for the unweighted KL alone
    return estimator


def _begun(
    program: Program | Replicates,
    estimator: ELBO,
    images: Data,
    held_out: Data | None,
    settings: Settings,
    resumed: State | None,
) -> Loop:
    """Return the loop with its engine: what is asked for, what the run began with, or what ``Auto`` chooses."""

    def loop(value: EngineValue, engine: Engine, why: str) -> Loop:
        return Loop(program, engine, to_spec(ENGINES, value), why, images, held_out, settings)

    value, why = _asked(settings.engine, resumed)
    optimizer, clip_norm, kl_weighted = settings.optimizer, settings.clip_norm, settings.kl_warmup > 0
    if not isinstance(value, Auto):
        return loop(value, value.start(program, estimator, optimizer, clip_norm, kl_weighted=kl_weighted), why)
    steps = total_steps(settings, len(images))
    with _as_in_a_step(program, images, settings) as x:
        return loop(*value.choose(program, estimator, optimizer, clip_norm, x, steps, kl_weighted=kl_weighted))


def _asked(asked: str | EngineValue | Auto, resumed: State | None) -> tuple[EngineValue | Auto, str]:
    value: EngineValue | Auto = from_spec(ENGINES, asked, "engine") if isinstance(asked, str) else asked
    if resumed is None:
        return value, "asked for"
    began = resumed["engine_name"]
    if not isinstance(value, Auto) and to_spec(ENGINES, value) != began:
        raise InputError(f"engine {began}, with which the run began", to_spec(ENGINES, value), f'engine="{began}"')
    return from_spec(STARTED, began, "engine"), "the run began with it"
