"""Inference gaps against the closed forms of a linear Gaussian program, and against quadrature."""

import dataclasses
import importlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import nn
from toys import NOISE, Module, discrete, hierarchy, scalar_gaussian

from pyro_vae import VAE, InputError
from pyro_vae.evaluation.methods.inference_gaps import inference_gaps
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian

gaps = importlib.import_module(
    "pyro_vae.evaluation.methods.inference_gaps"
)  # the package shows the function of that name
DATA = 60
TOLERANCE = 0.01  # nats, the default


def linear(weight, shift=0.0, stretch=1.0, device="cpu"):
    """The linear Gaussian oracle; q is the best diagonal normal, shifted and stretched by as much as asked."""
    oracle = LinearGaussian.of(weight.to(device), torch.zeros(len(weight)).to(device), NOISE)
    with torch.no_grad():
        oracle.encoder.mean.bias += shift
        oracle.encoder.log_scale += math.log(stretch)
    return oracle


def amortization_gap(weight, shift=0.0, stretch=1.0):
    """KL(q ‖ posterior) less that of the best, P the posterior's precision: ½ (mᵀPm + D (s² − 1 − 2 log s))."""
    precision = torch.eye(weight.shape[1]).to(weight) + weight.T @ weight / NOISE**2
    moved = torch.full_like(weight[0], shift)
    return 0.5 * (moved @ precision @ moved + len(moved) * (stretch**2 - 1 - 2 * math.log(stretch)))


ORTHOGONAL = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
OBLIQUE = torch.tensor([[1.0, 0.9], [0.3, 0.8], [0.5, 0.1]], dtype=torch.float64)


@torch.no_grad()
def found_gaps(oracle, **options):
    x = oracle.simulate(DATA, seed=101)
    return inference_gaps(oracle, x, oracle.log_evidence(x), **options)


def check_gaps(found, approximation, amortization):
    """Mean gaps against the truth: optimisation may fall short by its tolerance, never go beyond; five errors."""
    for gap, truth, sign in ((found.approximation, approximation, 1), (found.amortization, amortization, -1)):
        missing = sign * (gap.cpu() - truth)
        error = missing.std() / math.sqrt(len(missing))
        assert -5 * error - 1e-6 <= missing.mean() <= TOLERANCE + 5 * error
    assert_close(found.approximation + found.amortization, found.total)
    assert (found.approximation + 5 * found.local_elbo_error + 1e-6 > 0).all()


@pytest.mark.parametrize("weight", [ORTHOGONAL, OBLIQUE], ids=["orthogonal", "oblique"])
def test_gaps_of_the_diagonal_normal_have_their_closed_form(weight, device):
    oracle = linear(weight, shift=0.8, stretch=0.5, device=device)
    found = found_gaps(oracle)
    assert found.converged.all()
    assert found.steps.unique().numel() == 1
    check_gaps(found, oracle.gap().detach().cpu(), amortization_gap(weight, 0.8, 0.5))
    if weight is ORTHOGONAL:
        assert oracle.gap().abs() < 1e-10
        assert found.approximation.mean() < TOLERANCE  # near the posterior there is no noise to hide behind
        assert found.local_elbo_error.max() < TOLERANCE


def test_a_flow_closes_the_gap_that_a_diagonal_normal_leaves():
    oracle = linear(OBLIQUE, shift=0.3)
    found = found_gaps(oracle, family="flow")
    assert oracle.gap() > 0.05
    assert found.converged.all()
    assert found.approximation.mean() < 0.1 * oracle.gap()
    assert (found.approximation > -5 * found.local_elbo_error - 1e-6).all()


def test_a_guide_that_is_the_best_of_its_family_has_no_amortization_gap():
    found = found_gaps(linear(OBLIQUE))
    missing = -found.amortization
    error = missing.std() / math.sqrt(DATA)
    assert -5 * error <= missing.mean() <= TOLERANCE + 5 * error
    spread = found.amortization / found.amortization_error
    assert 0.5 < spread.square().mean() < 2  # the errors given are those of the figures


def test_a_guide_that_is_the_posterior_leaves_no_gap_at_all():
    oracle = LinearGaussian.of(OBLIQUE, torch.zeros(3), NOISE, guide="posterior")
    found = found_gaps(oracle, num_evaluation=10, max_steps=20)
    assert_close(found.amortized_elbo, found.log_evidence)
    assert found.amortized_elbo_error.max() < 1e-10
    assert (found.amortization < 0).any()  # the guide's family is richer than the diagonal normal


