"""Estimators of the evidence lower bound: drop-in ``pyro.infer.ELBO`` objects, by name."""

from collections.abc import Callable

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.errors import InputError

__all__ = ["ESTIMATORS", "trace_elbo", "trace_mean_field_elbo"]


def trace_elbo(num_particles: int = 1) -> Trace_ELBO:
    """Return Pyro's own ``Trace_ELBO`` for a program: particles vectorized, one batch plate.

    The plate nesting is stated because Pyro would otherwise guess it in the first step by drawing noise
    that a resumed run would not draw.

    Example:
        >>> trace_elbo(num_particles=5).num_particles
        5
    """
    return Trace_ELBO(**_particles(num_particles))


def trace_mean_field_elbo(num_particles: int = 1) -> TraceMeanField_ELBO:
    """Return Pyro's own ``TraceMeanField_ELBO``: the KL in closed form where Pyro knows one.

    Where Pyro knows none it samples that term, without saying so.
    """
    return TraceMeanField_ELBO(**_particles(num_particles))


def _particles(num_particles: int) -> dict[str, int | bool]:
    if not isinstance(num_particles, int) or num_particles < 1:
        raise InputError("a num_particles that is a whole number of at least 1", num_particles, "num_particles=1")
    return {"num_particles": num_particles, "max_plate_nesting": 1, "vectorize_particles": True}


ESTIMATORS: dict[str, Callable[..., ELBO]] = {
    "trace_elbo": trace_elbo,
    "trace_mean_field_elbo": trace_mean_field_elbo,
}
