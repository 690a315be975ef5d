"""What an estimator buys: the same program trained with each, judged after equal steps and after equal time."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.base.tables import Records, columns_of
from pyro_vae.base.types import Progress, State, no_progress
from pyro_vae.data import Data, Given, Images, as_data
from pyro_vae.elbo.catalogue import as_estimators
from pyro_vae.elbo.estimator import at_least_one
from pyro_vae.engines.compiled.inductor import has_compiler
from pyro_vae.engines.protocol import EngineValue, StepInfo
from pyro_vae.engines.select import AMORTISES_FROM, Auto, Compiled, StockSVI
from pyro_vae.evaluation.methods.bounds import importance_bounds
from pyro_vae.models.replicates import Replicates, as_trainable, first_of, members
from pyro_vae.program.call import data_for
from pyro_vae.program.protocol import Program
from pyro_vae.training.fit import fit
from pyro_vae.training.loop import Hook, Loop
from pyro_vae.training.result import FitResult
from pyro_vae.training.settings import ENGINE

FOREVER = 10**6  # epochs; these trainings end by steps or by time


def training_points(
    program: Program | Replicates,
    train: Images,
    points: Sequence[int],
    *,
    engine: str | EngineValue | Auto = ENGINE,
    batch_size: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Iterator[int]:
    """Train a program in place by ``trace_elbo``, and pause after each number of steps.

    It is one training: the optimiser, the order of the examples and the noise resume after every pause.

    Args:
        program: the program, or :class:`~pyro_vae.Replicates` of it, on its device.
        train: training images, on the same device.
        points: numbers of steps, rising; 0 is the untrained program.
        engine: as in :func:`pyro_vae.fit`, and so are the others; ``auto``: ``svi``, or, for replicates, ``compiled``.
        batch_size: examples in a step.
        optimizer: a name with arguments.
        learning_rate: step size of the optimiser.
        seed: fixes order, binarization and noise.

    Yields:
        Each of the points, when the program has taken so many steps.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.data import as_images
        >>> vae = VAE((4,), latent_dim=2)
        >>> [steps for steps in training_points(vae, as_images(torch.ones(10, 4)), [0, 3], batch_size=5)]
        [0, 3]
    """
    state: State | None = None
    for steps in points:
        if steps:
            state = fit(
                program,
                train,
                device=train.device,
                resume=state,
                engine=_engine(engine, program, points[-1]),
                epochs=FOREVER,
                max_steps=steps,
                batch_size=batch_size,
                optimizer=optimizer,
                learning_rate=learning_rate,
                seed=seed,
            ).state
        yield steps


@dataclass(frozen=True)
class Lap:
    """A program trained with one estimator, and how good it then is."""

    estimator: str
    after: str  # "equal steps" or "equal time"
    steps: int
    seconds: float  # in steps, without evaluation
    log_evidence: Estimate  # importance-weighted bound on log p(x), held out, nats per example
    num_particles: int  # of that bound
    replicates: tuple[float, ...] = ()  # the mean of each, where there are several; log_evidence is of their mean


class Race(Records[Lap]):
    """The laps of :func:`race`; prints as a table."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per lap, with the standard error of the bound."""
        return pd.DataFrame([columns_of(lap) for lap in self])

    def shown(self) -> pd.DataFrame:
        """Return each lap with its held-out bound."""
        rows = [
            {
                "estimator": lap.estimator,
                "after": lap.after,
                "steps": lap.steps,
                "seconds": f"{lap.seconds:.2f}",
                f"L_{lap.num_particles}": str(lap.log_evidence),
            }
            for lap in self
        ]
        return pd.DataFrame(rows)