def _no_jacobian(self, noise):
    return self.loc + self.log_scale.exp() * noise, torch.zeros_like(noise[..., 0])


def _half_jacobian(self, noise):
    return self.loc + self.log_scale.exp() * noise, 0.5 * self.log_scale.sum(-1).expand(noise.shape[:-1])


@pytest.mark.parametrize("planted", [_no_jacobian, _half_jacobian])
def test_a_wrong_density_of_the_local_q_is_caught(planted, monkeypatch):
    monkeypatch.setattr(gaps.Diagonal, "__call__", planted)
    oracle = linear(OBLIQUE, stretch=0.5)
    with pytest.raises(AssertionError):
        check_gaps(found_gaps(oracle, max_steps=300), oracle.gap().detach(), amortization_gap(OBLIQUE, stretch=0.5))


def test_an_evaluation_on_the_noise_it_was_fitted_to_is_caught(monkeypatch):
    """With one pair of fixed noise for steps and evaluation alike, the local ELBO climbs above log p(x)."""
    pair = torch.tensor([[[0.3, -0.2]], [[-0.3, 0.2]]], dtype=torch.float64)

    def fixed(target, count):
        return pair[:1].expand(count, *target.loc.shape) if count == 1 else pair.repeat(count // 2, DATA, 1)

    monkeypatch.setattr(gaps, "_noise", fixed)
    oracle = linear(OBLIQUE)
    with pytest.raises(AssertionError):
        check_gaps(found_gaps(oracle, num_particles=2, max_steps=150), oracle.gap().detach(), amortization_gap(OBLIQUE))


def test_too_few_steps_are_reported():
    found = found_gaps(linear(OBLIQUE, shift=2.0), max_steps=20, num_evaluation=50)
    assert not found.converged.any()
    assert found.steps.unique().tolist() == [20]
    assert found.approximation.mean() > linear(OBLIQUE).gap()


def test_several_sites_are_one_latent():
    """The hierarchy is linear and Gaussian: log p(x) is known, and its posterior is not diagonal."""
    toy = hierarchy(1)
    theta = toy.theta.item()
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    log_evidence = torch.distributions.Normal(0.0, math.sqrt(theta**2 + 1 + NOISE**2)).log_prob(x)
    precision = torch.tensor([[1 + theta**2, -theta], [-theta, 1 + 1 / NOISE**2]], dtype=torch.float64)
    truth = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    found = inference_gaps(Module(toy), x, log_evidence)
    assert_mean(found.approximation, truth)


class Banana(nn.Module):
    """x ~ N(z₁² + z₂, 0.3²): a posterior that no normal fits."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] ** 2 + z[..., 1], 0.3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.stack([0 * x, x], -1), 0.5).to_event(1))

    def log_evidence(self, x):
        grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
        log_z1 = -0.5 * grid**2 - 0.5 * math.log(2 * math.pi)
        log_x = torch.distributions.Normal(grid**2, math.sqrt(1 + 0.3**2)).log_prob(x[:, None])
        return (log_z1 + log_x).logsumexp(1) + math.log(16 / 2000)


def test_a_bent_posterior_by_quadrature():
    program, x = Banana(), torch.linspace(-1.0, 0.2, 30, dtype=torch.float64)
    diagonal, flow = (inference_gaps(program, x, program.log_evidence(x), family) for family in ("diagonal", "flow"))
    for found in (diagonal, flow):
        assert (found.approximation > -5 * found.local_elbo_error).all()
        assert (found.amortization > -5 * found.amortization_error).all()
    better = flow.local_elbo - diagonal.local_elbo
    assert better.mean() > 5 * better.std() / math.sqrt(len(better))
    assert flow.approximation.mean() < 0.7 * diagonal.approximation.mean()
    errors = (diagonal.amortized_elbo_error.square() + flow.amortized_elbo_error.square()).sqrt()
    assert ((diagonal.total - flow.total).abs() < 5 * errors).all()


def test_the_density_of_a_flow_is_its_jacobian():
    flow = gaps.Flow(torch.zeros(3, 4, dtype=torch.float64))
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    assert_close(flow(noise)[0], noise)  # it begins as the identity
    assert flow(noise)[1].abs().max() < 1e-10
    for parameter in flow.parameters:
        parameter += 0.7 * torch.randn_like(parameter)
    _, log_det = flow(noise)
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow(y[None])[0][0], noise[k])
        own = torch.stack([jacobian[b, :, b] for b in range(3)])
        assert_close(log_det[k], own.logdet())
        assert_close(jacobian.sum(), own.sum())  # no example reaches another


def moved_flow():
    """A flow of 3 examples in 4 dimensions away from the identity, with its noise."""
    torch.manual_seed(0)
    flow = gaps.Flow(torch.zeros(3, 4, dtype=torch.float64))
    for parameter in flow.parameters:
        parameter += 0.7 * torch.randn_like(parameter)
    return flow, torch.randn(2, 3, 4, dtype=torch.float64)


def pyros_planar(flow, y):
    log_det = flow.log_scale.sum(-1).expand(y.shape[:-1])
    for w, u, b in zip(flow.direction, flow.push, flow.offset, strict=True):
        planar = ConditionedPlanar((b[..., None], u, w))
        bent = planar(y)
        log_det = log_det + planar.log_abs_det_jacobian(y, bent)
        y = bent
    return flow.loc + flow.log_scale.exp() * y + torch.einsum("bij,kbj->kbi", flow.lower.tril(-1), y), log_det


def test_planar_layers_are_pyros():
    """Pyro's layer is the same function; it takes twice as long, and its other rounding grows with Adam's steps."""
    flow, noise = moved_flow()
    for ours, pyros in zip(flow(noise), pyros_planar(flow, noise), strict=True):
        assert_close(ours, pyros, 1e-12)


def test_a_planar_layer_without_its_constraint_is_caught(monkeypatch):
    monkeypatch.setattr(ConditionedPlanar, "u_hat", lambda self, u, w: u)
    flow, noise = moved_flow()
    assert (flow(noise)[0] - pyros_planar(flow, noise)[0]).abs().max() > 0.01


class Bounded(nn.Module):
    """z ~ LogNormal(0, 1), x ~ N(log z, σ²): in log z the linear Gaussian program, so that every figure is known."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("scale", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z.log(), NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("scale", dist.LogNormal(x / (1 + NOISE**2) + 0.5, 1 / math.sqrt(1 + NOISE**-2)))


def test_a_bounded_latent_is_transformed():
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    log_evidence = torch.distributions.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x)
    found = inference_gaps(Bounded(), x, log_evidence)
    check_gaps(found, torch.tensor(0.0), torch.tensor(0.5 * (1 + NOISE**-2) * 0.5**2))


