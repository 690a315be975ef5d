"""log p(x) by annealing, from both sides, from the prior and from posterior samples: against oracles."""

import dataclasses
import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from checks import assert_close, assert_mean
from torch import nn

from pyro_vae import VAE, FunctionProgram
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.evaluation import chunking
from pyro_vae.evaluation.methods import annealing
from pyro_vae.evaluation.methods import posterior_sampling as hmc
from pyro_vae.evaluation.methods.annealing import TEMPERATURES, Annealing, annealed_log_evidence, bidirectional
from pyro_vae.evaluation.methods.log_evidence import LogEvidence, prior_log_evidence
from pyro_vae.evaluation.methods.posterior_sampling import posterior_log_evidence
from pyro_vae.models.oracles.integration import log_evidence_by_quadrature
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian
from pyro_vae.models.oracles.mixture import GaussianMixture
from pyro_vae.models.oracles.nonlinear import NonlinearDecoder
from pyro_vae.program.contexts import own_store
from pyro_vae.program.joint import Joint

CPU = torch.device("cpu")


def rand(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(guide="encoder", latent_dim=2):
    weight = rand(4, latent_dim) + rand(4, 1, seed=5)
    oracle = LinearGaussian.of(weight, rand(4, seed=1), 0.6, guide)
    if guide == "encoder":
        with torch.no_grad():
            oracle.encoder.log_scale.add_(0.3)  # too wide, so that it is a fair start
    return oracle


class Coins(nn.Module):
    """z ~ Beta(2, 3), D coins of that chance: a constrained latent whose evidence is a formula."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Beta(x.new_tensor(2.0), x.new_tensor(3.0)))
            pyro.sample("x", dist.Bernoulli(probs=z[..., None].expand(*z.shape, x.shape[-1])).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Beta(1.5 + x.sum(-1), 2.0 + (1 - x).sum(-1)))

    def log_evidence(self, x):
        a, b = 2 + x.sum(-1), 3 + (1 - x).sum(-1)
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b) - math.log(1 / 12)

    def simulate(self, count):
        return (rand(count, 6) > 0.3).double()


class Nested(nn.Module):
    """A scale and a number below it: two sites, and a support that depends on the first.

    The tails of p(x|z) are heavy, so that 1/w of reverse chains has a variance.
    """

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Gamma(x.new_tensor(3.0), x.new_tensor(1.0)))
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(top), top))
            pyro.sample("x", dist.StudentT(3.0, z[..., None], 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Gamma(x.new_tensor(3.0), x.new_tensor(1.0)))
            share = dist.TransformedDistribution(
                dist.Beta(torch.ones_like(top) * 1.2, 1.2), dist.transforms.AffineTransform(0.0, top)
            )
            pyro.sample("z", share)

    def log_evidence(self, x):
        """The integral over z by hand, that over the scale on a grid of its logarithm."""
        log_top = torch.linspace(-25, 5, 6001, dtype=torch.float64)
        top = log_top.exp()
        inside = torch.from_numpy(scipy.stats.t.cdf((top - x) / 0.5, 3) - scipy.stats.t.cdf(-x / 0.5, 3))
        density = dist.Gamma(3.0, 1.0).log_prob(top).exp() * inside  # p(top) / top times the Jacobian, top
        return torch.trapezoid(density, log_top).log()

    def simulate(self, count):
        return 1 + rand(count, 1).abs()


def test_truth_by_hand_is_the_quadrature():
    x = Nested().simulate(3)
    assert (log_evidence_by_quadrature(Nested(), x) - Nested().log_evidence(x)).abs().max() < 1e-6


PROGRAMS = {
    "linear": linear,
    "curve": lambda: NonlinearDecoder(4),
    "surface": lambda: NonlinearDecoder(4, latent_dim=2),
    "constrained": Coins,
    "two sites": Nested,
}


def assert_evidence(found, truth):
    """Every weight's expectation is p(x): five standard errors, from the weights; and the value is made of them."""
    assert_mean((found.log_weights - truth).exp(), 1.0)
    distance = (found.value - truth).abs()
    assert (distance <= 5 * found.standard_error).all(), f"{distance / found.standard_error} standard errors"


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_annealing_agrees_with_the_truth(name, start):
    program = PROGRAMS[name]()
    x = program.simulate(4)
    truth = program.log_evidence(x).detach()
    found = annealed_log_evidence(
        program, x, chains=200, temperatures=20, leapfrog_steps=5, start=start, preliminary=name == "linear"
    )
    assert_evidence(found, truth)
    assert found.log_weights.shape == (200, 4)
    assert ((found.acceptance > 0.4) & (found.acceptance < 1)).all()


def test_one_temperature_is_importance_sampling():
    oracle = linear()
    x = oracle.simulate(3)
    found = annealed_log_evidence(oracle, x, chains=20000, temperatures=1, start="guide")
    assert_evidence(found, oracle.log_evidence(x).detach())


def test_more_temperatures_leave_less_spread():
    oracle = linear()
    x = oracle.simulate(4)
    rough, fine = (annealed_log_evidence(oracle, x, chains=50, temperatures=t, leapfrog_steps=5) for t in (5, 60))
    assert fine.log_weights.std(0).mean() < 0.5 * rough.log_weights.std(0).mean()


def test_prior_sampling_agrees_with_the_truth():
    for name in ("curve", "constrained"):
        program = PROGRAMS[name]()
        x = program.simulate(4)
        assert_evidence(prior_log_evidence(program, x, num_particles=20000), program.log_evidence(x).detach())


def test_prior_sampling_needs_a_guide_where_the_posterior_is_far_from_the_prior():
    oracle = LinearGaussian.of(torch.ones(50, 4).tril() * 2.0, torch.zeros(50), 0.1)
    x = oracle.simulate(10)
    found = prior_log_evidence(oracle, x, num_particles=1000)
    assert (oracle.log_evidence(x) - found.value).mean() > 10


class TestSandwich:
    def test_brackets_the_truth(self):
        oracle = linear()
        like = torch.zeros(60, 4, dtype=torch.float64)
        found = bidirectional(oracle, like, chains=4, temperatures=10, leapfrog_steps=5)
        truth = oracle.log_evidence(found.x).detach()
        assert found.lower.value.mean() < truth.mean() < found.upper.value.mean()
        assert found.width.mean() > 0.1
        finer = bidirectional(oracle, like, chains=4, temperatures=80, leapfrog_steps=5)
        assert torch.equal(finer.x, found.x)
        assert 0 < finer.width.mean() < 0.5 * found.width.mean()

    @pytest.mark.parametrize("program", [linear(), Coins(), Nested()])
    def test_both_sides_are_unbiased(self, program):
        """E w = p(x) and E 1/w = 1/p(x): one chain per example, so that the weights are independent."""
        like = program.simulate(1).expand(1500, -1)
        found = bidirectional(program, like, chains=1, temperatures=12, leapfrog_steps=4)
        truth = program.log_evidence(found.x).detach()
        assert_mean((found.lower.log_weights - truth).exp().flatten(), 1.0)
        assert_mean((truth - found.upper.log_weights).exp().flatten(), 1.0)

    def test_reverse_chains_that_do_not_start_at_a_draw_from_the_posterior_are_caught(self, monkeypatch):
        program = linear()
        real = annealing.sample_pairs

        def at_the_mean(program, like):
            made = real(program, like)
            return type(made)(made.mean, made.sample, {"z": program.posterior(made.sample).mean})

        monkeypatch.setattr(annealing, "sample_pairs", at_the_mean)
        found = bidirectional(
            program, program.simulate(1).expand(1500, -1), chains=1, temperatures=12, leapfrog_steps=4
        )
        truth = program.log_evidence(found.x).detach()
        with pytest.raises(AssertionError):
            assert_mean((truth - found.upper.log_weights).exp().flatten(), 1.0)


def test_transitions_leave_the_target_as_it_is():
    """Exact posterior samples stay exact, also where many proposals are rejected."""
    oracle = linear("posterior")
    x = oracle.simulate(2)
    with isolated_rng(CPU, 0), torch.no_grad(), own_store(oracle):
        path = annealing.GeometricPath(Joint(oracle, x), "prior")
        u = path.draw(1)
        posterior = oracle.posterior(x)
        here = (posterior.sample((4000,)), None, None)
        here = (here[0], *path.at(here[0]))
        step = torch.full((2,), 0.2, dtype=torch.float64)
        for _ in range(5):
            here, probability = annealing.transition(path, here, 1.0, step, 3)
        again = path.joint.of_unconstrained(here[0]).log_joint
    assert u.shape == (1, 2, 2)
    assert 0.1 < probability.mean() < 0.8
    assert_mean(here[0], posterior.mean.detach())
    centred = here[0] - posterior.mean.detach()
    assert_mean(centred[..., :, None] * centred[..., None, :], posterior.covariance_matrix.detach())
    assert_close(here[1] + here[2], again)


def without_the_last_temperature(count):
    return annealing.linear(count + 1)[:-1]


def always_accepted(path, here, beta, step, leapfrog_steps):
    size, u = 0.9, here[0]
    velocity = torch.randn_like(u) + 0.5 * size * path.gradient(u, beta)[0]
    for count in range(leapfrog_steps):
        u = u + size * velocity
        gradient, base, difference = path.gradient(u, beta)
        velocity = velocity + (0.5 if count == leapfrog_steps - 1 else 1.0) * size * gradient
    return (u, base, difference), torch.ones_like(base)


def no_jacobian(real):
    def of_unconstrained(self, u):
        terms = real(self, u)
        return type(terms)(terms.log_px_z, terms.log_pz, torch.zeros_like(terms.log_jacobian), terms.latents)

    return of_unconstrained


class TestPlantedErrors:
    def found(self, program, **settings):
        x = program.simulate(4)
        how = {"chains": 300, "temperatures": 12, "leapfrog_steps": 5} | settings
        truth = program.log_evidence(x).detach()
        return annealed_log_evidence(program, x, **how), truth

    def test_averaged_before_the_log(self):
        found, truth = self.found(linear(), temperatures=4)
        wrong = LogEvidence(found.log_weights.mean(0), found.standard_error, found.log_weights)
        with pytest.raises(AssertionError):
            assert_evidence(wrong, truth)

    def test_weights_not_divided_by_their_number(self):
        found, truth = self.found(linear())
        wrong = LogEvidence(found.log_weights.logsumexp(0), found.standard_error, found.log_weights)
        with pytest.raises(AssertionError):
            assert_evidence(wrong, truth)

    def test_schedule_that_stops_short(self, monkeypatch):
        monkeypatch.setitem(TEMPERATURES, "linear", without_the_last_temperature)
        found, truth = self.found(linear(), schedule="linear", chains=2000)
        with pytest.raises(AssertionError):
            assert_evidence(found, truth)

    def test_transitions_without_the_accept_step(self, monkeypatch):
        monkeypatch.setattr(annealing, "transition", always_accepted)
        found, truth = self.found(linear())
        with pytest.raises(AssertionError):
            assert_evidence(found, truth)

    @pytest.mark.parametrize("program", [Coins(), Nested()])
    def test_no_jacobian(self, monkeypatch, program):
        monkeypatch.setattr(Joint, "of_unconstrained", no_jacobian(Joint.of_unconstrained))
        found, truth = self.found(program)
        with pytest.raises(AssertionError):
            assert_evidence(found, truth)

    def test_no_jacobian_in_the_hmc_estimator(self, monkeypatch):
        x = Coins().simulate(2)
        monkeypatch.setattr(Joint, "of_unconstrained", no_jacobian(Joint.of_unconstrained))
        found = posterior_log_evidence(Coins(), x, chains=10, num_samples=50, warmup_steps=50)
        with pytest.raises(AssertionError):
            assert_posterior_evidence(found, Coins().log_evidence(x))

    def test_truncated_normal_that_is_not_normalised(self, monkeypatch):
        real = hmc.truncated_normal
        monkeypatch.setattr(hmc, "truncated_normal", lambda *args: real(*args) + math.log(hmc.INSIDE))
        oracle = linear()
        x = oracle.simulate(2)
        found = posterior_log_evidence(oracle, x, chains=20, num_samples=100, warmup_steps=50)
        with pytest.raises(AssertionError):
            assert_posterior_evidence(found, oracle.log_evidence(x))


def assert_posterior_evidence(found, truth):
    distance = (found.value - truth.detach()).abs()
    assert (distance <= 5 * found.standard_error).all(), f"{distance / found.standard_error} standard errors"
    assert (found.standard_error < 0.1).all()


class TestPosteriorSamples:
    @pytest.mark.parametrize(
        ("name", "sampler"),
        [("linear", "nuts"), ("linear", "hmc"), ("surface", "nuts"), ("constrained", "nuts")],
    )
    def test_agree_with_the_truth(self, name, sampler):
        program = PROGRAMS[name]()
        x = program.simulate(3)
        found = posterior_log_evidence(program, x, chains=20, num_samples=60, warmup_steps=60, sampler=sampler)
        assert_posterior_evidence(found, program.log_evidence(x))
        assert found.log_weights.shape == (10, 3)
        assert (found.r_hat < 1.1).all()

    def test_r_hat_shows_modes_that_chains_do_not_leave(self):
        class TwoModes(nn.Module):
            def model(self, x):
                with pyro.plate("data", len(x), dim=-1):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                    pyro.sample("x", dist.Normal(z.abs()[..., None], 0.02).to_event(1), obs=x)

            def guide(self, x):
                with pyro.plate("data", len(x), dim=-1):
                    pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

        found = posterior_log_evidence(TwoModes(), torch.ones(1, 1).double(), chains=8, num_samples=40, warmup_steps=60)
        assert (found.r_hat > 2).all()

    def test_density_is_one_on_its_ellipsoid(self):
        samples = rand(5000, 1, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.3]], dtype=torch.float64)
        axis = torch.linspace(-5, 5, 501, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis).unsqueeze(1)
        total = hmc.truncated_normal(samples, grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert total.item() == pytest.approx(1, abs=0.01)


CALLS = {
    "annealed": lambda p, x, seed=0: annealed_log_evidence(p, x, chains=3, temperatures=4, seed=seed).value,
    "bidirectional": lambda p, x, seed=0: bidirectional(p, x, chains=3, temperatures=4, seed=seed).upper.value,
    "prior": lambda p, x, seed=0: prior_log_evidence(p, x, num_particles=7, seed=seed).value,
    "posterior": lambda p, x, seed=0: (
        posterior_log_evidence(p, x, chains=4, num_samples=10, warmup_steps=5, seed=seed).value
    ),
}


class TestManners:
    """No estimator of log p(x) has side effects, and each is reproducible."""

    @pytest.mark.parametrize("name", CALLS)
    def test_no_side_effects(self, name, device):
        vae = VAE((6,), latent_dim=2, hidden=(8,)).to(device)
        x = torch.bernoulli(torch.full((5, 6), 0.5, device=device))
        vae.decoder.layers[0].bias.requires_grad_(False)
        for index, parameter in enumerate(vae.parameters()):
            parameter.grad = torch.full_like(parameter, index)
        before = torch.get_rng_state(), [p.detach().clone() for p in vae.parameters()]
        found = CALLS[name](vae, x)
        assert found.shape == (5,)
        assert found.device.type == device.type
        assert found.isfinite().all()
        assert vae.training
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(map(torch.equal, vae.parameters(), before[1]))
        assert all((p.grad == index).all() for index, p in enumerate(vae.parameters()))
        assert [p.requires_grad for p in vae.parameters()].count(False) == 1
        assert torch.equal(found, CALLS[name](vae, x))
        assert not torch.equal(found, CALLS[name](vae, x, seed=1))

    @pytest.mark.parametrize("name", CALLS)
    def test_functions_are_programs_too(self, name):
        def model(x):
            scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), scale))
                pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

        x = torch.randn(3, 2)
        assert CALLS[name](FunctionProgram(model, guide, x), x).isfinite().all()

    def test_memory_is_bounded_by_chunks(self, monkeypatch):
        monkeypatch.setattr(chunking, "STATES_AT_ONCE", 40)
        most = []
        real = Joint._terms
        monkeypatch.setattr(
            Joint, "_terms", lambda self, *a: most.append(real(self, *a).log_pz.numel()) or real(self, *a)
        )
        oracle = linear()
        x = oracle.simulate(11)
        found = annealed_log_evidence(oracle, x, chains=10, temperatures=3)
        assert max(most) <= 40
        assert found.log_weights.shape == (10, 11)
        assert prior_log_evidence(oracle, x, num_particles=95).log_weights.shape == (95, 11)


