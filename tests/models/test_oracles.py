"""Oracles: their log p(x) against formulas, other libraries, brute force and each other."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from sklearn.decomposition import PCA
from torch import distributions as td
from torch import nn

import pyro_vae
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.models.oracles.discrete import DiscreteLatents
from pyro_vae.models.oracles.integration import log_evidence_by_enumeration, log_evidence_by_quadrature
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian
from pyro_vae.models.oracles.mixture import GaussianMixture
from pyro_vae.models.oracles.nonlinear import NonlinearDecoder
from pyro_vae.models.oracles.oracle import Oracle
from pyro_vae.program.contexts import frozen, own_store
from pyro_vae.program.joint import Joint
from pyro_vae.program.validation import check_particles, check_program

CPU = torch.device("cpu")


def rand(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def oblique(guide="encoder", scale=0.6, data_dim=5):
    """A linear Gaussian model whose W has oblique columns."""
    return LinearGaussian.of(rand(data_dim, 2) + rand(data_dim, 1, seed=5), rand(data_dim, seed=1), scale, guide)


def mixture(guide="posterior", data_dim=2):
    return GaussianMixture(rand(3), 2 * rand(3, data_dim, seed=1), rand(3, data_dim, seed=2).exp(), guide)


class BetaBinomial(nn.Module):
    """z ~ Beta(2, 3), D coins of that chance: a constrained latent with evidence in closed form."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Beta(x.new_tensor(2.0), x.new_tensor(3.0)))
            pyro.sample("x", dist.Bernoulli(probs=z[..., None].expand(*z.shape, x.shape[-1])).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Beta(2.0 + x.sum(-1), 3.0 + (1 - x).sum(-1)))

    def log_evidence(self, x):
        ones, zeros = x.sum(-1), (1 - x).sum(-1)

        def log_beta(a, b):
            return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

        return log_beta(2 + ones, 3 + zeros) - math.log(1 / 12)


