"""DisARM, REBAR and the concrete relaxation: exact over their uniform noise, in float64, and what they refuse.

The noise is given to the estimators' own code, an example for each node of a quadrature. DisARM is constant between the
logits' thresholds, so that cells are exact; REBAR and the concrete objective are smooth on either side of them, and the
trapezoidal rule in logit(u) converges to rounding. Programs of other shapes: ``test_bernoulli_programs.py``.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bernoulli_toys import (
    OURS,
    X,
    cells,
    coin,
    exact_coin,
    expected,
    f64,
    given,
    gradients,
    log_mass,
    normal,
    product,
    smooth,
)
from checks import assert_close, assert_mean
from torch import Tensor
from toys import seeded

from pyro_vae import elbo
from pyro_vae.elbo import disarm as disarms
from pyro_vae.program import bernoulli, relaxed


def disarm_rule(a):
    return cells(f64(a).sigmoid().item(), f64(-a).sigmoid().item())


@pytest.mark.parametrize("a", [0.8, -2.5, 0.0, 6.0])
def test_disarm_of_a_coin_is_exact(a, monkeypatch):
    nodes, weights = disarm_rule(a)
    given(monkeypatch, nodes)
    assert_close(expected(elbo.DisARM(2), nodes, weights, a), exact_coin(a))


@pytest.mark.parametrize("factor", [-1.0, 2.0, 1.0 + 1e-8])
def test_another_factor_of_the_pairs_would_be_found(factor, monkeypatch):
    nodes, weights = disarm_rule(0.8)
    plain = disarms.pair_differences
    monkeypatch.setattr(disarms, "pair_differences", lambda *args: factor * plain(*args))
    given(monkeypatch, nodes)
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(expected(elbo.DisARM(2), nodes, weights), exact_coin())


def test_arm_without_its_noise_integrated_would_have_another_weight(monkeypatch):
    """The identity holds for ARM too, whose weights are u − ½: the cells tell them apart, their sum does not."""
    nodes, weights = disarm_rule(0.8)
    given(monkeypatch, nodes)
    found = gradients(elbo.DisARM(2), coin(3), torch.full((3,), X, dtype=torch.float64))[2]
    w = [coin(1).log_w(torch.tensor([d], dtype=torch.float64)).detach() for d in (0.0, 1.0)]
    sigma = torch.tensor(0.8, dtype=torch.float64).sigmoid()
    by_hand = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    for i, u in enumerate(nodes):  # as the authors' code has it
        b1, b2 = int(u > 1 - sigma), int(u < sigma)
        by_hand[i] = 0.5 * (w[b1] - w[b2]).item() * ((1 - b1) * b2 + b1 * (1 - b2)) * (-1.0) ** b2 * sigma
    assert_close(found, by_hand)
    assert_close((weights * found).sum(), exact_coin()[2])


def rebar_rule(a):
    """u on either side of the threshold 1 − σ(a), and v."""
    below = f64(-a).sigmoid().item()
    u = [torch.cat(each) for each in zip(smooth(0.0, below), smooth(below, 1.0), strict=True)]
    nodes, weights = product(u, smooth())
    inside = (nodes > 1e-15).all(1) & (nodes < 1 - 1e-15).all(1)
    return nodes[inside], weights[inside]


def rebar_noise(nodes):
    """Noise (3, B) of hard, relaxed and given the hard; the second is not read."""
    return torch.stack([nodes[:, 0], nodes[:, 0], nodes[:, 1]])


@pytest.mark.parametrize(("temperature", "eta"), [(0.5, 1.0), (1.3, -0.6), (0.5, 0.0)])
def test_rebar_of_a_coin_is_exact(temperature, eta, monkeypatch):
    """For every λ and η: the control variate has mean zero."""
    nodes, weights = rebar_rule(0.8)
    given(monkeypatch, rebar_noise(nodes))
    assert_close(expected(elbo.Rebar(1, temperature, eta), nodes, weights), exact_coin(), tolerance=1e-9)


@pytest.mark.parametrize("planted", ["no path through the conditional", "noise of the other side"])
def test_a_wrong_conditional_would_be_found(planted, monkeypatch):
    plain = relaxed.logit_given
    wrong = {
        "no path through the conditional": lambda b, logits, v: plain(b, logits.detach(), v),
        "noise of the other side": lambda b, logits, v: plain(1 - b, logits, v),
    }
    nodes, weights = rebar_rule(0.8)
    monkeypatch.setattr(relaxed, "logit_given", wrong[planted])
    given(monkeypatch, rebar_noise(nodes))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(expected(elbo.Rebar(1), nodes, weights), exact_coin(), tolerance=1e-3)


def test_the_noise_given_a_value_gives_that_value():
    """Its density is that of u on its side of 1 − σ(α): the mean over v of a function of u, by hand."""
    v, weight = smooth()
    for logits, b in itertools.product((-3.0, 0.4, 20.0), (0.0, 1.0)):
        a, of = (torch.full_like(v, each) for each in (logits, b))
        u = relaxed.logit_given(of, a, v)
        assert ((a + u > 0) == (of > 0)).all()
        side = (-a[0]).sigmoid()
        assert_close((weight * u.sigmoid()).sum(), (1 + side) / 2 if b else side / 2)


def relaxed_objective(program, u, temperature, density="concrete"):
    """The ELBO of the relaxed coin by torch's own distributions, at s = σ(y), or by masses."""
    concrete = torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli
    y = (program.a + u.logit()) / temperature
    if density == "mass":
        return program.log_w(y.sigmoid())
    log_p, log_q = (concrete(f64(temperature), logits=each).log_prob(y) for each in (program.m, program.a))
    return normal(program.theta * y.sigmoid(), X) + log_p - log_q