def test_schedules_rise_from_0_to_1():
    for make in TEMPERATURES.values():
        betas = make(25)
        assert betas.shape == (26,)
        assert betas[0] == 0
        assert betas[-1] == 1
        assert (betas.diff() > 0).all()
    assert annealing.sigmoid(100)[50].item() == pytest.approx(0.5)
    assert annealing.sigmoid(100)[1] < 0.01 * 0.5


def defaults(function):
    """The annealing settings among the keywords of a function, with their defaults."""
    found = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    return {name: default for name, default in found.items() if name not in OTHER_ARGUMENTS}


OTHER_ARGUMENTS = {"program", "x", "like", "preliminary", "seed"}


@pytest.mark.parametrize("function", [annealed_log_evidence, bidirectional])
def test_keywords_are_those_of_annealing(function):
    assert defaults(function) == dataclasses.asdict(Annealing())


def test_a_keyword_with_another_default_is_caught():
    def planted(program, x, *, chains=17, temperatures=1000, schedule="sigmoid", start="prior", leapfrog_steps=10): ...

    assert defaults(planted) != dataclasses.asdict(Annealing())


def mixture():
    return GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))


def on_a_sphere():
    return VAE((4,), 3, (5,), prior="uniform_sphere", posterior="projected_normal")


BAD = {
    "discrete": (lambda: annealed_log_evidence(mixture(), mixture().simulate(2)), "a continuous latent at site 'z'"),
    "discrete, hmc": (lambda: posterior_log_evidence(mixture(), mixture().simulate(2)), "a continuous latent at site"),
    "a sphere": (
        lambda: annealed_log_evidence(on_a_sphere(), torch.zeros(2, 4)),
        r"a latent at site 'z' that is a function of real numbers; got Directions\. Try importance sampling",
    ),
    "no chains": (lambda: annealed_log_evidence(linear(), linear().simulate(2), chains=0), "chains as a whole number"),
    "step": (
        lambda: annealed_log_evidence(linear(), linear().simulate(2), step_size=0.0),
        "step_size above 0; got 0.0",
    ),
    "schedule": (lambda: bidirectional(linear(), linear().simulate(2), schedule="sigmod"), "Try 'sigmoid'"),
    "start": (lambda: bidirectional(linear(), linear().simulate(2), start="guid"), "Try 'guide'"),
    "six numbers": (
        lambda: posterior_log_evidence(LinearGaussian(8, 6), torch.zeros(1, 8).double()),
        "at most 5 latent dimensions.*got 6",
    ),
    "sampler": (lambda: posterior_log_evidence(linear(), linear().simulate(1), sampler="nut"), "Try 'nuts'"),
    "few chains": (lambda: posterior_log_evidence(linear(), linear().simulate(1), chains=3), "at least 4 chains"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()
