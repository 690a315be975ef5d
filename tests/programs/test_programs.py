"""The programs and the reference themselves, by stock Pyro: finite, seeded, every parameter trained."""

import warnings

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO

from programs.reference import LocalWitness, Witness, assert_same_means, sampled
from programs.table import CASES

UNTRAINED = {"m2 labelled": "m2$$$label"}  # the labels are given
OTHER_BOUND = {"discrete", "rejected", "factor_score", "enumerated", "not_renyi"}  # than RenyiELBO's
SCORED = [
    "m2 sampled",
    "attend infer repeat",
    "rejection gamma",
    "augmented gamma",
    "one hot",
]  # most of the score term


@pytest.fixture(autouse=True)
def quiet():
    """Stock Pyro warns of an enumerated site; it samples it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s).*enumerate", UserWarning)
        yield


@pytest.mark.parametrize("name", CASES)
def test_stock_pyro_trains_it(name):
    with CASES[name].running() as users:
        draws = sampled(Trace_ELBO(), users, 3)
        assert all(values.isfinite().all() for values in draws.values())
        still = [key for key, values in draws.items() if not values.any()]
        assert [key for key in still if not key.startswith(UNTRAINED.get(name, "nothing"))] == []


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_function_of_its_seed(name):
    def once(seed):
        with CASES[name].running(seed) as users:
            return users.call(Trace_ELBO().loss)

    assert once(3) == once(3)
    assert once(3) != once(4)


@pytest.mark.parametrize("name", CASES)
def test_the_witness_of_one_particle_is_trace_elbo(name):
    case = CASES[name]
    with case.running() as users:
        ours, stock = sampled(Witness(1), users, 40), sampled(Trace_ELBO(), users, 40)
    assert torch.allclose(ours["loss"], stock["loss"], rtol=1e-12)
    if not case.traits & {"factor_score"}:
        assert_same_means(ours, stock)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, case in CASES.items()
        if not case.traits & {"discrete", "rejected", "factor_score", "enumerated", "not_renyi"}
    ],
)
def test_the_witness_of_many_particles_is_renyi_elbo(name):
    """Where no site needs a score, no scale is common to all, and a plate without a size holds no shared latent."""
    with CASES[name].running() as users:
        assert_same_means(sampled(Witness(3), users, 4), sampled(RenyiELBO(alpha=0, num_particles=3), users, 4))


def test_the_enumerated_label_has_less_noise_and_the_same_mean():
    with CASES["m2 enumerated"].running() as users:
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        enumerated, drawn = sampled(elbo, users, 100), sampled(Witness(1), users, 100)
    assert_same_means(enumerated, drawn)
    assert enumerated["loss"].std() < drawn["loss"].std()


class NoScore(Witness):
    """The score term is lost, as RenyiELBO loses it."""

    def score(self, guide, kept):
        return torch.zeros(())


class BySize(Witness):
    """Sites are sorted by the sizes of their plates: components, as many as examples, are taken for them."""

    def kept(self, sites):
        return {-1}


class Tempered(Witness):
    """A plate's scale is inside the logarithm."""

    def particle(self, users, subsamples):
        log_w, score, scale = super().particle(users, subsamples)
        return log_w * scale, score, 1.0


class OwnSubsample(Witness):
    """Each particle takes examples of its own, so that a weight is one among those of other examples."""

    def particle(self, users, subsamples):
        return super().particle(users, poutine.Trace())


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        *((NoScore, name) for name in SCORED),
        (BySize, "components as examples"),
        (Tempered, "subsampled plate"),
        (OwnSubsample, "subsampled plate"),
    ],
)
def test_planted_errors_are_found(planted, name):
    with CASES[name].running() as users:
        count = 30 if planted is BySize else 3
        reference = sampled(Witness(count), users, 60)
        with pytest.raises(AssertionError, match="reference"):
            assert_same_means(sampled(planted(count), users, 60), reference)


class CountedAgain(LocalWitness):
    """What the shared latents add is counted for each particle."""

    def given_one_draw(self, users):
        shared, *rest = super().given_one_draw(users)
        return self.num_particles * shared, *rest


def test_a_shared_latent_that_counts_for_each_particle_is_found():
    with CASES["bayesian decoder"].running() as users, pytest.raises(AssertionError, match="reference"):
        assert_same_means(sampled(CountedAgain(3), users, 60), sampled(LocalWitness(3), users, 60))


@pytest.mark.parametrize("name", ["one hot", "auto normal"])
def test_the_store_is_left_empty(name):
    with CASES[name].running() as users:
        sampled(Trace_ELBO(), users, 1)
        assert len(pyro.get_param_store()) > 0
    assert len(pyro.get_param_store()) == 0
