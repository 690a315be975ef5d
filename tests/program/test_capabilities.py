"""What of a program is available, by trial: models that look at x, other observations, means, particles."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean
from partial_programs import (
    Cauchy,
    Conditional,
    D,
    Factor,
    FlowPosterior,
    Forced,
    FromTheLeft,
    MaskedByX,
    NoisyModel,
    Partly,
    PriorLooks,
    Program,
    Reshaped,
    Simulating,
    Standardized,
    Transposed,
    X,
    Z,
    images,
)

from pyro_vae import VAE, InputError
from pyro_vae.program import Generated, find_capabilities, own_store
from pyro_vae.program.adapter import as_program
from pyro_vae.program.predictive import decode, posterior_means, reconstruct, sample_prior
from pyro_vae.program.trials import check_forgets_x

LOOKS = "Expected a model that does not look at x, to simulate from it; got another distribution at site '{}'"


@pytest.mark.parametrize(("make", "site"), [(Forced, "x"), (PriorLooks, "z")])
def test_a_model_that_looks_at_x_is_found(make, site):
    found = find_capabilities(make(), X)
    assert found.no_x == ""
    for why in (found.no_simulation, found.no_simulated_latents, found.no_decoding):
        assert why.startswith(LOOKS.format(site))
        assert why.endswith("Try a method simulate(num_examples) of the program.")
    for generate in (sample_prior, reconstruct, lambda program, x: decode(program, {"z": torch.zeros(12, Z)}, x)):
        with pytest.raises(InputError, match="does not look at x"):
            generate(make(), X)


@pytest.mark.parametrize("make", [Program, Factor, Cauchy, NoisyModel, MaskedByX])
def test_a_model_that_does_not_is_not(make):
    assert "look at x" not in find_capabilities(make(), X).no_simulation
    assert find_capabilities(make(), X).x_site == "x"


def test_it_is_found_on_data_that_are_all_alike():
    """``like`` is often zeros: other data must differ, or the trial would see nothing."""
    for like in (torch.zeros(5, D), torch.ones(5, D), torch.zeros(1, D)):
        with pytest.raises(InputError, match="does not look at x"):
            sample_prior(Forced(), like)
        assert sample_prior(Program(), like).sample.shape == like.shape


def test_a_value_that_passes_through_a_site_is_no_look_at_x():
    """The distribution of x changes with the other observed site, but at one value of it it does not."""

    class Joined(Program):
        def observe(self, x, mean, z):
            first = pyro.sample("first", dist.Normal(mean[..., 0], 0.5), obs=x[..., 0])
            pyro.sample("x", dist.Normal(mean + first[..., None], 0.5).to_event(1), obs=x)

    class Bypassing(Program):
        def observe(self, x, mean, z):
            pyro.sample("first", dist.Normal(mean[..., 0], 0.5), obs=x[..., 0])
            pyro.sample("x", dist.Normal(mean + x[..., :1], 0.5).to_event(1), obs=x)

    assert find_capabilities(Joined(), X).no_simulation == ""
    assert "at site 'x'" in find_capabilities(Bypassing(), X).no_simulation


def test_a_factor_is_not_sampled_from():
    why = find_capabilities(Factor(), X).no_simulation
    assert why.startswith("Expected a model without pyro.factor, to simulate from it by sampling its sites; got factor")


def test_the_program_s_own_simulation_is_used_where_the_model_looks_at_x():
    """Its examples have the known mean and variance; those of the model under teacher forcing would not."""
    program, like = Simulating(), torch.zeros(20_000, D)
    found = find_capabilities(program, X)
    assert (found.no_simulation, found.no_simulated_latents) == ("", "")
    assert "look at x" in found.no_decoding
    made = sample_prior(program, like)
    assert made.mean is None
    assert "samples of the program's simulate" in made.no_mean
    lower = torch.tensor([[0.5 ** (i - j) if j <= i else 0.0 for j in range(D)] for i in range(D)])
    weight, bias = (p.detach() for p in program.decoder.parameters())
    assert_mean(made.sample, lower @ bias)
    covariance = lower @ (weight @ weight.T + 0.25 * torch.eye(D)) @ lower.T
    assert_mean((made.sample - lower @ bias) ** 2, covariance.diagonal())


BAD = {
    "another shape": (
        lambda n: torch.zeros(n, D + 1),
        r"x of shape \(12, 4\) from simulate\(12\); got shape \(12, 5\)",
    ),
    "no tensor": (lambda n: None, "got NoneType"),
    "latents as a list": (lambda n: (torch.zeros(n, D), [1]), "latents by site, 12 each, .* got list"),
    "an error": (lambda n: 1 / 0, "whose simulate.num_examples. runs; got ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_simulate_returns_is_checked(name):
    program, (program.simulate, message) = Forced(), BAD[name]
    why = find_capabilities(program, X).no_simulation
    assert why
    with pytest.raises(InputError, match=message):
        sample_prior(program, X)


def test_x_alone_is_enough_for_samples_but_not_for_what_compares_latents():
    program = Forced()
    program.simulate = lambda n: torch.zeros(n, D)
    found = find_capabilities(program, X)
    assert found.no_simulation == ""
    assert found.no_simulated_latents.startswith("Expected latents beside the simulated x; got none for ['z'].")


def test_an_object_keeps_its_simulation():
    class Plain:
        def __init__(self):
            self.inner = Simulating()

        def model(self, x):
            self.inner.model(x)

        def guide(self, x):
            self.inner.guide(x)

        def simulate(self, num_examples):
            return self.inner.simulate(num_examples)

    assert find_capabilities(as_program(Plain(), X), X).no_simulation == ""


def test_a_reshaped_observation_is_x():
    program, x = Reshaped(), images()
    found = find_capabilities(program, x)
    assert (found.x_site, found.no_x, found.no_simulation) == ("obs", "", "")
    for made in (sample_prior(program, x), reconstruct(program, x), decode(program, {"z": torch.zeros(12, Z)}, x)):
        assert made.mean.shape == made.sample.shape == x.shape
    torch.testing.assert_close(made.mean[0].flatten(), program.decoder.bias.detach())


@pytest.mark.parametrize(("make", "x"), [(Transposed, images()), (Standardized, X), (Partly, X)])
def test_another_observation_is_not_taken_for_x(make, x):
    found = find_capabilities(make(), x)
    assert found.x_site == ""
    for why in (found.no_x, found.no_simulation, found.no_decoding, found.no_likelihood_mean):
        assert why.startswith(
            f"Expected one observed site that holds x, {tuple(x.shape)} as it is or reshaped; got other"
        )
    assert found.no_particles == ""


@pytest.mark.parametrize(("make", "kind"), [(FlowPosterior, "NoMean"), (Cauchy, "Cauchy")])
def test_a_likelihood_without_a_mean_is_sampled_and_says_so(make, kind):
    program = make()
    assert f"a distribution with a mean at site 'x'; got {kind}" in find_capabilities(program, X).no_likelihood_mean
    made = sample_prior(program, X)
    assert isinstance(made, Generated)
    assert made.mean is None
    assert kind in made.no_mean
    assert made.shown[0] is made.sample


def test_a_posterior_without_a_mean_has_the_mean_of_samples_where_asked_for():
    program = FlowPosterior()
    assert "a mean at site 'z'" in find_capabilities(program, X).no_posterior_mean
    assert find_capabilities(Program(), X).no_posterior_mean == ""
    with pytest.raises(InputError, match=r"a distribution with a mean at site 'z'; got TransformedDistribution"):
        posterior_means(program, X)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        means = posterior_means(Program(), X, num_samples=4000)["z"]
    torch.testing.assert_close(means, posterior_means(Program(), X)["z"], atol=5 * 0.5 / 4000**0.5, rtol=0)


def test_a_dimension_counted_from_the_left_is_found():
    found = find_capabilities(FromTheLeft(), X)
    assert "the same log-densities there as one by one; got site 'x'" in found.no_particles
    assert "dimensions counted from the right: softmax(-1)" in found.no_particles
    for make in (Program, Forced, FlowPosterior):
        assert find_capabilities(make(), X).no_particles == ""


def test_particles_that_do_not_run_are_a_sentence():
    class Fixed(Program):
        def observe(self, x, mean, z):
            super().observe(x, mean.view(len(x), D), z)

    assert "Expected a program that broadcasts" in find_capabilities(Fixed(), X).no_particles


def test_global_latents_nested_plates_and_subsampling():
    """Particles go left of all plates; the plates' subsamples are the same in every run."""

    def model(x):
        pixels = pyro.plate("pixels", D, dim=-1)
        with pixels:
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=5, dim=-2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pixels:
                pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("pixels", D, dim=-1):
            pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=5, dim=-2) as index:
            pyro.sample("z", dist.Normal(x[index].mean(-1, keepdim=True), 1.0))

    program = as_program((model, guide), X)
    found = find_capabilities(program, X)
    assert found.no_particles == found.no_posterior_mean == ""
    assert found.latents == {"loc": False, "z": False}


def test_what_is_given_beside_x_is_not_x():
    y = torch.arange(12.0)
    found = find_capabilities(Conditional(), X, y)
    assert (found.x_site, found.no_simulation, found.no_particles) == ("x", "", "")


def test_the_check_of_a_bare_model():
    """What the sleep phase calls."""
    forced, honest = Forced(), Program()
    with own_store(forced), pytest.raises(InputError, match="does not look at x"):
        check_forgets_x(forced.model, X)
    with own_store(honest):
        check_forgets_x(honest.model, X)


def test_trials_leave_no_trace():
    program, before = VAE((D,), Z, (4,), "gaussian"), torch.get_rng_state()
    program.train(True)
    find_capabilities(program, X)
    assert program.training
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pyro.get_param_store()) == 0