def test_a_latent_without_event_dimensions():
    program, x = scalar_gaussian(off=0.5), torch.linspace(-2, 2, 40, dtype=torch.float64)
    found = inference_gaps(program, x, program.toy.log_evidence(x))
    assert found.approximation.abs().max() < 5 * TOLERANCE
    assert (found.amortization > 5 * found.amortization_error).all()


def test_the_local_evidence_shows_a_log_evidence_that_is_too_low():
    oracle = linear(OBLIQUE, shift=3.0)
    x = oracle.simulate(DATA, seed=101)
    found = inference_gaps(oracle, x, oracle.log_evidence(x).detach() - 0.5, max_steps=400)
    assert found.approximation.mean() < 0
    assert_mean(found.local_evidence - 0.5 - found.log_evidence, 0.0)
    better = dataclasses.replace(found, log_evidence=found.local_evidence)
    assert (better.approximation > 0).all()


REFUSED = {
    "discrete": (lambda: Module(discrete(1)), {}, "a continuous latent at site 'z'"),
    "family": (lambda: linear(OBLIQUE), {"family": "flo"}, "Try 'flow'"),
    "odd": (lambda: linear(OBLIQUE), {"num_particles": 3}, "an even number of particles"),
    "evaluation": (lambda: linear(OBLIQUE), {"num_evaluation": 1}, "at least 2 particles"),
    "evidence": (lambda: linear(OBLIQUE), {"log_evidence": torch.zeros(2)}, r"log_evidence of shape \(5,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    make, options, message = REFUSED[name]
    x = torch.ones(5, dtype=torch.float64) if name == "discrete" else torch.ones(5, 3).double()
    with pytest.raises(InputError, match=message):
        inference_gaps(make(), x, **{"log_evidence": torch.zeros(5), **options})


def test_the_program_is_left_as_it_was():
    vae = VAE((4,), latent_dim=2)
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (inference_gaps(vae, x, torch.zeros(6), max_steps=60, seed=3) for _ in range(2))
    assert torch.equal(first.local_elbo, second.local_elbo)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert vae.training
