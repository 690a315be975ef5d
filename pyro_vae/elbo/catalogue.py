"""The table of estimators, name to constructor, and constructors for Pyro's own."""

from collections.abc import Callable, Mapping

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.base.errors import InputError
from pyro_vae.base.registry import from_spec
from pyro_vae.elbo.disarm import DisARM
from pyro_vae.elbo.doubly_reparameterized import MIWAEDReG, PIWAEDReG, RWSDReG
from pyro_vae.elbo.estimator import at_least_one
from pyro_vae.elbo.importance import CIWAE, IWAE, IWAESTL, MIWAE, PIWAE, DReG, Renyi
from pyro_vae.elbo.local_iwae import LocalIWAE
from pyro_vae.elbo.pathwise import STL, AnalyticKL, SampledKL
from pyro_vae.elbo.relaxed import Concrete, Rebar
from pyro_vae.elbo.score import OVIS, VIMCO, OVISMonteCarlo, Reinforce, ReinforceMovingAverage
from pyro_vae.elbo.thermodynamic import TVO
from pyro_vae.elbo.wake_sleep import RWS, WakeSleep
from pyro_vae.elbo.weighted import Weighted


def trace_elbo(num_particles: int = 1, *, vectorize_particles: bool = True) -> Trace_ELBO:
    """Return Pyro's own ``Trace_ELBO`` for a program: particles vectorized or one by one, one batch plate.

    The plate nesting is stated: Pyro would otherwise guess it in the first step by sampling noise that a resumed run
    would not sample.

    Example:
        >>> trace_elbo(num_particles=5).num_particles
        5
    """
    at_least_one("num_particles", num_particles)
    return Trace_ELBO(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=vectorize_particles)


def trace_mean_field_elbo(num_particles: int = 1, *, vectorize_particles: bool = True) -> TraceMeanField_ELBO:
    """Return Pyro's own ``TraceMeanField_ELBO``: the KL in closed form where Pyro knows one.

    Where Pyro knows none it silently samples that term; ``analytic_kl`` refuses.
    """
    at_least_one("num_particles", num_particles)
    return TraceMeanField_ELBO(
        num_particles=num_particles, max_plate_nesting=1, vectorize_particles=vectorize_particles
    )


def beta_vae(
    beta: float = 4.0,
    estimator: str = "analytic_kl",
    num_particles: int = 1,
    free_bits: float = 0.0,
    *,
    vectorize_particles: bool = True,
) -> Weighted:
    """Return an estimator with its KL weighted by β, and for ``analytic_kl`` with free bits.

    Args:
        beta: weight of the KL.
        estimator: a name of :data:`ESTIMATORS` that can be weighted.
        num_particles: K.
        free_bits: nats of each latent site's KL below which it has no gradient; ``analytic_kl`` only.
        vectorize_particles: of the estimator inside.

    Example:
        >>> beta_vae(beta=2.0)
        Weighted(estimator=AnalyticKL(num_particles=1, free_bits=0.0), beta=2.0)
    """
    arguments: dict[str, object] = {"num_particles": num_particles, **({"free_bits": free_bits} if free_bits else {})}
    arguments |= {} if vectorize_particles else {"vectorize_particles": False}
    return Weighted(from_spec(ESTIMATORS, estimator, "estimator", **arguments), beta)  # type: ignore[arg-type]  # it refuses Pyro's


ESTIMATORS: dict[str, Callable[..., ELBO]] = {
    "trace_elbo": trace_elbo,
    "trace_mean_field_elbo": trace_mean_field_elbo,
    "sampled_kl": SampledKL,
    "analytic_kl": AnalyticKL,
    "stl": STL,
    "iwae": IWAE,
    "iwae_stl": IWAESTL,
    "dreg": DReG,
    "miwae": MIWAE,
    "miwae_dreg": MIWAEDReG,
    "piwae": PIWAE,
    "piwae_dreg": PIWAEDReG,
    "local_iwae": LocalIWAE,
    "ciwae": CIWAE,
    "renyi": Renyi,
    "reinforce": Reinforce,
    "reinforce_moving_average": ReinforceMovingAverage,
    "disarm": DisARM,
    "rebar": Rebar,
    "concrete": Concrete,
    "vimco": VIMCO,
    "ovis": OVIS,
    "ovis_mc": OVISMonteCarlo,
    "wake_sleep": WakeSleep,
    "rws": RWS,
    "rws_dreg": RWSDReG,
    "tvo": TVO,
    "beta": beta_vae,
}


def as_estimator(thing: object, *, vectorize_particles: bool = True) -> ELBO:
    """Return a ``pyro.infer.ELBO`` unchanged, and the estimator that a text specifies.

    Args:
        thing: either.
        vectorize_particles: False: the estimator of a text runs particles one by one, and the text need not say so.

    Raises:
        InputError: neither, or an unknown name.

    Example:
        >>> as_estimator("iwae:num_particles=3")
        IWAE(num_particles=3)
    """
    if isinstance(thing, str):
        one_by_one = {} if vectorize_particles else {"vectorize_particles": False}
        return from_spec(ESTIMATORS, thing, "estimator", **one_by_one)
    if not isinstance(thing, ELBO):
        got = repr(thing) if type(thing).__module__ == "builtins" else type(thing).__name__
        raise InputError("an estimator by name, or a pyro.infer.ELBO", got, 'estimator="trace_elbo"')
    return thing


def as_estimators(thing: object, *, vectorize_particles: bool = True) -> dict[str, ELBO]:
    """Return a mapping of estimators with every value as by :func:`as_estimator`.

    Raises:
        InputError: no mapping, or an empty one.
    """
    if not isinstance(thing, Mapping) or not thing:
        hint = 'estimators={"stl": STL(), "iwae": "iwae:num_particles=5"}'
        raise InputError("estimators by name, at least one", repr(thing), hint)
    return {name: as_estimator(value, vectorize_particles=vectorize_particles) for name, value in thing.items()}
