r"""Programs with known log p(x), to check estimators, models and evaluations against.

Each oracle is a program with two more methods: ``log_evidence(x)``, (B,), in nats, and ``simulate(count)``, examples
sampled from its model. All are float64 at first (``.float()`` for single precision).

=========================  ==================================  ===================
oracle                     latents                             log p(x)
=========================  ==================================  ===================
:class:`LinearGaussian`    normal vector, linear decoder       closed form
:class:`GaussianMixture`   one class                           closed form
:class:`NonlinearDecoder`  one or two numbers, neural decoder  quadrature, to 1e-8
:class:`DiscreteLatents`   bits and a class, neural decoder    sum over all states
=========================  ==================================  ===================

:func:`log_evidence_by_quadrature` and :func:`log_evidence_by_enumeration` return log p(x) of any program with few
enough latents.
"""

from pyro_vae.models.oracles.discrete import DiscreteLatents
from pyro_vae.models.oracles.integration import log_evidence_by_enumeration, log_evidence_by_quadrature
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian
from pyro_vae.models.oracles.mixture import GaussianMixture
from pyro_vae.models.oracles.nonlinear import NonlinearDecoder
from pyro_vae.models.oracles.oracle import Oracle

__all__ = [
    "DiscreteLatents",
    "GaussianMixture",
    "LinearGaussian",
    "NonlinearDecoder",
    "Oracle",
    "log_evidence_by_enumeration",
    "log_evidence_by_quadrature",
]
