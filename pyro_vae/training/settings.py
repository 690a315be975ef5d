"""How to train: everything but the program and the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from pyro.infer import ELBO

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import Json
from pyro_vae.elbo.catalogue import as_estimator
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.stock import described
from pyro_vae.engines.protocol import EngineValue
from pyro_vae.engines.select import Auto

ESTIMATOR, ENGINE = "trace_elbo", "auto"
EXTENDABLE = ("epochs", "max_steps")  # what may differ when training resumes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train: everything but the program and the data. The fields are keywords of :func:`pyro_vae.fit`.

    Args:
        estimator: a name of :data:`~pyro_vae.elbo.ESTIMATORS` with arguments (``"trace_elbo:num_particles=5"``), or any
            ``pyro.infer.ELBO``.
        engine: a name of :data:`~pyro_vae.engines.ENGINES` with arguments, or a value such as
            ``Compiled(inductor=False)``; ``auto``: ``compiled`` for long runs of programs that can be traced, else
            ``svi``.
        epochs: passes over the training data.
        max_steps: stop after this many steps in all, those before resuming included; None: no limit.
        batch_size: examples in a step.
        optimizer: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments (``"adam:eps=1e-4"``).
        learning_rate: step size of the optimiser. The loss is a sum over the batch, as in Pyro.
        schedule: a name of :data:`~pyro_vae.engines.SCHEDULES` with arguments (``"cosine:final=0.1"``).
        clip_norm: largest norm of the whole gradient; None: no limit.
        kl_warmup: epochs over which the weight of log p(z) − log q(z|x) rises linearly to 1.
        patience: stop after this many epochs without a better held-out bound; None: never.
        eval_particles: particles per example for the held-out bound.
        vectorize_particles: several particles in one run, in a plate, of an estimator by name and of held-out bounds;
            False: in runs one by one, for programs that do not broadcast.
        seed: fixes order, binarization and noise.

    Raises:
        InputError: a value out of range.
    """

    estimator: str | ELBO = ESTIMATOR
    engine: str | EngineValue | Auto = ENGINE
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    clip_norm: float | None = None
    kl_warmup: float = 0.0
    patience: int | None = None
    eval_particles: int = 1
    vectorize_particles: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_particles", *self._given("max_steps", "patience")):
            _at_least_one(name, getattr(self, name))
        for name in ("learning_rate", *self._given("clip_norm")):
            _number(name, getattr(self, name), "as a finite number above 0", lambda v: v > 0)
        _number("kl_warmup", self.kl_warmup, "as a finite number of epochs, 0 or more", lambda v: v >= 0)
        if not isinstance(self.vectorize_particles, bool):
            raise InputError("vectorize_particles as True or False", repr(self.vectorize_particles), "leaving it out")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError("a seed from 0 to 2**63 - 1", repr(self.seed), "seed=0")

    @property
    def elbo(self) -> ELBO:
        """The estimator: what the name specifies, or the value itself."""
        return as_estimator(self.estimator, vectorize_particles=self.vectorize_particles)

    def shared(self) -> dict[str, Json]:
        """Return the settings that a resumed training shares with the first, as plain values; the engine has its own.

        Example:
            >>> Settings(estimator="stl").shared()["estimator"]
            'STL(num_particles=1)'
        """
        names = [f.name for f in fields(Settings) if f.name not in (*EXTENDABLE, "estimator", "engine")]
        return {"estimator": _described(self.elbo)} | {name: getattr(self, name) for name in names}

    def _given(self, *names: str) -> list[str]:
        """Return the names whose value is not None, which switches a setting off."""
        return [name for name in names if getattr(self, name) is not None]


def _described(value: ELBO) -> str:
    """Return an estimator as text, the same for a name and for the value that it stands for."""
    return repr(value) if isinstance(value, Estimator) else described(value)


def _at_least_one(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} as a whole number of at least 1", repr(value), f"{name}=1")


def _number(name: str, value: object, what: str, accepts: Callable[[float], bool]) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and accepts(value)):
        raise InputError(f"{name} {what}", repr(value), f"leaving {name} out")
