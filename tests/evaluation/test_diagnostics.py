"""Importance weights, latent usage and calibration, on programs and weights with known answers."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from scipy.stats import chi2, genpareto
from toys import Discrete, Module, TwoUnits, hierarchy, scalar_gaussian

from pyro_vae import VAE, FunctionProgram, InputError
from pyro_vae.evaluation.methods import arviz as arviz_adapter
from pyro_vae.evaluation.methods import calibration
from pyro_vae.evaluation.methods import psis as diagnostics
from pyro_vae.evaluation.methods.calibration import simulation_based_calibration
from pyro_vae.evaluation.methods.latent_usage import latent_diagnostics
from pyro_vae.evaluation.methods.psis import effective_sample_size, pareto_k, weight_diagnostics
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian

PARTICLES = 5000
TAIL = math.ceil(3 * math.sqrt(PARTICLES))


def pareto_log_weights(shape, data=200, seed=0):
    """Log w of w = 1 + y, y generalized Pareto: every tail of w is generalized Pareto of the same shape."""
    y = genpareto.rvs(shape, size=(PARTICLES, data), random_state=np.random.default_rng(seed))
    return torch.from_numpy(np.log1p(y))


def shrunk(shape):
    """What a fit of the tail tends to: ArviZ adds ten observations of shape 0.5."""
    return (TAIL * shape + 10 * 0.5) / (TAIL + 10)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.2])
def test_the_shape_of_heavy_tails_is_recovered(shape, device):
    found = pareto_k(pareto_log_weights(shape).to(device))
    assert found.device.type == device.type
    assert_mean(found.cpu(), shrunk(shape))


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.2])
def test_a_wrong_sign_is_caught(shape, monkeypatch):
    right = diagnostics.pareto_shape
    monkeypatch.setattr(diagnostics, "pareto_shape", lambda log_weights: right(-log_weights))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(pareto_k(pareto_log_weights(shape)), shrunk(shape))


def test_the_adapter_leaves_its_argument_alone():
    weights = pareto_log_weights(0.5, data=3).T.numpy().copy()
    before = weights.copy()
    arviz_adapter.pareto_shape(weights)
    assert (weights == before).all()


def test_k_hat_knows_neither_scale_nor_order_nor_chunks():
    """Pyro's ``psis_diagnostic`` gives one k-hat for the joint of all examples; here each example has one."""
    weights = pareto_log_weights(0.7, data=300)
    found = pareto_k(weights)
    assert_close(pareto_k(weights.flip(0) - 1e4), found, 1e-6)
    assert_close(pareto_k(weights[:, 256:]), found[256:], 0.0)


def test_weights_without_a_tail():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    two_values = torch.where(torch.arange(1000) < 3, 2.0, 0.0).double()
    spread_out = 1e5 * torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    impossible = torch.full((1000,), -math.inf, dtype=torch.float64)
    impossible[0] = 0.0
    columns = [torch.zeros(1000), 1e-9 * noise, two_values, spread_out, impossible, 0.1 * noise]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pareto_k(torch.stack([column.double() for column in columns], 1))
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2].isnan()
    assert found[3:5].tolist() == [math.inf, math.inf]
    assert found[5] < 0.5


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(29, 2), r"K at least 30; got shape \(29, 2\)"),
        (torch.zeros(50), r"shape \(K, B\)"),
        (torch.full((50, 2), math.nan), "below infinity"),
        (torch.full((50, 2), math.inf), "below infinity"),
        (torch.full((50, 2), -math.inf), "not all of an example"),
    ],
)
def test_weights_that_are_refused(log_weights, message):
    with pytest.raises(InputError, match=message):
        pareto_k(log_weights)


def test_effective_sample_size():
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 0.0, 2.0], [1.0, 0.0, 0.0]]).double()
    expected = weights.sum(0) ** 2 / weights.square().sum(0)
    assert_close(effective_sample_size(weights.log() - 2000), expected, 1e-10)


def test_weights_of_the_exact_posterior_and_of_a_narrow_guide():
    x = torch.linspace(-2, 2, 120, dtype=torch.float64)
    exact = weight_diagnostics(scalar_gaussian(), x, num_particles=300)
    assert exact.k_hat.tolist() == [0.0] * 120
    assert_close(exact.effective_sample_size, torch.full((120,), 300.0).double())
    narrow = weight_diagnostics(scalar_gaussian(scale=0.4), x, num_particles=3000)
    assert narrow.effective_sample_size.max() < 2000
    # w ∝ exp(−½ z² (1 − s⁻²)) under N(0, s²) has tail shape 1 − s²
    assert narrow.k_hat.mean() > 0.6
    assert narrow.share_over(0.5) >= narrow.share_over(0.7) > 0.1
    assert narrow.undefined == 0