def race(
    program: object,
    train: Given,
    test: Given,
    estimators: Mapping[str, str | ELBO],
    steps: int,
    *,
    num_particles: int = 500,
    progress: Progress = no_progress,
    engine: str | EngineValue | Auto = ENGINE,
    batch_size: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    clip_norm: float | None = None,
    vectorize_particles: bool = True,
    seed: int = 0,
) -> Race:
    """Train a program from where it stands with each estimator, and judge it after equal steps and after equal time.

    The first lap is ``steps`` steps; the second resumes until each has trained as long as the slowest did in its first.

    The program is restored afterwards. Time is that of the training steps alone, in this run on this machine.

    Args:
        program: as for :func:`pyro_vae.fit`, on the device of ``test``.
        train: training data, as for :func:`pyro_vae.fit`.
        test: held-out data, likewise.
        estimators: name -> ``pyro.infer.ELBO``, or a text such as ``"iwae:num_particles=5"``.
        steps: steps of the first lap.
        num_particles: of the importance-weighted bound that judges.
        progress: called as ``progress(estimator, done, steps)`` for every step of the first lap.
        engine: as in :func:`pyro_vae.fit`, and so are the others; ``auto``: ``svi``, or, for replicates, ``compiled``.
        batch_size: examples in a step.
        optimizer: a name with arguments.
        learning_rate: step size of the optimiser.
        clip_norm: largest norm of the whole gradient; None: no limit.
        vectorize_particles: several particles in a plate, of estimators by name and of the bound that judges; False: in
            runs one by one.
        seed: fixes order, binarization and noise, and those of the bound.

    Returns:
        The laps after equal steps, then those after equal time; prints as a table, and has ``to_dataframe()``.
    """
    if not isinstance(steps, int) or steps < 1:
        raise InputError("steps of at least 1", repr(steps), "steps=1000")
    at_least_one("num_particles", num_particles)
    given = copy.deepcopy(as_estimators(estimators, vectorize_particles=vectorize_particles))
    data, held_out = (data_for(first_of(program), as_data(given_data)) for given_data in (train, test))
    trained = as_trainable(program, data.batch(slice(0, 2)).cpu())
    beginning = copy.deepcopy(trained.state_dict())
    states: dict[str, State] = {}

    def lap(name: str, after: str, hook: Hook, max_steps: int | None) -> Lap:
        trained.load_state_dict(states[name]["program"] if name in states else beginning)
        result = fit(
            trained,
            data,
            device=held_out.device,
            hooks=[hook],
            resume=states.get(name),
            estimator=given[name],
            engine=_engine(engine, trained, steps),
            epochs=FOREVER,
            max_steps=max_steps,
            batch_size=batch_size,
            optimizer=optimizer,
            learning_rate=learning_rate,
            clip_norm=clip_norm,
            seed=seed,
        )
        states[name] = result.state
        return _judged(
            name,
            after,
            result,
            _bounds(result.program, held_out, num_particles, seed, vectorize_particles),
            num_particles,
        )

    laps = [lap(name, "equal steps", _ProgressHook(partial(progress, name, total=steps)), steps) for name in given]
    slowest = max(found.seconds for found in laps)
    laps += [lap(name, "equal time", _StopAfter(slowest), None) for name in given]
    trained.load_state_dict(beginning)
    return Race(laps)


def _bounds(program: Program | Replicates, test: Data, num_particles: int, seed: int, plate: bool) -> list[Tensor]:
    return [importance_bounds(m, test, num_particles, seed, vectorize_particles=plate) for m in members(program)]


def _judged(name: str, after: str, result: FitResult, bounds: list[Tensor], num_particles: int) -> Lap:
    each = tuple(float(found.mean()) for found in bounds) if len(bounds) > 1 else ()
    position = result.state["position"]
    judged = estimate(torch.stack(bounds).mean(0))
    return Lap(name, after, position["step"], position["seconds"], judged, num_particles, each)


def _engine(asked: str | EngineValue | Auto, program: Program | Replicates, steps: int) -> str | EngineValue | Auto:
    """Take stock SVI for ``auto``; replicates need the compiled engine, and are compiled where that amortises."""
    if not isinstance(asked, Auto) and asked != "auto":
        return asked
    if not isinstance(program, Replicates):
        return StockSVI()
    return Compiled(steps >= AMORTISES_FROM and has_compiler(next(program.parameters()).device))


class _ProgressHook(Hook):
    """Reports the number of steps, once a step."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Report."""
        self._progress(loop.position.step)


class _StopAfter(Hook):
    """Ends training after so many seconds in steps."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def started(self, loop: Loop) -> None:
        """Stop at once if the time is over."""
        self.stepped(loop)

    def stepped(self, loop: Loop, info: StepInfo | None = None) -> None:
        """Stop when the time is over."""
        if loop.position.seconds >= self._seconds:
            loop.stop("the lap is over")
