"""What an evaluation computes, on how many data, with how many draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.base.errors import InputError, lookup

LEAST = {
    "num_particles": 30,
    "importance_data": 2,
    "annealing_data": 2,
    "sandwich_data": 2,
    "annealing_chains": 2,
    "annealing_temperatures": 2,
    "prior_data": 2,
    "hmc_data": 2,
    "hmc_samples": 10,
    "gap_data": 2,
    "gap_steps": 1,
    "surgery_data": 2,
    "simulations": 100,
    "probe_data": 2,
    "draws_at_once": 1,
}


@dataclass(frozen=True)
class EvaluationOptions:
    """What is computed, on how many data; its fields are options of :func:`pyro_vae.evaluate` and of the command.

    A subset is drawn once, by the seed, and is the beginning of every greater one. Sizes above the number of data
    mean all of them.

    Args:
        num_particles: K of the importance-sampling estimate L_K of log p(x).
        iwae: k of the importance-weighted bounds; their greatest is the number of draws a datum for the ELBO.
        num_data: held-out data for ELBO, decomposition and importance-weighted bounds; all by default.
        importance_data: data for L_K, k-hat and effective sample size.
        annealing_data: data for annealed importance sampling.
        sandwich_data: data made by the model, for the bounds from both sides.
        annealing_chains: chains a datum.
        annealing_temperatures: steps from the prior to the posterior.
        prior_data: data for the estimate by sampling the prior.
        hmc_data: data for the estimate from samples of the posterior, where latent dimensions are few.
        hmc_samples: of each of its 20 chains, after as many for warm-up.
        gap_data: data that get a q of their own.
        gap_steps: steps of its optimisation at most.
        surgery_data: data whose mixture of q(z|x) is the aggregate posterior; cost grows with their square.
        simulations: data made by the model, for the calibration of q.
        probe_data: training data of the linear probe.
        draws_at_once: data times particles that are scored in one go; bounds memory.
        only: parts to compute, and no others.
        skip: parts to leave out.
    """

    num_particles: int = 5000
    iwae: list[int] = field(default_factory=lambda: [5, 50])
    num_data: int | None = None
    importance_data: int = 1000
    annealing_data: int = 20
    sandwich_data: int = 10
    annealing_chains: int = 10
    annealing_temperatures: int = 500
    prior_data: int = 100
    hmc_data: int = 20
    hmc_samples: int = 200
    gap_data: int = 100
    gap_steps: int = 3000
    surgery_data: int = 2000
    simulations: int = 1000
    probe_data: int = 10_000
    draws_at_once: int = 2000
    only: list[str] | None = None
    skip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            _at_least(name, getattr(self, name), least)
        if self.num_data is not None:
            _at_least("num_data", self.num_data, 2)
        if not self.iwae:
            raise InputError("at least one k for the importance-weighted bounds", self.iwae, "--iwae '[5, 50]'")
        for k in self.iwae:
            _at_least("iwae", k, 1)

    def parts(self, known: Mapping[str, Any]) -> list[str]:
        """Return the parts to compute, in the order of ``known``.

        Raises:
            InputError: a part that does not exist, or none left.
        """
        for name in [*(self.only or []), *self.skip]:
            lookup(known, name, "part of the evaluation")
        chosen = [n for n in known if (self.only is None or n in self.only) and n not in self.skip]
        if not chosen:
            raise InputError("a part to compute", "none", f"--only {next(iter(known))}")
        return chosen


def options_of(values: Mapping[str, Any]) -> EvaluationOptions:
    """Return options by name.

    Raises:
        InputError: an unknown name, or a value that does not fit.
    """
    for name in values:
        lookup(EvaluationOptions.__dataclass_fields__, name, "option of evaluate")
    return EvaluationOptions(**values)


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} as a whole number of at least {least}", repr(value), f"--{name} {least}")
