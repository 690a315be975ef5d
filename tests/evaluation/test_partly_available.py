"""Figures of programs of which not everything is available: the part that is not is refused, not the program."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from partial_programs import (
    Cauchy,
    D,
    Factor,
    FlowPosterior,
    Forced,
    FromTheLeft,
    Masked,
    Partly,
    Program,
    Reshaped,
    Simulating,
    images,
    no_latents,
)

from pyro_vae import VAE, Images, InputError, evaluate, fit
from pyro_vae.evaluation import Sizes, to_inference_data
from pyro_vae.evaluation.card.bounds import bits_entries
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.methods.annealing import bidirectional
from pyro_vae.evaluation.methods.calibration import simulation_based_calibration
from pyro_vae.evaluation.methods.observed_dims import observed_dims
from pyro_vae.evaluation.methods.probe import reconstruction_scores
from pyro_vae.program import as_program

X = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
LITTLE = {
    **{"num_particles": 40, "iwae": [4], "importance_examples": 20, "simulations": 100, "prior_examples": 4},
    **{"annealing_examples": 4, "sandwich_examples": 4, "annealing_chains": 3, "annealing_temperatures": 5},
    **{"gap_examples": 4, "gap_steps": 20, "hmc_examples": 2, "hmc_samples": 10, "device": "cpu"},
}
SIMULATED = ["sandwich", "calibration"]


def card_of(program, x=X):
    return evaluate(program, x, skip=["hmc", "gaps", "probe", "surgery"], **LITTLE)


def test_what_simulates_is_refused_where_the_model_looks_at_x():
    card = card_of(Forced())
    assert set(card.left_out) == {*SIMULATED, "pictures"}
    assert all("does not look at x" in why and "Try a method simulate" in why for why in card.left_out.values())
    assert {"elbo", "log_evidence", "annealed", "from_prior", "active_units_z"} <= {e.name for e in card.entries}
    assert str(card).count("not computed: ") == 3
    for part in SIMULATED:
        with pytest.raises(InputError, match="does not look at x"):
            evaluate(Forced(), X, only=[part], **LITTLE)
    for function in (bidirectional, simulation_based_calibration):
        with pytest.raises(InputError, match="does not look at x"):
            function(Forced(), X)


def test_the_bounds_of_such_a_model_are_right():
    """log p(x) of the teacher-forced program is that of a Gaussian with a known covariance."""
    program = Forced()
    weight, bias = (p.detach().double() for p in program.decoder.parameters())
    lower = torch.tensor([[0.5 ** (i - j) if j <= i else 0.0 for j in range(D)] for i in range(D)]).double()
    covariance = lower @ (weight @ weight.T + 0.25 * torch.eye(D)) @ lower.T
    card = evaluate(program, X, only=["importance"], **{**LITTLE, "num_particles": 4000, "importance_examples": 40})
    truth = torch.distributions.MultivariateNormal(lower @ bias, covariance).log_prob(X.double())
    paired = (card.per_example["log_evidence"] - truth[card.index]).exp()
    assert paired.mean().item() == pytest.approx(1.0, abs=5 * paired.std().item() / len(paired) ** 0.5)


def test_its_own_simulation_is_used():
    card = card_of(Simulating())
    assert set(card.left_out) == {"squared_error"}
    assert "does not look at x" in card.left_out["squared_error"]
    assert {"sample_elbo", "sandwich_width", "miscalibrated_z"} <= {entry.name for entry in card.entries}


def test_calibration_and_the_sandwich_hold_for_its_own_simulation():
    """With q the exact posterior ranks are uniform, with latents of other examples not; the sandwich encloses log p."""

    class Exact(Simulating):
        """q(z|x) is the posterior: the residuals x − ½ (x before) are Gaussian in z."""

        def guide(self, x):
            pyro.module("program", self)
            before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
            weight, bias = self.decoder.weight, self.decoder.bias
            precision = torch.eye(2) + weight.T @ weight / 0.25
            loc = (x - 0.5 * before - bias) @ weight / 0.25 @ precision.inverse()
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    class Wrong(Exact):
        def simulate(self, num_examples):
            x, latents = super().simulate(num_examples)
            return x, {"z": latents["z"].flip(0)}

    found = simulation_based_calibration(Exact(), X, num_simulations=1000, seed=0)["z"]
    assert found.p_value > 0.01
    assert simulation_based_calibration(Wrong(), X, num_simulations=1000, seed=0)["z"].p_value < 1e-4
    made = bidirectional(Exact(), X[:10], seed=0, chains=10, temperatures=50)
    assert (made.lower.value.mean() < made.upper.value.mean() + 0.05).item()
    assert (made.upper.value - made.lower.value).mean().item() < 1


def test_a_simulation_without_latents_gives_samples_only():
    program = Forced()
    program.simulate = lambda n: torch.randn(n, D)
    card = card_of(program)
    assert set(card.left_out) == {*SIMULATED, "squared_error"}
    assert "latents beside the simulated x" in card.left_out["calibration"]
    assert "sample_elbo" in card
    with pytest.raises(InputError, match="latents beside the simulated x"):
        simulation_based_calibration(program, X)


def test_a_reshaped_observation_is_judged_whole():
    flat = Program()
    card, same = card_of(Reshaped(), images(X)), card_of(flat, X)
    assert card.left_out == {}
    assert card["squared_error"].value == pytest.approx(same["squared_error"].value)
    assert card["elbo_bits"].value == pytest.approx(same["elbo_bits"].value)
    assert_close(
        reconstruction_scores(Reshaped(), images(X)).squared_error, reconstruction_scores(flat, X).squared_error
    )


def test_a_program_that_observes_something_else_keeps_its_bounds():
    card = card_of(Partly())
    assert set(card.left_out) == {*SIMULATED, "pictures"}
    assert all("one observed site that holds x" in why for why in card.left_out.values())
    assert card["elbo_bits"].value == pytest.approx(-card["elbo"].value / (2 * math.log(2)))  # 2 of 4 are observed
    result = fit(Partly(), X, validation=X, epochs=1, batch_size=20, device="cpu", engine="svi")
    assert math.isfinite(result.history[-1].bound)


def test_a_factor_is_no_sample():
    card = card_of(Factor())
    assert "without pyro.factor" in card.left_out["calibration"]


def test_means_that_are_not_there_are_said():
    card = card_of(FlowPosterior())
    assert "a distribution with a mean at site 'x'; got NoMean" in card.left_out["squared_error"]
    assert "sample_elbo" in card
    assert "means of particles" in card["active_units_z"].how
    assert "means of particles" not in card_of(Program())["active_units_z"].how
    assert "got Cauchy" in card_of(Cauchy()).left_out["squared_error"]


def test_the_probe_says_of_which_means():
    data = Images(X, labels=torch.arange(40) % 2)
    card = evaluate(FlowPosterior(), data, train=data, only=["probe"], device="cpu")
    assert "of particles where q has none in closed form" in card["probe"].how
    assert "of particles" not in evaluate(Program(), data, train=data, only=["probe"], device="cpu")["probe"].how


def test_a_program_whose_particles_differ_is_refused():
    with pytest.raises(InputError, match="the same log-densities there as one by one; got site 'x'"):
        evaluate(FromTheLeft(), X, only=["bounds"], device="cpu")


def test_a_model_without_latents_is_a_sentence():
    with pytest.raises(InputError, match="a model with a latent site, for bounds; got none"):
        evaluate(as_program(no_latents(), X), X, only=["bounds"], device="cpu")


# ---- bits per dimension


def test_masked_dimensions_are_not_counted():
    dims = observed_dims(Masked(), X)
    expected = torch.tensor([3.0 if i % 20 > 2 else 0.0 for i in range(40)]).double()
    assert torch.equal(dims, expected)
    card = evaluate(Masked(), X, only=["bounds", "importance"], **LITTLE)
    total = expected.sum().item()
    assert card["elbo_bits"].value == pytest.approx(-card["elbo"].value * 40 / (total * math.log(2)))
    assert "2.5 dims not masked" in card["elbo_bits"].how or "2.6 dims not masked" in card["elbo_bits"].how
    assert card["log_evidence_bits"].count == 20


def test_the_error_of_the_ratio_is_its_spread():
    """Over 300 repetitions the variance is the one that the entries state; dividing by 4 dims each would be wrong."""

    class Subject:
        discrete, pixels = True, "binary as they are"

    torch.manual_seed(0)
    found = []
    for _ in range(300):
        subject = Subject()
        subject.dims = torch.randint(1, 5, (200,)).double()
        log_density = -(2 * subject.dims + torch.randn(200).double()) * math.log(2)
        found.append(bits_entries("bits", "bits", log_density, subject)[0])
    values = torch.tensor([entry.value for entry in found]).double()
    stated = sum(entry.standard_error**2 for entry in found) / len(found)
    assert values.mean().item() == pytest.approx(2.0, abs=5 * values.std().item() / 300**0.5)
    spread = (values - values.mean()).square()
    assert spread.mean().item() == pytest.approx(stated, abs=5 * spread.std().item() / 300**0.5)


def test_plates_of_pixels_and_masks_on_either_side():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", D, dim=-1), pyro.poutine.mask(mask=x > 0):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 1.0))

    program = as_program((model, guide), X)
    for count in (4, 40):  # 4: as many examples as pixels
        assert torch.equal(observed_dims(program, X[:count]), (X[:count] > 0).double().sum(1))


def test_bits_are_left_out_with_the_reason_where_dims_cannot_be_counted():
    class Unseen(Program):
        def observe(self, x, mean, z):
            with pyro.poutine.mask(mask=torch.zeros(len(x), dtype=torch.bool)):
                pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    card = evaluate(Unseen(), X, only=["bounds", "importance"], **LITTLE)
    assert set(card.left_out) == {"elbo_bits", "log_evidence_bits"}
    assert "that are not masked, for bits per dimension; got none" in card.left_out["elbo_bits"]
    assert "elbo_bits" not in card
    assert "not computed: elbo_bits" in str(card)


# ---- the file for ArviZ


@pytest.mark.parametrize("program", [Forced(), Simulating(), Partly(), Program()])
def test_groups_that_would_be_wrong_are_left_out(program):
    found = to_inference_data(program, X, sizes=Sizes(5, 40, 2), device="cpu")
    left_out = json.loads(found.attrs["left_out"])
    expected = {"posterior_predictive"} if isinstance(program, Forced | Partly) else set()
    if type(program) in (Forced, Partly):
        expected |= {"prior", "prior_predictive"}
    assert set(left_out) == expected
    for group in ("prior", "prior_predictive", "posterior_predictive"):
        assert hasattr(found, group) == (group not in expected)
    assert hasattr(found, "log_likelihood")


def test_the_plain_vae_has_all_of_it():
    card = evaluate(VAE((D,), 2, (4,), "gaussian"), X, skip=["hmc", "gaps", "probe"], **LITTLE)
    assert card.left_out == {}
    assert {entry.part for entry in card.entries} == set(PARTS) - {"hmc", "gaps", "probe", "joint"}


def test_latents_on_a_sphere_leave_out_what_moves_real_numbers():
    """Everything else, surgery and the ELBO's parts with it, is on the card."""
    vae = VAE((D,), 3, (5,), "gaussian", prior="uniform_sphere", posterior="projected_normal")
    card = evaluate(vae, X, skip=["probe"], surgery_examples=20, **LITTLE)
    assert set(card.left_out) == {"annealing", "sandwich", "hmc", "gaps"}
    assert all("at site 'z' that is a function of real numbers" in why for why in card.left_out.values())
    assert {"elbo", "log_evidence", "from_prior", "mutual_information"} <= {e.name for e in card.entries}


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [("vamp:components=4", "full_normal"), ("coupling_flow:hidden=[4]", "iaf:hidden=[4]")],
)
def test_the_whole_card_of_other_priors_and_posteriors(prior, posterior):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((D,), 2, (5,), "gaussian", prior=prior, posterior=posterior)
    card = evaluate(vae, X, skip=["probe"], surgery_examples=20, **LITTLE)
    assert card.left_out == {}
    assert all(math.isfinite(entry.value) for entry in card.entries if entry.name != "k_hat")
