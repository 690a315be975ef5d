"""The options of an evaluation: parts, numbers of examples, numbers of particles."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.types import Json

LEAST = {
    "num_particles": 30,
    "importance_examples": 2,
    "annealing_examples": 2,
    "sandwich_examples": 2,
    "annealing_chains": 2,
    "annealing_temperatures": 2,
    "prior_examples": 2,
    "hmc_examples": 2,
    "hmc_samples": 10,
    "gap_examples": 2,
    "gap_steps": 1,
    "surgery_examples": 2,
    "simulations": 100,
    "probe_examples": 2,
    "draws_at_once": 1,
}


@dataclass(frozen=True)
class EvaluationOptions:
    """The keywords of :func:`pyro_vae.evaluate`, and options of the command.

    Subsets are random, fixed by the seed; each is the beginning of every larger one. Sizes above the number of examples
    mean all of them.

    Args:
        num_particles: K of the importance-sampling estimate L_K of log p(x).
        iwae: k of the importance-weighted bounds; the largest is also the number of particles of the ELBO.
        num_examples: for ELBO, its terms, importance-weighted bounds, latent usage and reconstructions; all by default.
        importance_examples: for L_K, k-hat and effective sample size.
        annealing_examples: for annealed importance sampling.
        sandwich_examples: simulated examples for the bounds from both sides.
        annealing_chains: chains per example.
        annealing_temperatures: steps from the prior to the posterior.
        prior_examples: for the estimate by sampling the prior.
        hmc_examples: for the estimate from samples of the posterior, where latent dimensions are few.
        hmc_samples: of each of its 20 chains, after as many for warm-up.
        gap_examples: examples that get their own local q.
        gap_steps: largest number of steps of its optimisation.
        surgery_examples: for mutual information and marginal KL; the cost is quadratic.
        simulations: simulated examples for the calibration of q.
        probe_examples: training examples of the linear probe.
        draws_at_once: examples times particles scored together; bounds memory.
        vectorize_particles: false runs several particles one by one, for programs that do not broadcast over them.
        only: the parts to compute.
        skip: the parts to leave out.
    """

    num_particles: int = 5000
    iwae: list[int] = field(default_factory=lambda: [5, 50])
    num_examples: int | None = None
    importance_examples: int = 1000
    annealing_examples: int = 20
    sandwich_examples: int = 10
    annealing_chains: int = 10
    annealing_temperatures: int = 500
    prior_examples: int = 100
    hmc_examples: int = 20
    hmc_samples: int = 200
    gap_examples: int = 100
    gap_steps: int = 3000
    surgery_examples: int = 2000
    simulations: int = 1000
    probe_examples: int = 10_000
    draws_at_once: int = 2000
    vectorize_particles: bool = True
    only: list[str] | None = None
    skip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            _at_least(name, getattr(self, name), least)
        if not isinstance(self.vectorize_particles, bool):
            raise InputError("vectorize_particles as True or False", repr(self.vectorize_particles), "leaving it out")
        if self.num_examples is not None:
            _at_least("num_examples", self.num_examples, 2)
        if not isinstance(self.iwae, list) or not self.iwae:
            raise InputError("at least one k for the importance-weighted bounds", self.iwae, "iwae=[5, 50]")
        for k in self.iwae:
            if not isinstance(k, int) or isinstance(k, bool) or k < 1:
                raise InputError("every k of iwae as a whole number of at least 1", repr(k), "iwae=[5, 50]")

    def as_dict(self) -> dict[str, Json]:
        """Return the options by name, ready for JSON."""
        return asdict(self)

    def parts(self, known: Mapping[str, object]) -> list[str]:
        """Return the parts to compute, in the order of ``known``.

        Raises:
            InputError: a part that does not exist, or none left.
        """
        for name in [*(self.only or []), *self.skip]:
            lookup(known, name, "part of the evaluation")
        chosen = [n for n in known if (self.only is None or n in self.only) and n not in self.skip]
        if not chosen:
            raise InputError("a part to compute", "none", f"only=[{next(iter(known))!r}]")
        return chosen


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} as a whole number of at least {least}", repr(value), f"{name}={least}")
