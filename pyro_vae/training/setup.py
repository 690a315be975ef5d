"""From arguments to a loop: data on the device, the program validated, the engine started."""

import copy
import math
from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.registry import from_spec
from pyro_vae.base.types import State
from pyro_vae.data import Images, as_images
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.catalogue import ENGINES
from pyro_vae.engines.protocol import Engine
from pyro_vae.engines.schedules import SCHEDULES
from pyro_vae.engines.select import AUTO, choose_engine
from pyro_vae.models.replicates import Replicates, members
from pyro_vae.program.adapter import as_program
from pyro_vae.program.explain import explained
from pyro_vae.program.protocol import Program
from pyro_vae.program.validation import BROADCASTS, CheckSites, check_once, check_program, trying
from pyro_vae.training.loop import Loop
from pyro_vae.training.settings import Settings

CHECKED = 100  # examples on which a program is tried before training
TRIED = 10  # examples on which an estimator is: another batch size


def start_loop(
    thing: object,
    train: Images | Tensor,
    validation: Images | Tensor | None,
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
    images, held_out = _data(train, validation, device, settings)
    from_spec(SCHEDULES, settings.schedule, "schedule")
    estimator = _estimator(settings)
    with isolated_rng(device, settings.seed):
        example = images.batch(slice(0, CHECKED))
        program = as_program(thing, example.cpu())  # the user's networks are still on the CPU
        program.to(device)
        for member in members(program):
            check_once(member, example, particles=held_out is not None)
    started = _start_engine(program, estimator, example, settings, math.ceil(len(images) / settings.batch_size), resumed)
    if not started.traces:
        with isolated_rng(device, settings.seed):
            _try_estimator(estimator, members(program)[0], example)
    return Loop(program, started.engine, started.name, started.why, images, held_out, settings)


def prepare(loop: Loop) -> None:
    """Prepare the engine on a batch, without using up noise; a program that it refuses stays in the mode it was in."""
    program, was_training = loop.program, getattr(loop.program, "training", True)
    size, device = loop.settings.batch_size, loop.train.device
    program.train(True)
    try:
        with isolated_rng(device), CheckSites(size):
            x = loop.train.batch(torch.arange(size, device=device))  # gathered, as the batches of a step are
            loop.engine.prepare(x, loop.kl_weight())
    except BaseException:
        program.train(was_training)
        raise


def _data(
    train: Images | Tensor, validation: Images | Tensor | None, device: torch.device, settings: Settings
) -> tuple[Images, Images | None]:
    images = as_images(train).to(device)
    held_out = None if validation is None else as_images(validation).to(device)
    if settings.batch_size > len(images):
        raise InputError(
            f"a batch_size of at most {len(images)}, the number of examples",
            settings.batch_size,
            f"batch_size={len(images)}",
        )
    if held_out is not None and held_out.event_shape != images.event_shape:
        shapes = f"of shape {tuple(images.event_shape)}", tuple(held_out.event_shape)
        raise InputError(f"validation data {shapes[0]}, as the training data", shapes[1], "data of one kind")
    if settings.patience and held_out is None:
        raise InputError("validation data for patience", "none", "fit(..., validation=data.validation)")
    return images, held_out


def _estimator(settings: Settings) -> ELBO:
    estimator = settings.estimator
    if isinstance(estimator, str):
        estimator = from_spec(ESTIMATORS, estimator, "estimator")
    if not isinstance(estimator, ELBO):
        raise InputError("an estimator by name, or a pyro.infer.ELBO", repr(estimator), 'estimator="trace_elbo"')
    if settings.kl_warmup and isinstance(estimator, Estimator):
        Weighted(estimator, 0.5)  # refuses estimators that hold for the unweighted KL alone
    return estimator


def _try_estimator(estimator: ELBO, program: Program, example: Tensor) -> None:
    """Run the program once as a step will, on another batch size than before; ours may refuse it."""
    x = example[: min(TRIED, len(example) - 1)] if len(example) > 2 else example
    if not isinstance(estimator, Estimator):
        check_once(program, x)
        return
    estimator = copy.deepcopy(estimator)  # it may have a state
    try:
        with trying(program, x.device), CheckSites(len(x)), explained(BROADCASTS):
            estimator.of_draw(estimator.draw(program.model, program.guide, (x,), {}))
    except InputError:
        check_program(program, example)  # says more, where the program is wrong by itself
        raise


@dataclass(frozen=True)
class _Started:
    """An engine, its specification, and why it was chosen."""

    engine: Engine
    name: str
    why: str

    @property
    def traces(self) -> bool:
        """Whether the engine itself runs the estimator on the program as it prepares."""
        return self.name.startswith("compiled")


def _start_engine(
    program: Program, estimator: ELBO, x: Tensor, settings: Settings, batches: int, resumed: State | None
) -> _Started:
    """Return the engine: what is asked for, or what the run began with."""
    name, why = _choice(settings, batches, program, estimator, x, resumed)
    engine = from_spec(
        ENGINES,
        name,
        "engine",
        program=program,
        estimator=estimator,
        optimizer=settings.optimizer,
        clip_norm=settings.clip_norm,
    )
    return _Started(engine, name, why)


def _choice(
    settings: Settings, batches: int, program: Program, estimator: ELBO, x: Tensor, resumed: State | None
) -> tuple[str, str]:
    asked = settings.engine
    lookup({AUTO: None, **ENGINES}, asked.partition(":")[0].strip(), "engine")
    if resumed is not None:
        began = resumed["engine_name"]
        if asked not in (AUTO, began):
            raise InputError(f"engine {began}, with which the run began", asked, f'engine="{began}"')
        return began, "the run began with it"
    if asked != AUTO:
        if isinstance(program, Replicates) and not asked.startswith("compiled"):
            raise InputError("engine compiled for replicates, which train in one graph", asked, 'engine="compiled"')
        return asked, "asked for"
    steps = settings.epochs * batches
    steps = steps if settings.max_steps is None else min(steps, settings.max_steps)
    return choose_engine(program, copy.deepcopy(estimator), settings.optimizer, x, steps)
