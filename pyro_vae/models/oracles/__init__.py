r"""Programs whose log p(x) is known: what an estimator, a model or an evaluation can be checked against.

Each oracle is a program like any other and beside that has ``log_evidence(x)``, (B,), in nats, and
``simulate(count)``, data drawn from its model. All start in float64 (``.float()`` for single precision).

=========================  ==================================  ===================
oracle                     latents                             log p(x)
=========================  ==================================  ===================
:class:`LinearGaussian`    normal vector, linear decoder       closed form
:class:`GaussianMixture`   one class                           closed form
:class:`NonlinearDecoder`  one or two numbers, neural decoder  quadrature, to 1e-8
:class:`DiscreteLatents`   bits and a class, neural decoder    sum over all states
=========================  ==================================  ===================

:func:`log_evidence_by_quadrature` and :func:`log_evidence_by_enumeration` do the same for any program whose latents
are few enough.
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
