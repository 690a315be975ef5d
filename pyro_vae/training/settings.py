"""How to train: everything but the program and the data."""

import math
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO

from pyro_vae.base.errors import InputError
from pyro_vae.engines.protocol import EngineValue
from pyro_vae.engines.select import Auto


@dataclass(frozen=True)
class Settings:
    """How to train: everything but the program and the data. The fields are those of :func:`fit`."""

    estimator: str | ELBO = "trace_elbo"
    engine: str | EngineValue | Auto = "auto"
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