def test_shares_leave_out_what_is_undefined():
    k_hat = torch.tensor([0.1, 0.6, 0.8, math.inf, math.nan]).double()
    found = diagnostics.WeightDiagnostics(k_hat, k_hat, 100)
    assert (found.share_over(0.5), found.share_over(0.7), found.undefined) == (0.75, 0.5, 1)


def normal_kl(loc, scale):
    return 0.5 * (loc**2 + scale**2 - 1) - math.log(scale)


def test_active_units_and_collapse_in_closed_form(device):
    x = torch.linspace(-2, 3, 130, dtype=torch.float64, device=device)
    found = latent_diagnostics(TwoUnits(), x)["z"]
    assert (found.mean_from, found.kl_from) == ("closed form", "closed form")
    assert_close(found.mean_variance.cpu(), torch.stack([0.25 * x.var(), 0 * x.var()]).cpu())
    kl = normal_kl(0.5 * x, 0.8)
    assert_close(found.kl.cpu(), torch.stack([kl.mean(), 0 * kl.mean()]).cpu())
    assert_close(found.kl_error[0], kl.std() / 130**0.5)
    assert found.active.tolist() == [True, False]
    assert found.collapsed.tolist() == [False, True]
    assert found.active_units == 1


def test_active_units_and_collapse_by_sampling():
    x = torch.linspace(-2, 3, 2000, dtype=torch.float64)
    exact, found = (latent_diagnostics(TwoUnits(s), x, num_particles=4, seed=1)["z"] for s in (False, True))
    assert (found.mean_from, found.kl_from) == ("sampled", "sampled")
    assert found.kl.shape == ()
    assert abs(found.kl - exact.kl.sum()) < 5 * found.kl_error
    assert ((found.mean_variance - exact.mean_variance).abs() < 5 * found.mean_variance_error).all()
    # without the correction the idle unit would show its prior's variance over K = 4
    assert found.mean_variance[1].abs() < 0.05
    assert found.active[0]


def test_latents_in_another_order_are_sampled():
    toy = hierarchy(1)
    x = torch.linspace(-2, 2, 4000, dtype=torch.float64)
    found = latent_diagnostics(Module(toy), x, num_particles=4)
    assert {site.kl_from for site in found.values()} == {"sampled"}
    assert (found["z2"].mean_from, found["z1"].mean_from) == ("closed form", "sampled")
    truth = toy.b.item() ** 2 * toy.a.item() ** 2 * x.var()
    assert abs(found["z1"].mean_variance - truth) < 5 * found["z1"].mean_variance_error
    # together the two sites hold E_q[log q − log p]
    log_q = -math.log(toy.s) - math.log(toy.t) - 1 - math.log(2 * math.pi)
    z2 = toy.a * x + toy.m
    z1, var1 = toy.b * z2 + toy.c, toy.t**2 + toy.b**2 * toy.s**2
    residual, covariance = z2 - toy.theta * z1, toy.b * toy.s**2
    var_residual = toy.s**2 + toy.theta**2 * var1 - 2 * toy.theta * covariance
    log_p = -math.log(2 * math.pi) - 0.5 * (z1**2 + var1 + residual**2 + var_residual)
    truth = (log_q - log_p).mean()
    error = (found["z1"].kl_error ** 2 + found["z2"].kl_error ** 2).sqrt() * 2**0.5
    assert abs(found["z1"].kl + found["z2"].kl - truth) < 5 * error


def test_categorical_latents_have_a_kl_and_no_mean():
    logits = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    program = Module(Discrete(logits, torch.zeros_like(logits)))
    found = latent_diagnostics(program, torch.zeros(7, dtype=torch.float64))["z"]
    truth = ((1 / 3) * (-math.log(3) - logits[0].log_softmax(0))).sum()
    assert_close(found.kl, truth)
    assert found.mean_variance.isnan()
    assert found.active_units == 0


def test_a_masked_latent_counts_nothing():
    class Masked(TwoUnits):
        def model(self, x):
            with pyro.poutine.mask(mask=x > 0):
                super().model(x)

        def guide(self, x):
            with pyro.poutine.mask(mask=x > 0):
                super().guide(x)

    x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    found = latent_diagnostics(Masked(), x)["z"]
    assert_close(found.kl[0], (normal_kl(0.5 * x, 0.8) * (x > 0)).mean())


def test_ranks_have_the_shape_of_the_latent(device):
    vae, like = VAE((4,), latent_dim=3, likelihood="gaussian").to(device), torch.zeros(1, 4, device=device)
    found = simulation_based_calibration(vae, like, 100)["z"]
    assert found.ranks.shape == (100, 3)
    assert {f.shape for f in (found.chi_square, found.ecdf_p, found.shift, found.dispersion)} == {torch.Size([3])}