@pytest.mark.parametrize("density", ["concrete", "mass"])
@pytest.mark.parametrize("temperature", [2 / 3, 0.3])
def test_concrete_follows_the_relaxed_objective_and_no_other(temperature, density, monkeypatch):
    nodes, weights = smooth()
    program, x = coin(len(nodes)), torch.full((len(nodes),), X, dtype=torch.float64)
    total = (weights * relaxed_objective(program, nodes, temperature, density)).sum()
    truth = torch.stack([each.sum() for each in torch.autograd.grad(total, program.parameters)])
    given(monkeypatch, nodes)
    estimator = elbo.Concrete(1, temperature, density)
    assert_close(expected(estimator, nodes, weights), truth)
    value = estimator.of_draw(estimator.draw(program.model, program.guide, (x,), {})).value
    assert_close((weights * value).sum(), total.detach())
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(truth, exact_coin(), tolerance=1e-2)


def test_the_bias_of_masses_falls_with_the_temperature_and_that_of_densities_stays(monkeypatch):
    nodes, weights = smooth(step=0.02)
    bias = {}
    for density, temperature in itertools.product(["mass", "concrete"], [1.0, 0.3, 0.05]):
        given(monkeypatch, nodes)
        found = expected(elbo.Concrete(1, temperature, density), nodes, weights)
        bias.setdefault(density, []).append((found - exact_coin()).norm().item())
    assert bias["mass"][0] > 3 * bias["mass"][1] > 9 * bias["mass"][2]
    assert bias["concrete"][2] > 0.5 * bias["concrete"][0]


def test_the_kl_of_the_densities_is_that_of_logistic_distributions_for_every_temperature(monkeypatch):
    """Larger than that of the Bernoulli distributions: where x says nothing the objective is below the ELBO."""
    nodes, weights = smooth()
    program, x = coin(len(nodes)), torch.full((len(nodes),), X, dtype=torch.float64)
    program.theta.data.zero_()
    found = []
    for temperature in (1.0, 0.1):
        given(monkeypatch, nodes)
        estimator = elbo.Concrete(1, temperature)
        found.append((weights * estimator.value(estimator.draw(program.model, program.guide, (x,), {}))).sum())
    assert_close(found[0], found[1])
    assert found[0] < program.bound()[0] - 0.05


# ---- two layers, with and without a continuous latent between them


@dataclass(frozen=True, eq=False)
class Layers:
    """q: d ~ Bernoulli(a), e ~ Bernoulli(c + s d + z); p: d, e ~ Bernoulli, x ~ N(θ e + d + z, 1).

    Where there is a latent between them, z ~ N(s d, 0.8²) in q and N(0, 1) in p; else z is 0.
    """

    theta: Tensor
    a: Tensor
    c: Tensor
    s: Tensor
    between: bool = False

    @property
    def parameters(self):
        return [self.theta, self.a, self.c, self.s]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(torch.full_like(x, 0.5)))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0)) if self.between else 0.0
            e = pyro.sample("e", dist.Bernoulli(torch.full_like(x, 0.3)))
            pyro.sample("x", dist.Normal(self.theta * e + d + z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=self.a))
            z = pyro.sample("z", dist.Normal(self.s * d, 0.8)) if self.between else 0.0
            pyro.sample("e", dist.Bernoulli(logits=self.c + self.s * d + z))

    def bound(self):
        """The ELBO, exactly, by enumeration and quadrature."""
        noise, weight = torch.zeros(1).double(), torch.ones(1).double()
        if self.between:
            t, w = np.polynomial.hermite_e.hermegauss(60)
            noise, weight = torch.from_numpy(t), torch.from_numpy(w / math.sqrt(2 * math.pi))
        total = 0.0
        for d, e in itertools.product([0.0, 1.0], repeat=2):
            d, e = f64(d), f64(e)
            z = self.s * d + 0.8 * noise if self.between else torch.zeros(1).double()
            log_q = log_mass(d, self.a) + log_mass(e, self.c + self.s * d + z)
            log_p = math.log(0.5) + e * math.log(0.3) + (1 - e) * math.log(0.7) + normal(self.theta * e + d + z, X)
            more = normal(0.0, z) - normal(self.s * d, z, 0.8) if self.between else 0.0
            total = total + (weight * log_q.exp() * (log_p + more - log_q)).sum()
        return total