class Simplex(nn.Module):
    """z ~ Dirichlet over three classes, and a class sampled from z: two unconstrained dimensions."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Dirichlet(x.new_tensor([1.5, 2.0, 3.0])))
            pyro.sample("x", dist.OneHotCategorical(probs=z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Dirichlet(x.new_tensor([1.5, 2.0, 3.0]) + x))


ORACLES = {
    "linear": oblique,
    "linear, exact guide": lambda: oblique("posterior"),
    "mixture": mixture,
    "mixture, encoder": lambda: mixture("encoder"),
    "curve": lambda: NonlinearDecoder(4, latent_dim=1),
    "surface": lambda: NonlinearDecoder(4, latent_dim=2),
    "binary surface": lambda: NonlinearDecoder(6, latent_dim=2, likelihood="bernoulli"),
    "discrete": lambda: DiscreteLatents(5),
}


@pytest.mark.parametrize("name", ORACLES)
class TestEveryOracle:
    def test_is_a_program_that_can_be_trained(self, name):
        oracle = ORACLES[name]()
        x = oracle.simulate(6)
        assert isinstance(oracle, Oracle)
        check_program(oracle, x)
        check_particles(oracle, x)

    def test_simulates_by_seed_and_disturbs_nothing(self, name):
        oracle = ORACLES[name]()
        before = torch.get_rng_state()
        x = oracle.simulate(7, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert x.shape == (7, *oracle.event_shape)
        assert x.dtype == torch.float64
        assert torch.equal(x, oracle.simulate(7, seed=3))
        assert not torch.equal(x, oracle.simulate(7, seed=4))

    def test_importance_sampling_agrees(self, name):
        oracle = ORACLES[name]()
        x = oracle.simulate(5)
        with isolated_rng(CPU, 0), own_store(oracle), torch.no_grad():
            log_w = draw_terms(oracle, x, 20000).log_weight
        assert_mean((log_w - oracle.log_evidence(x).detach()).exp(), 1.0)

    def test_evidence_is_the_density_of_what_it_simulates(self, name):
        """The true log-density is the greatest on average (Gibbs' inequality); the other is that of x reversed."""
        oracle = ORACLES[name]()
        x = oracle.simulate(400)
        x = x[: 400 if "surface" not in name else 40]
        flipped = x.flip(-1)
        own, other = oracle.log_evidence(x).detach(), oracle.log_evidence(flipped).detach()
        assert own.shape == (len(x),)
        assert own.mean() > other.mean()


def test_oracles_evidence_follows_its_device(device):
    oracle = oblique().to(device)
    x = oracle.simulate(3)
    assert x.device.type == device.type
    assert_close(oracle.log_evidence(x).cpu(), oblique().log_evidence(x.cpu()))
    curve = NonlinearDecoder(3).to(device)
    assert_close(curve.log_evidence(x[:, :3]).cpu(), NonlinearDecoder(3).log_evidence(x[:, :3].cpu()), 1e-8)
    discrete = DiscreteLatents(4).to(device)
    x = discrete.simulate(3)
    assert_close(discrete.log_evidence(x).cpu(), DiscreteLatents(4).log_evidence(x.cpu()))


NORMALISED = {
    "linear": lambda: LinearGaussian.of(rand(1, 1), rand(1), 0.5),
    "mixture": lambda: mixture(data_dim=1),
    "curve": lambda: NonlinearDecoder(1),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_evidence_integrates_to_one(name):
    grid = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    density = NORMALISED[name]().log_evidence(grid.unsqueeze(1)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-9)


def test_discrete_evidence_sums_to_one():
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    assert DiscreteLatents(5).log_evidence(every).exp().sum().item() == pytest.approx(1, abs=1e-12)
    curve = NonlinearDecoder(5, latent_dim=2, likelihood="bernoulli")
    assert curve.log_evidence(every).exp().sum().item() == pytest.approx(1, abs=1e-8)


class TestLinearGaussian:
    def test_elbo_and_kl_to_the_posterior_add_up_to_the_evidence(self):
        oracle = LinearGaussian(5, 2, seed=3)  # an encoder that is no optimum
        x = oracle.simulate(8)
        q = oracle.encoder(x).base_dist
        residual = x - oracle.mean - q.mean @ oracle.weight.mT
        spread = (oracle.weight.square() @ q.variance.mT).sum(0)
        reconstruction = -0.5 * (residual.square().sum(-1) + spread) / oracle.variance
        reconstruction -= 2.5 * (math.log(2 * math.pi) + oracle.variance.log())
        prior = td.Normal(torch.zeros_like(q.mean), 1.0)
        elbo = reconstruction - td.kl_divergence(td.Normal(q.mean, q.stddev), prior).sum(-1)
        full = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        kl = td.kl_divergence(full, oracle.posterior(x))
        assert (kl > 0.01).all()
        assert_close(elbo + kl, oracle.log_evidence(x))

    def test_exact_guide_makes_every_log_weight_the_evidence(self):
        oracle = oblique("posterior")
        x = oracle.simulate(4)
        with isolated_rng(CPU, 0), own_store(oracle):
            log_w = draw_terms(oracle, x, 50).log_weight
        assert_close(log_w, oracle.log_evidence(x).detach().expand(50, 4))

    def test_posterior_covariance_with_the_slip_of_the_literature_is_caught(self):
        """Some texts print the covariance as M⁻¹, without σ²: then log w would vary."""
        oracle = oblique("posterior")
        x = oracle.simulate(4)
        right = oracle.posterior(x)
        slip = td.MultivariateNormal(right.mean, torch.linalg.inv(oracle.inner))
        z = slip.sample((50,))
        log_w = td.Normal(0.0, 1.0).log_prob(z).sum(-1) + oracle.decoder(z).log_prob(x) - slip.log_prob(z)
        assert log_w.std(0).min() > 0.1

    def test_scikit_learn_agrees(self):
        x = oblique().simulate(300)
        pca = PCA(2).fit(x.numpy())
        components, explained = torch.tensor(pca.components_), torch.tensor(pca.explained_variance_)
        weight = components.mT * (explained - pca.noise_variance_).sqrt()
        oracle = LinearGaussian.of(weight, torch.tensor(pca.mean_), math.sqrt(pca.noise_variance_))
        assert_close(oracle.log_evidence(x).detach(), torch.tensor(pca.score_samples(x.numpy())))
        ours = LinearGaussian.maximum_likelihood(x, 2)  # scikit-learn divides the covariance by N − 1, not by N
        assert ours.variance.item() == pytest.approx(pca.noise_variance_ * 299 / 300, rel=1e-10)

    def test_maximum_likelihood_is_a_maximum(self):
        x = oblique().simulate(200)
        oracle = LinearGaussian.maximum_likelihood(x, 2)
        parameters = list(oracle.decoder.parameters())
        gradients = torch.autograd.grad(oracle.log_evidence(x).mean(), parameters)
        assert max(g.abs().max() for g in gradients) < 1e-10
        best = oracle.log_evidence(x).mean().item()
        for seed in range(10):
            with torch.no_grad():
                for index, parameter in enumerate(LinearGaussian.maximum_likelihood(x, 2).decoder.parameters()):
                    parameters[index].copy_(parameter + 0.05 * rand(*parameter.shape, seed=seed))
            assert oracle.log_evidence(x).mean().item() < best

    def test_best_diagonal_guide_leaves_the_gap_that_is_said(self):
        for oracle in (oblique(), LinearGaussian.maximum_likelihood(oblique().simulate(200), 2)):
            x = oracle.simulate(4)
            q = oracle.encoder(x)
            full = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
            assert_close(td.kl_divergence(full, oracle.posterior(x)) + 1, oracle.gap().expand(4) + 1)
        assert oblique().gap() > 0.01
        assert oracle.gap().item() == pytest.approx(0, abs=1e-10)  # orthogonal columns

    def test_training_from_random_parameters_reaches_the_pca_optimum(self):
        x = LinearGaussian.of(rand(7, 2) * torch.tensor([1.5, 0.8]), torch.linspace(-1, 1, 7), 0.5).simulate(400)
        best = LinearGaussian.maximum_likelihood(x, 2)
        oracle = LinearGaussian(7, 2, seed=1)
        assert (best.log_evidence(x) - oracle.log_evidence(x)).mean() > 1  # it starts far away
        pyro_vae.fit(
            oracle,
            x,
            device="cpu",
            estimator="analytic_kl",
            epochs=1000,
            batch_size=400,
            learning_rate=0.05,
            schedule="cosine",
        )
        assert 0 <= (best.log_evidence(x) - oracle.log_evidence(x)).mean().item() < 1e-3
        bases = torch.linalg.qr(oracle.weight).Q, torch.linalg.qr(best.weight).Q
        cosine = torch.linalg.svdvals(bases[0].mT @ bases[1]).min().clamp(max=1)
        assert math.degrees(cosine.acos().item()) < 1
        assert oracle.variance.item() == pytest.approx(best.variance.item(), rel=0.01)
        q = oracle.encoder(x)  # a diagonal guide that reaches the evidence: training turned the columns orthogonal
        full = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        assert td.kl_divergence(full, oracle.posterior(x)).mean() < 1e-3


class TestGaussianMixture:
    def test_exact_guide_makes_every_log_weight_the_evidence(self):
        oracle = mixture()
        x = oracle.simulate(4)
        with isolated_rng(CPU, 0), own_store(oracle):
            log_w = draw_terms(oracle, x, 50).log_weight
        assert_close(log_w, oracle.log_evidence(x).detach().expand(50, 4))

    def test_evidence_is_torchs_mixture(self):
        oracle = mixture()
        x = oracle.simulate(9)
        parts = oracle.components
        classes = td.Categorical(logits=parts.logits)
        reference = td.MixtureSameFamily(classes, td.Independent(td.Normal(parts.loc, parts.log_scale.exp()), 1))
        assert_close(oracle.log_evidence(x), reference.log_prob(x))
        assert_close(oracle.posterior(x).probs.sum(-1), torch.ones(9, dtype=torch.float64))


class TestQuadrature:
    @pytest.mark.parametrize(("latent_dim", "scale"), [(1, 1.0), (1, 0.02), (2, 1.0), (2, 0.1)])
    def test_reaches_a_closed_form(self, latent_dim, scale):
        oracle = LinearGaussian.of(rand(4, latent_dim), rand(4, seed=1), scale)
        x = oracle.simulate(3)
        assert (log_evidence_by_quadrature(oracle, x) - oracle.log_evidence(x)).abs().max() < 1e-8

    def test_reaches_data_far_from_the_prior(self):
        """The posterior's mean is 20 prior standard deviations out: the grid must grow."""
        oracle = LinearGaussian.of(torch.eye(1), torch.zeros(1), 0.5)
        x = torch.full((1, 1), 25.0, dtype=torch.float64)
        assert oracle.posterior(x).mean.item() == 20
        assert (log_evidence_by_quadrature(oracle, x) - oracle.log_evidence(x)).abs().max() < 1e-8

    def test_reaches_the_beta_binomial(self):
        x = (rand(5, 6) > 0).double()
        assert (log_evidence_by_quadrature(BetaBinomial(), x) - BetaBinomial().log_evidence(x)).abs().max() < 1e-8

    def test_takes_a_simplex(self):
        x = torch.eye(3, dtype=torch.float64)
        truth = (torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64) / 6.5).log()
        assert (log_evidence_by_quadrature(Simplex(), x) - truth).abs().max() < 1e-8

    def test_says_when_it_does_not_settle(self):
        oracle = LinearGaussian.of(torch.eye(2), torch.zeros(2), 0.001)
        with pytest.raises(InputError, match="settles within 1e-08 nats on 10000 nodes; got none"):
            log_evidence_by_quadrature(oracle, oracle.simulate(2), max_nodes=10000)

    def test_refuses(self):
        three = LinearGaussian(4, 3)
        with pytest.raises(InputError, match="Expected one or two latent dimensions; got 3"):
            log_evidence_by_quadrature(three, three.simulate(2))
        with pytest.raises(InputError, match=r"Expected program and data in float64; got torch.float32, torch.float64"):
            log_evidence_by_quadrature(LinearGaussian(4, 2), torch.zeros(1, 4))
        with pytest.raises(InputError, match="Expected a continuous latent at site 'z'"):
            log_evidence_by_quadrature(mixture(), mixture().simulate(2))
        with pytest.raises(InputError, match="Expected a latent_dim of 1 or 2; got 3"):
            NonlinearDecoder(4, latent_dim=3)


class TestEnumeration:
    def test_is_the_sum_by_hand(self):
        oracle = DiscreteLatents(4, bits=2, classes=3)
        x = oracle.simulate(3)
        total = torch.zeros(3, dtype=torch.float64)
        for kind, *bits in itertools.product(range(3), (0, 1), (0, 1)):
            code = torch.tensor([*bits, *np.eye(3)[kind]], dtype=torch.float64)
            on = oracle.prior.bits.sigmoid()
            p_bits = math.prod(on[i].item() if b else 1 - on[i].item() for i, b in enumerate(bits))
            p_x = td.Bernoulli(logits=oracle.decoder(code)[0]).log_prob(x).sum(-1).exp()
            total += oracle.prior.kind.softmax(-1)[kind].item() * p_bits * p_x.detach()
        assert_close(oracle.log_evidence(x), total.log())

    def test_refuses(self):
        oracle = DiscreteLatents(4, bits=12)
        with pytest.raises(InputError, match=r"at most 1000 states of latent 'bits'; got 2\^12"):
            log_evidence_by_enumeration(oracle, oracle.simulate(1), max_states=1000)
        with pytest.raises(InputError, match="at most 5000 joint states of the latents; got 16384"):
            log_evidence_by_enumeration(oracle, oracle.simulate(1), max_states=5000)
        with pytest.raises(InputError, match="a discrete latent at site 'z'; got Normal"):
            log_evidence_by_enumeration(oblique(), oblique().simulate(1))


class TestJoint:
    def test_equals_the_terms_of_a_draw(self):
        oracle = NonlinearDecoder(4, latent_dim=2)
        x = oracle.simulate(3)
        with own_store(oracle), isolated_rng(CPU, 0), torch.no_grad():
            joint = Joint(oracle, x)
            z = joint.draw_guide(5)
            terms = joint.at(z)
            log_q = joint.log_q(z)
        with own_store(oracle), isolated_rng(CPU, 0):
            draw_terms(oracle, x, 1)  # the trace that Joint looks at first
            drawn = draw_terms(oracle, x, 5)
        assert_close(terms.log_px_z, drawn.log_px_z)
        assert_close(terms.log_pz, drawn.log_pz)
        assert_close(log_q, drawn.log_qz)

    @pytest.mark.parametrize("program", [BetaBinomial(), Simplex()])
    def test_jacobian_is_that_of_autograd(self, program):
        x = torch.eye(3, dtype=torch.float64)
        with own_store(program):
            joint = Joint(program, x)
            u = rand(4, 3, joint.size)
            z = joint.constrain(u)["z"].reshape(4, 3, -1)
            assert_close(joint.unconstrain(joint.constrain(u)), u)
            jacobian = torch.autograd.functional.jacobian(
                lambda v: joint.constrain(v)["z"].reshape(4, 3, -1)[..., : joint.size], u
            )
            per_state = torch.stack([jacobian[k, b, :, k, b] for k in range(4) for b in range(3)])
            assert z.shape[-1] >= joint.size
            assert_close(joint.of_unconstrained(u).log_jacobian.flatten(), torch.linalg.slogdet(per_state)[1])

    def test_missing_latents_are_refused_not_drawn(self):
        oracle = DiscreteLatents(4)
        with own_store(oracle):
            joint = Joint(oracle, oracle.simulate(2))
            with pytest.raises(InputError, match=r"Expected latents \['bits', 'kind'\]; got \['kind'\]"):
                joint.at({"kind": torch.zeros(1, 2, dtype=torch.long)})

    def test_frozen_puts_flags_back(self):
        oracle = oblique()
        oracle.decoder.log_scale.requires_grad_(False)
        flags = [p.requires_grad for p in oracle.parameters()]
        with frozen(oracle):
            assert not any(p.requires_grad for p in oracle.parameters())
        assert [p.requires_grad for p in oracle.parameters()] == flags


BAD = {
    "guide": (lambda: LinearGaussian(4, 2, guide="posteriour"), "Try 'posterior'"),
    "mixture's shapes": (
        lambda: GaussianMixture(torch.zeros(2), torch.zeros(3, 1), torch.tensor(1.0)),
        "logits \\(C,\\)",
    ),
    "too few dimensions": (
        lambda: LinearGaussian.maximum_likelihood(torch.zeros(9, 2), 2),
        "D above 2; got \\(9, 2\\)",
    ),
    "no noise": (lambda: LinearGaussian.maximum_likelihood(rand(9, 1) @ rand(1, 4), 2), "noise in more than 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_oracle_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()
