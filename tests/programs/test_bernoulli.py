"""DisARM and REBAR on programs of the table: right, or refused with a reason; reparameterized latents beside theirs."""

import pytest

from programs.reference import Witness, assert_same_means, sampled
from programs.table import CASES
from pyro_vae import InputError, elbo

DRAWS = 16
RIGHT = {  # particles of DisARM: chains, as many as Bernoulli latents and one more
    "attend infer repeat": 3,  # a Bernoulli and a masked normal latent at each of two steps
    "auto structured": 2,
    "bayesian decoder N/B": 2,
    "hierarchical": 2,
    "implicit delta": 2,
    "masked examples": 2,
    "missing pixels": 2,
    "plate without size": 2,
    "subsampled plate": 2,
}
REFUSED = {
    "mixture": r"Bernoulli or reparameterized latents .* Categorical",
    "factor by score": r"Bernoulli or reparameterized latents .*'",
    "straight through": r"Bernoulli or reparameterized latents .* OneHotCategoricalStraightThrough",
    "rejection gamma": r"Bernoulli or reparameterized latents .* RejectionStandardGamma",
}


def estimator_of(kind, name):
    particles = RIGHT.get(name, 2)
    return kind(particles if kind is elbo.DisARM else 2, vectorize_particles=False)


@pytest.mark.parametrize("kind", [elbo.DisARM, elbo.Rebar])
@pytest.mark.parametrize("name", RIGHT)
def test_value_and_gradient_are_those_of_the_reference(name, kind):
    case = CASES[name]
    with case.running() as users:
        found = sampled(estimator_of(kind, name), users, DRAWS)
        assert_same_means(found, sampled(Witness(3, elbo=True, mixed="mixes" in case.traits), users, DRAWS))


@pytest.mark.parametrize("kind", [elbo.DisARM, elbo.Rebar, elbo.Concrete])
@pytest.mark.parametrize("name", REFUSED)
def test_what_they_have_no_gradient_for_is_refused(name, kind):
    with CASES[name].running() as users, pytest.raises(InputError, match=REFUSED[name]):
        sampled(estimator_of(kind, name), users, 1)


def test_the_relaxed_objective_is_another():
    """The check can fail: the concrete relaxation has another value and other gradients than the ELBO's."""
    with CASES["attend infer repeat"].running() as users:
        found = sampled(estimator_of(elbo.Concrete, "attend infer repeat"), users, DRAWS)
        with pytest.raises(AssertionError, match="loss: mean"):
            assert_same_means(found, sampled(Witness(3, elbo=True, mixed=False), users, DRAWS))