def layers(batch, between=False):
    values = torch.tensor([0.9, 0.6, -0.5, 0.8], dtype=torch.float64)
    return Layers(*(v.expand(batch).clone().requires_grad_() for v in values), between=between)


def exact_layers(between=False):
    program = layers(1, between)
    return torch.cat(torch.autograd.grad(program.bound(), program.parameters))


@pytest.mark.parametrize("vectorize", [True, False])
def test_disarm_of_two_layers_is_exact(vectorize, monkeypatch):
    """Each layer given the one before; the noise of the later layer is shared by the chains."""
    sigma = [f64(v).sigmoid().item() for v in (0.6, -0.6, -0.5, 0.5, 0.3, -0.3)]
    nodes, weights = product(cells(*sigma[:2]), cells(*sigma[2:]))
    given(monkeypatch, nodes[:, 0], nodes[:, 1])
    x = torch.full((len(nodes),), X, dtype=torch.float64)
    found = gradients(elbo.DisARM(3, vectorize_particles=vectorize), layers(len(nodes)), x)
    assert_close(torch.stack([(weights * each).sum() for each in found]), exact_layers())


def test_chains_that_do_not_share_the_earlier_layer_would_be_found(monkeypatch):
    """As if one antithetic pair, flipped in every layer, served all of them."""
    monkeypatch.setattr(bernoulli.Antithetic, "chain", lambda self, particle: (particle % 3 > 0) * 1)
    found = seeded(gradients, elbo.DisARM(3), layers(20_000), torch.full((20_000,), X, dtype=torch.float64))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(torch.stack(found, -1), exact_layers())


@pytest.mark.parametrize("between", [False, True], ids=["bernoulli", "with a normal between"])
@pytest.mark.parametrize("name", ["disarm", "rebar"])
@pytest.mark.parametrize("vectorize", [True, False])
def test_two_layers_on_average(name, between, vectorize):
    count = 60_000
    estimator = {"disarm": elbo.DisARM(6), "rebar": elbo.Rebar(2)}[name]
    estimator = replace(estimator, vectorize_particles=vectorize)
    found = seeded(gradients, estimator, layers(count, between), torch.full((count,), X, dtype=torch.float64))
    assert_mean(torch.stack(found, -1), exact_layers(between))


def test_rebar_that_forgets_the_logits_of_the_hard_layer_would_be_found(monkeypatch):
    plain = relaxed.HardAndRelaxed.shared

    def shared(self, key, value, msg):
        return value if key == "logits" else plain(self, key, value, msg)

    monkeypatch.setattr(relaxed.HardAndRelaxed, "shared", shared)
    found = seeded(gradients, elbo.Rebar(2), layers(60_000), torch.full((60_000,), X, dtype=torch.float64))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(torch.stack(found, -1), exact_layers())


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("between", [False, True], ids=["bernoulli", "with a normal between"])
def test_particles_one_by_one_are_those_in_a_plate(name, between, monkeypatch):
    """The same noise, the same value and gradients; of the normal latent, too."""
    estimator = {"disarm": elbo.DisARM(6), "rebar": elbo.Rebar(2), "concrete": elbo.Concrete(3)}[name]
    batch, count = 5, estimator.total_particles
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, count, batch, dtype=torch.float64, generator=generator)
    normals = torch.randn(count, batch, dtype=torch.float64, generator=generator)
    x, found = torch.linspace(-1, 1, batch, dtype=torch.float64), []
    for vectorize in (True, False):
        program = layers(batch, between)
        estimator = replace(estimator, vectorize_particles=vectorize)
        seeded(gradients, estimator, program, x)  # the trials of the first use
        rows = iter([normals] if vectorize else normals)
        with monkeypatch.context() as patch:
            given(patch, *(noise if vectorize else noise.transpose(0, 1).reshape(-1, batch)))
            patch.setattr(dist.Normal, "rsample", lambda self, shape=(), rows=rows: self.loc + self.scale * next(rows))
            draw = estimator.draw(program.model, program.guide, (x,), {})
        bound = estimator.of_draw(draw)
        found.append([bound.value, *torch.autograd.grad(bound.surrogate, program.parameters)])
    for one, other in zip(*found, strict=True):
        assert_close(other.detach(), one.detach())
