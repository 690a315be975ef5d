"""What an estimator buys: the same program trained with each, judged after equal steps and after equal time."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.data import Images
from pyro_vae.engines.compiled.inductor import has_compiler
from pyro_vae.engines.protocol import StepInfo
from pyro_vae.engines.select import AMORTISES_FROM, Compiled
from pyro_vae.evaluation.methods.bounds import importance_bounds
from pyro_vae.models.replicates import Replicates, members
from pyro_vae.program.protocol import Program
from pyro_vae.training.fit import fit
from pyro_vae.training.loop import Hook, Loop

FOREVER = 10**6  # epochs; the hook below ends the training


def train_steps(program: Program | Replicates, train: Images, steps: int, **settings: Any) -> None:
    """Train a program in place for so many steps by ``trace_elbo``; none for 0."""
    if steps:
        until = _Until(steps, float("inf"), lambda: None)
        fit(
            program, train, epochs=FOREVER, device=train.device, hooks=[until], **_with_engine(program, steps, settings)
        )


def _with_engine(program: Program | Replicates, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Take engine svi unless told; replicates need the compiled one, and are compiled where that amortises."""
    if settings.get("engine", "auto") != "auto":
        return settings
    amortises = steps >= AMORTISES_FROM and has_compiler(next(program.parameters()).device)
    return {**settings, "engine": Compiled(amortises) if isinstance(program, Replicates) else "svi"}


@dataclass(frozen=True)
class Lap:
    """A program trained with one estimator, and how good it then is."""

    estimator: str
    after: str  # "equal steps" or "equal time"
    steps: int
    seconds: float  # in steps, evaluation apart
    log_evidence: Estimate  # importance-weighted bound on log p(x), held out, nats per datum
    num_particles: int  # of that bound
    replicates: tuple[float, ...] = ()  # the mean of each, where there are several; log_evidence is of their mean


class _Until(Hook):
    """Ends training after so many steps or seconds, and keeps the state to go on from."""

    def __init__(self, steps: float, seconds: float, tick: Callable[[], None]) -> None:
        self._steps, self._seconds, self._tick = steps, seconds, tick
        self.state: dict[str, Any] = {}
        self.steps, self.seconds = 0, 0.0

    def started(self, loop: Loop) -> None:
        """Stop at once if there is nothing left to do."""
        self._look(loop)

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Count."""
        self._tick()
        self._look(loop)

    def stopped(self, loop: Loop) -> None:
        """Keep the state."""
        self.state = copy.deepcopy(loop.state_dict())

    def _look(self, loop: Loop) -> None:
        self.steps, self.seconds = loop.position.step, loop.position.seconds
        if self.steps >= self._steps or self.seconds >= self._seconds:
            loop.stop("the lap is over")


def race(
    program: Program | Replicates,
    train: Images,
    test: Images,
    estimators: Mapping[str, Any],
    steps: int,
    *,
    num_particles: int = 500,
    report: Callable[[str], None] = lambda what: None,
    **settings: Any,
) -> list[Lap]:
    """Train a program from where it stands with each estimator, and judge it after equal steps and after equal time.

    The first lap is ``steps`` steps; the second goes on until each has trained as long as the slowest did in its first.

    The program is left as it was found. Time is that of the training steps alone, in this run on this machine.

    Args:
        program: the program, or :class:`~pyro_vae.Replicates` of it, on its device.
        train: training images.
        test: held-out images, on the same device.
        estimators: name -> ``pyro.infer.ELBO``.
        steps: steps of the first lap.
        num_particles: of the importance-weighted bound that judges.
        report: called with the estimator's name once a step of the first lap.
        settings: further settings of :func:`pyro_vae.fit`: learning_rate, batch_size, optimizer, seed, …
    """
    beginning = copy.deepcopy(program.state_dict())
    estimators = copy.deepcopy(dict(estimators))
    states: dict[str, dict[str, Any]] = {}
    laps: list[Lap] = []

    def lap(name: str, until: _Until, after: str) -> None:
        program.load_state_dict(states[name]["program"] if name in states else beginning)
        fit(
            program,
            train,
            estimator=estimators[name],
            epochs=FOREVER,
            device=test.device,
            hooks=[until],
            resume=states.get(name),
            **_with_engine(program, steps, settings),
        )
        states[name] = until.state
        seed = settings.get("seed", 0)
        bounds = [importance_bounds(member, test, num_particles, seed) for member in members(program)]
        each = tuple(float(found.mean()) for found in bounds) if len(bounds) > 1 else ()
        judged = estimate(torch.stack(bounds).mean(0))
        laps.append(Lap(name, after, until.steps, until.seconds, judged, num_particles, each))

    for name in estimators:
        lap(name, _Until(steps, float("inf"), lambda name=name: report(name)), "equal steps")  # type: ignore[misc]
    slowest = max(found.seconds for found in laps)
    for name in estimators:
        lap(name, _Until(float("inf"), slowest, lambda: None), "equal time")
    program.load_state_dict(beginning)
    return laps