def test_an_oracle_whose_guide_is_the_posterior_passes_everything():
    oracle = LinearGaussian(data_dim=4, latent_dim=2, guide="posterior")
    x = oracle.simulate(60, seed=101)
    weights = weight_diagnostics(oracle, x, num_particles=100)
    assert weights.k_hat.tolist() == [0.0] * 60
    assert_close(weights.effective_sample_size, torch.full((60,), 100.0).double(), 1e-6)
    assert simulation_based_calibration(oracle, x, 1000)["z"].p_value > 0.01
    found = latent_diagnostics(oracle, x)["z"]
    assert found.kl_from == "closed form"  # of a full covariance against a diagonal normal
    assert found.kl.shape == ()
    posterior = oracle.posterior(x)
    squares = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum(-1) + posterior.mean.square().sum(-1)
    truth = 0.5 * (squares - 2 - posterior.covariance_matrix.logdet()).mean()
    assert_close(found.kl, truth)


def test_exact_posteriors_are_calibrated():
    exact = simulation_based_calibration(scalar_gaussian(), torch.zeros(1, dtype=torch.float64), 2000)["z"]
    assert exact.p_value > 0.01
    assert abs(exact.shift) < 5 / math.sqrt(12 * 2000)
    assert abs(exact.dispersion - 1) < 5 * math.sqrt(0.8 / 2000)


@pytest.mark.parametrize(
    ("planted", "dispersion", "shift"),
    [({"scale": 0.7}, 1, 0), ({"scale": 1.4}, -1, 0), ({"off": 0.3}, 0, -1), ({"off": -0.3}, 0, 1)],
    ids=["narrow", "wide", "high", "low"],
)
def test_a_wrong_posterior_is_not_calibrated(planted, dispersion, shift):
    found = simulation_based_calibration(scalar_gaussian(**planted), torch.zeros(1, dtype=torch.float64), 2000)["z"]
    assert found.p_value < 1e-6
    if dispersion:
        assert (found.dispersion - 1) * dispersion > 5 * math.sqrt(0.8 / 2000)
    if shift:
        assert found.shift * shift > 5 / math.sqrt(12 * 2000)


@pytest.mark.parametrize("right", [True, False])
def test_ranks_of_discrete_latents_break_ties_at_random(right):
    """The guide is the prior, which is calibrated; or else half of it is missing."""
    prior = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    guide = prior if right else torch.tensor([[0.3, -2.0, 0.5]], dtype=torch.float64)
    found = simulation_based_calibration(Module(Discrete(prior, guide)), torch.zeros(1, dtype=torch.float64), 2000)["z"]
    assert (found.p_value > 0.01) is right


def test_chi_square_is_pearsons():
    """Ranks 0 … 3 of 3 draws in 4 bins: counts 4, 2, 1, 1 against 2 each, 3 degrees of freedom."""
    ranks = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])[:, None]
    found = calibration._calibration(ranks, num_draws=3, bins=4)
    assert found.chi_square.tolist() == [(4 + 0 + 1 + 1) / 2]
    assert found.chi_square_p.item() == pytest.approx(chi2.sf(3.0, 3))


def test_calibration_of_functions_with_parameters_in_the_store():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(weight * x, 0.5**0.5))

    program = FunctionProgram(model, guide, torch.zeros(3))
    assert simulation_based_calibration(program, torch.zeros(1), 1000)["z"].p_value > 0.01


def test_arguments_that_are_refused():
    program, like = scalar_gaussian(), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(InputError, match=r"bins that divide num_draws \+ 1; got 20 bins, 100 draws"):
        simulation_based_calibration(program, like, num_draws=100)
    with pytest.raises(InputError, match="at least 100 simulations"):
        simulation_based_calibration(program, like, num_simulations=99)
    with pytest.raises(InputError, match="at least 2 particles"):
        latent_diagnostics(program, like, num_particles=1)


def test_looking_changes_nothing():
    vae = VAE((4,), latent_dim=2)
    x = torch.ones(5, 4)
    state = torch.get_rng_state()
    first = [weight_diagnostics(vae, x, 50, seed=s).effective_sample_size for s in (0, 0, 1)]
    simulation_based_calibration(vae, x, 100)
    latent_diagnostics(vae, x)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_chunks_bound_what_is_decoded_at_once():
    class Watched(VAE):
        largest = 0

        def decode(self, z):
            Watched.largest = max(Watched.largest, z[..., 0].numel())
            return super().decode(z)

    vae, x = Watched((4,), latent_dim=2), torch.ones(400, 4)
    weight_diagnostics(vae, x, 350)
    latent_diagnostics(vae, x, 20)
    simulation_based_calibration(vae, x, 400)
    assert 0 < Watched.largest <= 5000
