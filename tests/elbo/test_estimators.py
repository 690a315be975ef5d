"""The conformance grid of estimators: value, gradient against the exact one, by hand, and what is refused."""

import dataclasses
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from toys import NOISE, discrete, gauss_hermite, gaussian, hierarchy

from pyro_vae import VAE, InputError, elbo
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import PathDerivative, ScoreFunction, TotalDerivative
from pyro_vae.program.contexts import own_store

X = 0.4  # the example of every toy

OURS = {
    "sampled_kl": elbo.SampledKL(2),
    "analytic_kl": elbo.AnalyticKL(2),
    "stl": elbo.STL(2),
    "iwae": elbo.IWAE(2),
    "iwae_stl": elbo.IWAESTL(2),
    "dreg": elbo.DReG(2),
    "miwae": elbo.MIWAE(2, 2),
    "miwae_dreg": elbo.MIWAEDReG(2, 2),
    "piwae": elbo.PIWAE(1, 2),
    "piwae_dreg": elbo.PIWAEDReG(2, 2),
    "local_iwae": elbo.LocalIWAE(2),
    "ciwae": elbo.CIWAE(2, beta=0.3),
    "renyi": elbo.Renyi(2, alpha=0.4),
    "disarm": elbo.DisARM(2),
    "rebar": elbo.Rebar(2),
    "concrete": elbo.Concrete(2),
    "reinforce": elbo.Reinforce(2),
    "reinforce_moving_average": elbo.ReinforceMovingAverage(2),
    "vimco": elbo.VIMCO(2),
    "ovis": elbo.OVIS(2),
    "ovis_mc": elbo.OVISMonteCarlo(2, 2),
    "wake_sleep": elbo.WakeSleep(2),
    "rws": elbo.RWS(2),
    "rws_dreg": elbo.RWSDReG(2),
    "tvo": elbo.TVO(2, partitions=3),
    "beta": elbo.beta_vae(beta=1.0, num_particles=2),
}
CLOSED = ["analytic_kl", "beta"]  # no weighting: their KL is in closed form
FIXED = [n for n in OURS if OURS[n].gradient is ScoreFunction]


def repeated(batch, x=X):
    return torch.full((batch,), x, dtype=torch.float64)


def gradients(estimator, program, x, seed=0):
    """Gradients of the bound per example in every parameter: (model's, guide's)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = estimator.differentiable_loss(program.model, program.guide, x)
    parameters = [*program.model_parameters, *program.guide_parameters]
    found = [-g for g in torch.autograd.grad(loss, parameters, materialize_grads=True)]
    return found[: len(program.model_parameters)], found[len(program.model_parameters) :]


def values(estimator, program, x, seed=0):
    """Bounds per example, (B,)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return estimator.value(estimator.draw(program.model, program.guide, (x,), {}, "fixed"))


def test_the_grid_holds_every_estimator_of_the_table():
    assert set(OURS) == set(ESTIMATORS) - {"trace_elbo", "trace_mean_field_elbo"}


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("analytic_kl", "beta")])
@pytest.mark.parametrize("particles", [2, 5])
def test_value_is_log_evidence_where_the_guide_is_the_posterior(name, particles):
    """Log w is then the same whatever z, so every bound of every K is log p(x), draw by draw."""
    estimator = type(OURS[name])(particles)
    program, x = gaussian(6, off=0.0), torch.linspace(-2, 2, 6, dtype=torch.float64)
    assert_close(values(estimator, program, x), program.log_evidence(x).detach(), tolerance=1e-12)


@pytest.mark.parametrize("name", FIXED)
def test_value_is_log_evidence_where_the_discrete_guide_is_the_posterior(name):
    program, x = discrete(4, exact=True), repeated(4)
    log_joint, _ = program.log_table(x)
    assert_close(values(OURS[name], program, x), log_joint.logsumexp(-1).detach(), tolerance=1e-12)


def test_closed_kl_has_the_evidence_as_its_mean_at_the_posterior():
    program, x = gaussian(40000, off=0.0), repeated(40000)
    assert_mean(values(elbo.AnalyticKL(1), program, x), program.log_evidence(x)[0].item())


def test_bounds_are_in_order():
    """ELBO ≤ IWAE-5 ≤ IWAE-50 ≤ log p(x): one-sided, on differences of the same noise where it is the same."""
    batch = 4000
    program, x = gaussian(batch, off=0.5), repeated(batch)
    found = [values(elbo.SampledKL(50), program, x)]
    found += [values(elbo.MIWAE(5, 10), program, x), values(elbo.IWAE(50), program, x)]
    for lower, upper in itertools.pairwise(found):  # the same 50 particles in three bounds
        difference = upper - lower
        assert difference.mean() > 5 * difference.std() / math.sqrt(batch)
    gap = program.log_evidence(x).detach() - found[-1]
    assert gap.mean() > -5 * gap.std() / math.sqrt(batch)


@pytest.mark.parametrize(
    "estimator",
    [
        elbo.IWAE(1),
        *(elbo.Renyi(1, alpha=a) for a in (-1.0, 0.0, 0.5, 1.0, 3.0)),
        elbo.MIWAE(1, 1),
        elbo.CIWAE(1, beta=0.2),
    ],
    ids=str,
)
def test_single_particle_bounds_are_the_elbo_draw_by_draw(estimator):
    program, x = gaussian(50, off=0.4), torch.linspace(-2, 2, 50, dtype=torch.float64)
    assert_close(values(estimator, program, x), values(elbo.SampledKL(1), program, x), tolerance=1e-12)
    for mine, theirs in zip(gradients(estimator, program, x), gradients(elbo.SampledKL(1), program, x), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)


def test_limits_of_renyi_ciwae_and_tvo():
    program, x = gaussian(50, off=0.4), repeated(50)
    iwae, mean = values(elbo.IWAE(4), program, x), values(elbo.SampledKL(4), program, x)
    assert_close(values(elbo.Renyi(4, alpha=0.0), program, x), iwae)
    assert_close(values(elbo.Renyi(4, alpha=1.0), program, x), mean)
    assert_close(values(elbo.Renyi(4, alpha=1 - 1e-7), program, x), mean, tolerance=1e-6)
    assert_close(values(elbo.CIWAE(4, beta=0.0), program, x), iwae)
    assert_close(values(elbo.CIWAE(4, beta=1.0), program, x), mean)
    assert_close(values(elbo.TVO(4, partitions=1), program, x), mean)
    terms = some_terms(4)
    even, normalised = (estimator.weighting(terms).theta for estimator in (elbo.SampledKL(4), elbo.IWAE(4)))
    for estimator in (elbo.Renyi(4, alpha=1.0), elbo.CIWAE(4, beta=1.0), elbo.TVO(4, partitions=1), elbo.STL(4)):
        assert_close(estimator.weighting(terms).theta, even)
    for estimator in (elbo.Renyi(4, alpha=0.0), elbo.CIWAE(4, beta=0.0), elbo.MIWAE(4, 1), elbo.PIWAE(2, 2)):
        assert_close(estimator.weighting(terms).theta, normalised)


# --- the exact gradient -----------------------------------------------------------------------------------


def exact_gaussian(objective, count=80):
    """Gradient of E[objective(log w (2, ·))] over two particles, by Gauss-Hermite quadrature."""
    program, x = gaussian(1, off=0.35), repeated(1)
    nodes, log_weights = gauss_hermite(count)
    noise = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1)
    weight = (log_weights[:, None] + log_weights).exp().flatten()
    z = program.a * x + program.m + program.r.exp() * noise
    log_w = program.log_joint(x, z) - program.log_q(x, z)
    total = (weight * objective(log_w)).sum()
    return torch.autograd.grad(total, [*program.model_parameters, *program.guide_parameters])


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


OBJECTIVES = {
    "sampled_kl": lambda w: w.mean(0),
    "analytic_kl": lambda w: w.mean(0),
    "beta": lambda w: w.mean(0),
    "stl": lambda w: w.mean(0),
    "iwae": log_mean_exp,
    "dreg": log_mean_exp,
    "miwae": log_mean_exp,
    "local_iwae": log_mean_exp,
    "miwae_dreg": log_mean_exp,
    "ciwae": lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w),
    "renyi": lambda w: log_mean_exp(0.6 * w) / 0.6,
    "reinforce": lambda w: w.mean(0),
    "reinforce_moving_average": lambda w: w.mean(0),
    "vimco": log_mean_exp,
    "ovis": log_mean_exp,
    "ovis_mc": log_mean_exp,
}
DRAWS = 200_000


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_unbiased_for_its_own_bound(name):
    """STL and DReG among them, requested of Pyro since 2020 (issues 2598, 3104)."""
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    exact = exact_gaussian(OBJECTIVES[name])
    for found, truth in zip(itertools.chain(*gradients(OURS[name], program, x)), exact, strict=True):
        assert_mean(found, truth.item())


def test_the_same_test_finds_iwae_stl_biased_and_dreg_not():
    """At the sample size of the test above; DReG passes there."""
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    exact = exact_gaussian(log_mean_exp)
    found = torch.stack([*itertools.chain(*gradients(OURS["iwae_stl"], program, x))], -1)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(found, torch.stack(exact).flatten())


def test_quadrature_agrees_with_more_nodes():
    """To far below the standard errors above, which are 1e-3 and more."""
    for coarse, fine in zip(exact_gaussian(log_mean_exp, 60), exact_gaussian(log_mean_exp, 90), strict=True):
        assert abs(coarse - fine).item() < 1e-7


def exact_discrete(objective, pairs_weighted=True):
    """Gradient of the expectation over two particles, by enumeration."""
    program, x = discrete(1), repeated(1)
    log_joint, log_q = (table[0] for table in program.log_table(x))
    classes = range(len(log_q))
    total = sum(
        (log_q[i] + log_q[j]).exp() * objective(torch.stack([log_joint[i] - log_q[i], log_joint[j] - log_q[j]]))
        for i in classes
        for j in classes
    )
    return torch.autograd.grad(total, [program.theta, program.phi])


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "beta"])
def test_gradient_is_unbiased_for_discrete_latents(name):
    program, x = discrete(DRAWS), repeated(DRAWS)
    exact = exact_discrete(OBJECTIVES[name])
    for found, truth in zip(itertools.chain(*gradients(OURS[name], program, x)), exact, strict=True):
        assert_mean(found, truth[0])


@pytest.mark.parametrize("name", ["sampled_kl", "stl", "iwae", "dreg", "miwae_dreg"])
def test_gradient_is_unbiased_in_a_hierarchy(name):
    """Two latents, the second sampled given the first: dropping the score term must keep the path through the first."""
    program, x = hierarchy(1), repeated(1)
    nodes, log_weights = gauss_hermite(24)
    grid = torch.stack(torch.meshgrid(*[nodes] * 4, indexing="ij"), -1).reshape(-1, 2, 2)  # (points, particle, site)
    weight = sum(torch.meshgrid(*[log_weights] * 4, indexing="ij")).exp().flatten()
    log_w = program.log_weight(x, grid).T
    parameters = [*program.model_parameters, *program.guide_parameters]
    exact = torch.autograd.grad((weight * OBJECTIVES[name](log_w)).sum(), parameters)
    program, x = hierarchy(DRAWS), repeated(DRAWS)
    for found, truth in zip(itertools.chain(*gradients(OURS[name], program, x)), exact, strict=True):
        assert_mean(found, truth.item())


def test_losing_the_path_through_an_earlier_latent_would_be_found():
    """DReG on detached distribution parameters, as it is often written, is biased in a hierarchy."""
    found, right = by_detached_parameters("dreg", lambda log_w: log_w.softmax(0) ** 2)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(found - right, 0.0)


def test_sticking_the_landing_by_detached_parameters_is_unbiased_but_noisier():
    """Its weights are constants: what is dropped has mean zero, and the noise is that of the score term again."""
    found, right = by_detached_parameters("stl", lambda log_w: torch.full_like(log_w, 1 / len(log_w)))
    assert_mean(found - right, 0.0)
    assert found.var() > 10 * right.var()


def by_detached_parameters(name, weigh):
    """The gradient in a, (B,), with every distribution's parameters detached in log q; and the estimator's."""
    program, x = hierarchy(DRAWS), repeated(DRAWS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = Draw(program.model, program.guide, (x,), {}, 2)
    normal = torch.distributions.Normal
    sites = draw.guide_trace.nodes
    wrong_q = sum(
        normal(sites[n]["fn"].loc.detach(), sites[n]["fn"].scale.detach()).log_prob(draw.drawn[n]) for n in ("z1", "z2")
    )
    weight = weigh(draw.terms.log_weight.detach())
    (found,) = torch.autograd.grad((weight * (draw.terms.log_joint - wrong_q)).sum(), program.a)
    return found, gradients(OURS[name], program, x)[1][0]


def test_wake_sleep_follows_its_two_objectives():
    """θ: E_q ∇ log p(x, z), exact by quadrature. φ: E_p ∇ log q(z'|x'), exact since (x', z') is jointly normal."""
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    (theta,), (a, m, r) = gradients(OURS["wake_sleep"], program, x)
    assert_mean(theta, exact_gaussian(OBJECTIVES["sampled_kl"])[0].item())
    t, slope, shift, scale = (p[0].item() for p in (program.theta, program.a, program.m, program.r.exp()))
    variance_x = t**2 + NOISE**2
    # residual e = z' − a x' − m: mean −m, covariance with x' of t − a Var(x')
    assert_mean(m, -shift / scale**2)
    assert_mean(a, (t - slope * variance_x) / scale**2)
    assert_mean(r, (1 - 2 * slope * t + slope**2 * variance_x + shift**2) / scale**2 - 1)


def test_piwae_follows_its_two_objectives():
    """PIWAE(1, 2): θ follows IWAE-2, φ the ELBO."""
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    theta, phi = gradients(OURS["piwae"], program, x)
    assert_mean(theta[0], exact_gaussian(log_mean_exp)[0].item())
    for found, truth in zip(phi, exact_gaussian(OBJECTIVES["sampled_kl"])[1:], strict=True):
        assert_mean(found, truth.item())


# --- by hand, on the same noise ---------------------------------------------------------------------------


def softmax(log_w):
    weights = np.exp(log_w - log_w.max(0))
    return weights / weights.sum(0)


def by_hand(name, log_w):
    """theta, path and score weights of each estimator, (K, B), written again in numpy from the papers' formulas."""
    count = len(log_w)
    even, normalised = np.full_like(log_w, 1 / count), softmax(log_w)
    zero = np.zeros_like(log_w)
    others = np.stack([np.delete(log_w, k, 0).mean(0) for k in range(count)])
    bound = np.log(np.exp(log_w).mean(0))
    if name == "vimco":
        swapped = [np.concatenate([np.delete(log_w, k, 0), others[k : k + 1]]) for k in range(count)]
        without = np.stack([np.log(np.exp(w).mean(0)) for w in swapped])
        return normalised, zero, bound - without - normalised
    if name == "ovis":
        without = np.stack([np.log(np.exp(np.delete(log_w, k, 0)).sum(0) / count) for k in range(count)])
        return normalised, zero, bound - without - normalised
    if name == "ovis_mc":
        return ovis_by_hand(log_w)
    if name == "tvo":
        betas = OURS["tvo"].betas().numpy()
        theta, score = zero.copy(), zero.copy()
        for low, high in itertools.pairwise(betas):
            tempered = softmax(low * log_w)
            centred = log_w - (tempered * log_w).sum(0)
            theta += (high - low) * tempered * (1 + low * centred)
            score += (high - low) * tempered * ((1 - low) * centred * count / (count - 1) - 1)
        return theta, zero, score
    pair = np.concatenate([softmax(log_w[:2]), softmax(log_w[2:])]) if count == 4 else normalised
    tempered = softmax(0.6 * log_w)
    mixed = 0.3 * even + 0.7 * normalised
    of_first = np.where(np.arange(count)[:, None] < OURS["rebar"].num_particles, 0.5, 0.0) + zero
    return {
        "sampled_kl": (even, even, -even),
        "stl": (even, even, zero),
        "iwae": (normalised, normalised, -normalised),
        "local_iwae": (normalised, normalised, -normalised),
        "iwae_stl": (normalised, normalised, zero),
        "dreg": (normalised, normalised**2, zero),
        "miwae": (pair / 2, pair / 2, -pair / 2),
        "miwae_dreg": (pair / 2, pair**2 / 2, zero),
        "piwae_dreg": (normalised, pair**2 / 2, zero),
        "piwae": (normalised, even, -even),
        "ciwae": (mixed, mixed, -mixed),
        "renyi": (tempered, tempered, -tempered),
        "disarm": (even, even, -even),  # as their sampled ELBO, without a Bernoulli latent
        "concrete": (even, even, -even),
        "rebar": (of_first, of_first, zero),
        "reinforce": (even, zero, (log_w - others) / count),
        "reinforce_moving_average": (even, zero, log_w / count),
        "rws": (normalised, zero, normalised),
        "rws_dreg": (normalised, normalised - normalised**2, zero),
    }[name]


def ovis_by_hand(log_w):
    """The weights of OVIS from two particles and two replacements of each."""
    first = log_w[:2]
    weight, score = softmax(first), np.log(np.exp(first).mean(0)) - softmax(first)
    for k, s in itertools.product(range(2), range(2)):
        replaced = first.copy()
        replaced[k] = log_w[2 + s]
        score[k] -= 0.5 * (np.log(np.exp(replaced).mean(0)) - softmax(replaced)[k])
    none = np.zeros_like(first)
    return np.concatenate([weight, none]), np.zeros_like(log_w), np.concatenate([score, none])


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("analytic_kl", "beta", "wake_sleep")])
def test_gradient_equals_the_formula_by_hand(name, device):
    """Every derivative of the Gaussian toy on paper, the weights in numpy: no autograd, no torch, the same noise."""
    estimator = elbo.ReinforceMovingAverage(2) if name == "reinforce_moving_average" else OURS[name]
    batch = 40
    program = gaussian(batch, off=0.4, device=device)
    x = torch.linspace(-1.5, 1.5, batch, dtype=torch.float64, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        eps = torch.randn(estimator.total_particles, batch, dtype=torch.float64, device=device).cpu().numpy()
    found = itertools.chain(*gradients(estimator, program, x, seed=3))
    theta, a, m, r = (p.detach().cpu().numpy() for p in (program.theta, program.a, program.m, program.r))
    data, scale = x.cpu().numpy(), np.exp(r)
    z = a * data + m + scale * eps
    residual = data - theta * z
    log_p = -math.log(2 * math.pi) - math.log(NOISE) - 0.5 * z**2 - 0.5 * (residual / NOISE) ** 2
    log_q = -0.5 * math.log(2 * math.pi) - r - 0.5 * eps**2
    weight_theta, weight_path, weight_score = by_hand(name, log_p - log_q)
    dz = -z + theta * residual / NOISE**2 + eps / scale  # ∂ log w / ∂z at fixed parameters
    expected = [
        (weight_theta * z * residual / NOISE**2).sum(0),
        (weight_path * dz * data + weight_score * eps / scale * data).sum(0),
        (weight_path * dz + weight_score * eps / scale).sum(0),
        (weight_path * dz * scale * eps + weight_score * (eps**2 - 1)).sum(0),
    ]
    for value, reference in zip(found, expected, strict=True):
        assert_close(value.cpu(), torch.from_numpy(reference))


def value_by_hand(name, log_w):
    """The value of each estimator, (B,), in numpy."""
    bound = np.log(np.exp(log_w).mean(0))
    mean = log_w.mean(0)
    if name == "tvo":
        betas = OURS["tvo"].betas().numpy()
        return sum(
            (high - low) * (softmax(low * log_w) * log_w).sum(0) for low, high in itertools.pairwise(betas.tolist())
        )
    if name == "ovis_mc":
        return np.log(np.exp(log_w[:2]).mean(0))
    if name == "rebar":
        return log_w[:2].mean(0)
    if name in ("miwae", "miwae_dreg"):
        return 0.5 * (np.log(np.exp(log_w[:2]).mean(0)) + np.log(np.exp(log_w[2:]).mean(0)))
    importance = {"iwae", "iwae_stl", "local_iwae", "dreg", "piwae", "piwae_dreg", "vimco", "ovis", "rws", "rws_dreg"}
    special = {"ciwae": 0.3 * mean + 0.7 * bound, "renyi": np.log(np.exp(0.6 * log_w).mean(0)) / 0.6}
    return special.get(name, bound if name in importance else mean)


def some_terms(particles=2, batch=7, shift=0.0):
    """Terms of no program, far from constant."""
    noise = torch.randn(3, particles, batch, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Terms(noise[0] + shift, noise[1], noise[2])


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("analytic_kl", "beta")])
def test_value_equals_the_formula_by_hand(name):
    terms = some_terms(OURS[name].total_particles)
    found = OURS[name].weighting(terms).value
    assert_close(found, torch.from_numpy(value_by_hand(name, terms.log_weight.numpy())))


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("analytic_kl", "beta")])
@pytest.mark.parametrize("shift", [-1e5, 1e5])
def test_log_weights_of_the_size_of_an_image_neither_overflow_nor_underflow(name, shift):
    """A constant in log p(x|z) shifts the value by that constant, and no weight but that of a fixed baseline."""
    plain, moved = (OURS[name].weighting(some_terms(OURS[name].total_particles, shift=c)) for c in (0.0, shift))
    assert_close(moved.value - shift, plain.value, tolerance=1e-8)
    for part in ("theta", "path", "score"):
        if getattr(plain, part, None) is not None and not (name == "reinforce_moving_average" and part == "score"):
            assert_close(getattr(moved, part), getattr(plain, part), tolerance=1e-8)


@pytest.mark.parametrize("make", [gaussian, hierarchy], ids=["one latent", "two latents"])
@pytest.mark.parametrize(
    "name", [n for n in OURS if OURS[n].gradient in (TotalDerivative, PathDerivative) and n not in CLOSED]
)
def test_every_class_of_gradient_equals_its_three_terms(name, make):
    """The gradient assembled from three separate terms equals that of the weighting's own class."""
    program, x = make(20), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    estimator, parameters = OURS[name], [*program.model_parameters, *program.guide_parameters]
    found = []
    for latents in (None, "leaves"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draw = estimator.draw(program.model, program.guide, (x,), {}, latents)
        weights = estimator.weighting(draw.terms.detach())
        weights = weights.three_terms() if latents else weights
        found.append(torch.autograd.grad(weights.surrogate(draw, draw.terms), parameters))
    for short, whole in zip(*found, strict=True):
        assert_close(short, whole)


def test_analytic_kl_equals_the_formula_by_hand():
    batch = 40
    program, x = gaussian(batch, off=0.4), torch.linspace(-1.5, 1.5, batch, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        eps = torch.randn(2, batch, dtype=torch.float64)
    theta, a, m, r = (p.detach() for p in (program.theta, program.a, program.m, program.r))
    mu, scale = a * x + m, r.exp()
    slope = theta * (x - theta * (mu + scale * eps)) / NOISE**2
    expected_m = slope.mean(0) - mu
    expected_r = (slope * scale * eps).mean(0) + 1 - scale**2
    _, (_, found_m, found_r) = gradients(elbo.AnalyticKL(2), program, x, seed=3)
    assert_close(found_m, expected_m)
    assert_close(found_r, expected_r)


def test_beta_weights_the_kl_and_free_bits_stop_its_gradient():
    program, x = gaussian(30, off=0.4), torch.linspace(-1.5, 1.5, 30, dtype=torch.float64)
    mu, scale = (program.a * x + program.m).detach(), program.r.exp().detach()
    kl = 0.5 * (mu**2 + scale**2 - 1 - 2 * scale.log())
    plain = values(elbo.AnalyticKL(2), program, x)
    assert_close(values(elbo.beta_vae(beta=3.0, num_particles=2), program, x), plain - 2 * kl)
    limit = kl.median().item()
    free = values(elbo.beta_vae(beta=1.0, num_particles=2, free_bits=limit), program, x)
    assert_close(free, plain + kl - kl.clamp(min=limit))
    sampled = elbo.Weighted(elbo.SampledKL(2), beta=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        terms = Draw(program.model, program.guide, (x,), {}, 2, "fixed").terms
    expected = (terms.log_px_z + 0.5 * (terms.log_pz - terms.log_qz)).mean(0)
    assert_close(values(sampled, program, x), expected.detach())


def chain(batch):
    """Two latents in one order in model and guide, so that the closed form holds: (model, guide, parameters)."""
    a, b, c = (torch.full((batch,), v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.4, -0.1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0))
            z2 = pyro.sample("z2", dist.Normal(0.8 * z1, 1.0))
            pyro.sample("x", dist.Normal(z2, NOISE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(a * x, 0.6))
            pyro.sample("z2", dist.Normal(b * z1 + c, 0.8))

    return model, guide, [a, b, c]


def test_closed_kls_of_two_latents():
    """The second depends on the sample of the first; free bits apply to each site."""
    x = torch.linspace(-1.5, 1.5, 30, dtype=torch.float64)
    model, guide, parameters = chain(30)
    found = []
    for estimator in (elbo.AnalyticKL(3), TraceMeanField_ELBO(3, max_plate_nesting=1, vectorize_particles=True)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = estimator.differentiable_loss(model, guide, x)
        loss = loss if isinstance(loss, torch.Tensor) else loss[0]
        found.append((loss.detach(), torch.autograd.grad(loss, parameters)))
    assert_close(found[0][0], found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert_close(mine, theirs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = elbo.AnalyticKL(3).draw(model, guide, (x,), {})
    normal = torch.distributions.Normal
    a, b, c = parameters
    z1 = draw.drawn["z1"]
    kl1 = torch.distributions.kl_divergence(normal(a * x, 0.6), normal(0.0, 1.0)).expand(3, 30)
    kl2 = torch.distributions.kl_divergence(normal(b * z1 + c, 0.8), normal(0.8 * z1, 1.0))
    limit = kl1.median().item()
    expected = (draw.terms.log_px_z - kl1.clamp(min=limit) - kl2.clamp(min=limit)).mean(0)
    assert_close(elbo.AnalyticKL(3, free_bits=limit).value(draw).detach(), expected.detach())


def test_the_running_baseline_moves_as_its_formula_says():
    """From 0, after the step that used it, by 1 − d of the mean over examples and particles; the next step uses it."""
    estimator = elbo.ReinforceMovingAverage(2, decay=0.75)
    program, x = gaussian(20, off=0.4), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    baseline = 0.0
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            draw = estimator.draw(program.model, program.guide, (x,), {})
        terms = draw.terms.detach()
        assert_close(estimator.weighting(terms).score, (terms.log_weight - baseline) / 2)
        found = torch.autograd.grad(estimator.of_draw(draw).surrogate, program.m)[0]
        q = torch.distributions.Normal((program.a * x + program.m).detach(), program.r.exp().detach())
        slope = (draw.drawn["z"] - q.mean) / q.variance
        assert_close(found, ((terms.log_weight - baseline) / 2 * slope).sum(0))
        baseline = 0.75 * baseline + 0.25 * terms.log_weight.mean().item()
        assert float(estimator.state_dict()["baseline"]) == pytest.approx(baseline, rel=1e-12)
    other = elbo.ReinforceMovingAverage(2)
    other.load_state_dict(estimator.state_dict())
    assert other.average.mean == estimator.average.mean


def test_a_weighting_of_another_class_than_the_gradient_is_refused():
    """Latents are sampled for the class that ``gradient`` names: at fixed ones a total derivative has no path."""

    @dataclasses.dataclass(frozen=True)
    class Mixed(elbo.IWAE):
        gradient = ScoreFunction

        def weighting(self, terms):
            return TotalDerivative.of(terms.log_weight.mean(0), terms.log_weight.softmax(0))

    program = gaussian(3)
    with pytest.raises(TypeError, match=r"Mixed\.weighting returned TotalDerivative where gradient = ScoreFunction"):
        Mixed(2).differentiable_loss(program.model, program.guide, repeated(3))


def test_a_score_function_cannot_be_made_of_one_weight():
    """The weight of its score term does not follow from that of log w; without one, φ would have no gradient."""

    class NoGuide(elbo.IWAE):
        gradient = ScoreFunction

    program = gaussian(3)
    with pytest.raises(TypeError, match=r"ScoreFunction\(value, theta, score\)"):
        NoGuide(2).differentiable_loss(program.model, program.guide, repeated(3))


@pytest.mark.parametrize("name", [n for n in OURS if OURS[n].gradient is TotalDerivative and n not in CLOSED])
def test_weights_of_a_total_derivative_are_the_derivative_of_the_value(name):
    """By autograd through the value, on the same noise, without the estimator's weights."""
    program, x = gaussian(20, off=0.4), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    by_autograd = elbo.ByAutograd(OURS[name])
    assert by_autograd.total_particles == OURS[name].total_particles
    assert_close(values(by_autograd, program, x), values(OURS[name], program, x))
    for mine, theirs in zip(gradients(OURS[name], program, x), gradients(by_autograd, program, x), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)


def test_partitions_of_the_tvo_are_log_uniform():
    assert elbo.TVO(partitions=1).betas().tolist() == [0.0, 1.0]
    assert elbo.TVO(partitions=2, first_beta=0.3).betas().tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert elbo.TVO(partitions=3, first_beta=0.04).betas().tolist() == pytest.approx([0.0, 0.04, 0.2, 1.0])


def test_bounds_of_another_number_than_particles():
    """MIWAE and PIWAE at K = 3, M = 2: the first three particles are one bound, the last three the other."""
    terms = some_terms(6)
    log_w = terms.log_weight.numpy()
    weights = np.concatenate([softmax(log_w[:3]), softmax(log_w[3:])]) / 2
    both = 0.5 * (np.log(np.exp(log_w[:3]).mean(0)) + np.log(np.exp(log_w[3:]).mean(0)))
    miwae, piwae = elbo.MIWAE(3, 2).weighting(terms).three_terms(), elbo.PIWAE(3, 2).weighting(terms)
    assert_close(miwae.value, torch.from_numpy(both))
    assert_close(piwae.value, torch.from_numpy(np.log(np.exp(log_w).mean(0))))
    assert_close(piwae.theta, torch.from_numpy(softmax(log_w)))
    for found in (miwae.theta, miwae.path, -miwae.score, piwae.path, -piwae.score):
        assert_close(found, torch.from_numpy(weights))


@pytest.mark.parametrize("name", ["wake_sleep", "rws"])
def test_the_sleep_phase_passes_on_the_arguments_of_the_program(name):
    program, x = gaussian(4, off=0.4), repeated(4)
    seen = []

    def model(x, shift, *, scale):
        seen.append((shift, scale))
        program.model(x)

    def guide(x, shift, *, scale):
        seen.append((shift, scale))
        program.guide(x)

    estimator = elbo.RWS(2, sleep_phi=1.0) if name == "rws" else OURS[name]
    estimator.loss_and_grads(model, guide, x, 3.0, scale=2.0)
    seen.clear()  # of the trial of particles, at the first use
    estimator.loss_and_grads(model, guide, x, 3.0, scale=2.0)
    assert seen == [(3.0, 2.0)] * 4


def test_reweighted_wake_sleep_weights_its_two_phases():
    """φ: a times the wake phase's gradient and b times the sleep phase's, each to the last digit."""
    program, x = gaussian(20, off=0.4), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    wake = gradients(elbo.RWS(3), program, x)
    sleep = gradients(elbo.RWS(3, wake_phi=0.0, sleep_phi=1.0), program, x)
    mixed = gradients(elbo.RWS(3, wake_phi=0.3, sleep_phi=0.7), program, x)
    assert_close(mixed[0][0], wake[0][0])
    assert_close(sleep[0][0], wake[0][0])
    for both, a, b in zip(mixed[1], wake[1], sleep[1], strict=True):
        assert_close(both, 0.3 * a + 0.7 * b)
    wake_sleep = gradients(elbo.WakeSleep(3), program, x)
    for a, b in zip(sleep[1], wake_sleep[1], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("inner", ["sampled_kl", "stl", "iwae", "miwae", "ciwae", "renyi"])
def test_weight_one_changes_nothing_and_another_is_the_gradient_of_its_value(inner):
    program, x = gaussian(20, off=0.4), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    whole = elbo.Weighted(OURS[inner], beta=1.0)
    for part in ("value", "theta"):
        terms = some_terms(OURS[inner].total_particles)
        assert_close(*(getattr(estimator.weighting(terms), part) for estimator in (whole, OURS[inner])))
    for mine, theirs in zip(gradients(whole, program, x), gradients(OURS[inner], program, x), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)
    if inner != "stl":  # its surrogate is not its value
        weighted = elbo.Weighted(OURS[inner], beta=0.5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draw = weighted.draw(program.model, program.guide, (x,), {})
        value = weighted.estimator.weighting(draw.terms).value
        direct = torch.autograd.grad(value.sum(), program.guide_parameters)
        for a, b in zip(gradients(weighted, program, x)[1], direct, strict=True):
            assert_close(a, b)


# --- variance ---------------------------------------------------------------------------------------------


def test_stl_has_no_variance_at_the_posterior_and_the_elbo_has():
    program, x = gaussian(200, off=0.0), repeated(200)
    for gradient in gradients(OURS["stl"], program, x)[1]:
        assert gradient.abs().max() < 1e-12
    assert gradients(OURS["sampled_kl"], program, x)[1][1].std() > 0.1


def test_signal_to_noise_of_iwae_falls_with_k_and_of_dreg_does_not():
    """Rainforth et al.: the φ-gradient's |mean| / deviation falls as 1/√K for IWAE. Here K = 1 against 100."""
    program, x = gaussian(20_000, off=0.35), repeated(20_000)

    def ratio(estimator):
        found = gradients(estimator, program, x)[1][1]
        return (found.mean().abs() / found.std()).item()

    assert ratio(elbo.IWAE(100)) < 0.3 * ratio(elbo.IWAE(1))
    assert ratio(elbo.DReG(100)) > 0.8 * ratio(elbo.DReG(1))


# --- any program ------------------------------------------------------------------------------------------


def flow_program():
    """A guide that is an affine-coupling flow, which has an inverse; and one of planar flows, which have none."""
    coupling = dist.transforms.affine_coupling(2, hidden_dims=[4])
    planar = dist.transforms.planar(2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x, transform=coupling):
        pyro.module("flow", transform)
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1).expand((len(x),))
            pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    return model, guide, (lambda x: guide(x, planar))


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("analytic_kl", "beta")])
def test_flow_guides_work(name):
    model, guide, _ = flow_program()
    with pyro.get_param_store().scope() as store:
        loss = OURS[name].loss_and_grads(model, guide, torch.linspace(-1, 1, 5))
        parameters = [p for n, p in pyro.get_param_store().named_parameters()]
    assert math.isfinite(loss)
    assert store is not None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize("name", ["stl", "iwae_stl", "dreg", "miwae_dreg", "piwae", "piwae_dreg", "rws_dreg"])
def test_flow_without_an_inverse_is_refused_where_q_must_be_scored_anywhere(name):
    model, _, planar = flow_program()
    with pyro.get_param_store().scope():
        with pytest.raises(InputError, match="a flow without an inverse"):
            OURS[name].loss_and_grads(model, planar, torch.linspace(-1, 1, 5))
        assert math.isfinite(elbo.IWAE(3).loss_and_grads(model, planar, torch.linspace(-1, 1, 5)))


PROGRAMS = {
    "linear": lambda: VAE((6,), 2, (), "gaussian:scale=0.5"),
    "mlp": lambda: VAE((3, 2), 2, (5,), "bernoulli"),
    "learned": lambda: VAE((6,), 3, (4,), "learned_gaussian"),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", OURS)
def test_vaes_train_with_every_estimator(name, program, device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = PROGRAMS[program]().to(device)
        x = torch.bernoulli(torch.full((8, *vae.event_shape), 0.5)).to(device)
        with own_store(vae):
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=OURS[name])
            before = [p.detach().clone() for p in vae.parameters()]
            losses = [svi.step(x) for _ in range(3)]
            module_loss = OURS[name](vae.model, vae.guide)(x)
            assert math.isfinite(svi.evaluate_loss(x))
    assert all(map(math.isfinite, losses))
    assert module_loss.requires_grad
    assert not any(torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize("name", OURS)
def test_the_ways_to_the_gradient_agree(name):
    """loss_and_grads, differentiable_loss and ELBOModule: one value, one gradient."""
    vae = VAE((6,), 2, (4,), "gaussian:scale=0.5").double()
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    make = type(OURS[name]) if name == "reinforce_moving_average" else None
    found = []
    for way in ("loss_and_grads", "differentiable_loss", "module"):
        estimator = make(2) if make else OURS[name]
        vae.zero_grad()
        with own_store(vae), torch.random.fork_rng():
            torch.manual_seed(1)
            if way == "loss_and_grads":
                loss = estimator.loss_and_grads(vae.model, vae.guide, x)
            else:
                function = estimator(vae.model, vae.guide) if way == "module" else None
                tensor = function(x) if function else estimator.differentiable_loss(vae.model, vae.guide, x)
                tensor.backward()
                loss = tensor.item()
        found.append((loss, [p.grad.clone() for p in vae.parameters() if p.grad is not None]))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        for a, b in zip(grads, found[0][1], strict=True):
            assert_close(a, b)


@pytest.mark.parametrize(("ours", "pyros"), [("sampled_kl", Trace_ELBO), ("analytic_kl", TraceMeanField_ELBO)])
@pytest.mark.parametrize("particles", [1, 4])
def test_aevbs_two_equal_pyros_two(ours, pyros, particles):
    vae = VAE((6,), 2, (4,), "gaussian:scale=0.5").double()
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for estimator in (type(OURS[ours])(particles), pyros(particles, max_plate_nesting=1, vectorize_particles=True)):
        vae.zero_grad()
        with own_store(vae), torch.random.fork_rng():
            torch.manual_seed(1)
            found.append(
                (estimator.loss_and_grads(vae.model, vae.guide, x), [p.grad.clone() for p in vae.parameters()])
            )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert_close(a, b)


# --- scales -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_shared_scale_multiplies_loss_and_gradient_and_nothing_else(name):
    """A subsampled plate: Pyro's RenyiELBO tempers the weights here; dividing first leaves the bound alone."""
    base, x = gaussian(8, off=0.4), repeated(8)
    scaled = gaussian(8, off=0.4)
    model, guide = pyro.poutine.scale(scaled.model, scale=7.5), pyro.poutine.scale(scaled.guide, scale=7.5)
    scaled_program = type("Scaled", (), {"model": staticmethod(model), "guide": staticmethod(guide)})()
    scaled_program.model_parameters, scaled_program.guide_parameters = scaled.model_parameters, scaled.guide_parameters
    if name == "reinforce_moving_average":
        makes = [elbo.ReinforceMovingAverage(2), elbo.ReinforceMovingAverage(2)]
    else:
        makes = [OURS[name], OURS[name]]
    for found, expected in zip(gradients(makes[0], scaled_program, x), gradients(makes[1], base, x), strict=True):
        for a, b in zip(found, expected, strict=True):
            assert_close(a, 7.5 * b)
    for way in ("loss", "loss_and_grads", "differentiable_loss"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = torch.as_tensor(getattr(OURS[name], way)(model, guide, x), dtype=torch.float64).item()
        assert loss == pytest.approx(-7.5 * values(OURS[name], base, x).sum().item(), rel=1e-12)


def test_a_subsampled_plate_is_such_a_scale():
    program = gaussian(4, off=0.4)

    def model(x):
        with pyro.plate("data", 40, subsample_size=4, subsample=torch.arange(4), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(program.theta * z, NOISE), obs=x)

    def guide(x):
        with pyro.plate("data", 40, subsample_size=4, subsample=torch.arange(4), dim=-1):
            pyro.sample("z", dist.Normal(program.a * x + program.m, program.r.exp()))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = elbo.IWAE(3).loss(model, guide, repeated(4))
    assert loss == pytest.approx(-10 * values(elbo.IWAE(3), program, repeated(4)).sum().item(), rel=1e-12)


# --- what is refused --------------------------------------------------------------------------------------


def outside_the_plate(x):
    shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(shared, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("shared", dist.Normal(0.0, 1.0))


def enumerated(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Categorical(logits=torch.zeros(3)), infer={"enumerate": "parallel"})


def student_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.StudentT(3.0, torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def latents_alone(x, *names):
    with pyro.plate("data", len(x), dim=-1):
        for name in names:
            pyro.sample(name, dist.Normal(torch.zeros_like(x), 1.0))


def latent_and_data(x, name):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample(name, dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_plates(x):
    with pyro.plate("more", 2, dim=-3), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))


def one_latent(x):
    with pyro.plate("one", 1, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x[:1]), 1.0))


def two_sizes(x):
    with pyro.plate("one", 1, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:1]), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def auxiliary_guide(program):
    """The Gaussian guide in two sites: an auxiliary one, and z as a function of it, as automatic guides have it."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(program.a * x + program.m, program.r.exp()), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u))

    return guide


@pytest.mark.parametrize("name", [n for n in OURS if n not in (*CLOSED, "wake_sleep")])
def test_an_auxiliary_latent_of_the_guide_counts_in_q_alone(name):
    program, x = gaussian(20, off=0.4), torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)
    split = gaussian(20, off=0.4)
    parts = type("Split", (), {"model": staticmethod(split.model), "guide": staticmethod(auxiliary_guide(split))})()
    parts.model_parameters, parts.guide_parameters = split.model_parameters, split.guide_parameters
    assert_close(values(OURS[name], parts, x), values(OURS[name], program, x))
    estimators = [elbo.ReinforceMovingAverage(2) if name == "reinforce_moving_average" else OURS[name] for _ in "ab"]
    for mine, theirs in zip(gradients(estimators[0], parts, x), gradients(estimators[1], program, x), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)


def test_a_dimension_that_no_plate_declares_is_refused():
    """It would multiply every bound."""
    program = gaussian(3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z.expand(4, 2, 3), 1.0), obs=x)

    with pytest.raises(InputError, match=r"that broadcasts over particles, .* got site 'x' with"):
        elbo.IWAE(2).loss(model, program.guide, repeated(3))
    with pyro.validation_enabled(False):
        for estimator in (elbo.SampledKL(1), elbo.SampledKL(2, vectorize_particles=False)):
            with pytest.raises(InputError, match=r"whose dimension -3 no plate declares\. Try \.to_event"):
                estimator.loss(model, program.guide, repeated(3))


REFUSED = {
    "one site scaled": (
        "iwae",
        lambda: (gaussian(3).model, pyro.poutine.scale(gaussian(3).guide, scale=0.5)),
        "one scale for all sites, or one for all latents .* got scales that differ",
    ),
    "enumerated": (
        "reinforce",
        lambda: (enumerated, lambda x: None),
        "a guide that has site 'z', which the model enumer",
    ),
    "no closed KL": ("analytic_kl", lambda: (student_model, gaussian(3).guide), "a KL in closed form at site 'z'"),
    "more in the guide": (
        "iwae",
        lambda: (gaussian(3).model, hierarchy(3).guide),
        r"got model \['z'\], guide \['z1', 'z2'\]",
    ),
    "one more in the guide": (
        "iwae",
        lambda: (lambda x: latent_and_data(x, "z1"), lambda x: latents_alone(x, "z1", "z2")),
        r"got model \['z1'\], guide \['z1', 'z2'\]",
    ),
    "one more in the model": (
        "iwae",
        lambda: (hierarchy(3).model, lambda x: latents_alone(x, "z1")),
        r"got model \['z1', 'z2'\], guide \['z1'\]",
    ),
    "auxiliary": ("analytic_kl", lambda: (gaussian(3).model, auxiliary_guide(gaussian(3))), "none for Normal and noth"),
    "latents differ": (
        "iwae",
        lambda: (hierarchy(3).model, gaussian(3).guide),
        "the same latent sites in model and guide",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_program_that_cannot_be_used_is_refused(what):
    name, make, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        OURS[name].loss_and_grads(*make(), repeated(3))


BAD = {
    "no particle": (lambda: elbo.IWAE(0), "num_particles that is a whole number of at least 1; got 0"),
    "half a particle": (lambda: elbo.STL(1.5), "got 1.5"),
    "no baseline": (lambda: elbo.Reinforce(1), "at least 2, one beside each"),
    "no baseline, vimco": (lambda: elbo.VIMCO(1), "at least 2"),
    "beta of ciwae": (lambda: elbo.CIWAE(5, beta=1.5), "a beta from 0 to 1; got 1.5"),
    "alpha": (lambda: elbo.Renyi(5, alpha=math.nan), "a finite alpha; got nan"),
    "decay": (lambda: elbo.ReinforceMovingAverage(decay=1.0), "a decay of at least 0 and below 1"),
    "weights": (lambda: elbo.RWS(5, wake_phi=0.0), "not both 0"),
    "partitions": (lambda: elbo.TVO(5, partitions=0), "partitions that is a whole number"),
    "first beta": (lambda: elbo.TVO(5, first_beta=1.0), "a first_beta between 0 and 1"),
    "gamma": (lambda: elbo.OVIS(5, gamma=1.5), "a gamma from 0 to 1; got 1.5"),
    "one particle, ovis": (lambda: elbo.OVIS(1), "at least 2"),
    "no replacement": (lambda: elbo.OVISMonteCarlo(5, 0), "num_auxiliary that is a whole number of at least 1; got 0"),
    "weights of rws_dreg": (lambda: elbo.RWSDReG(5, wake_phi=0.0), "not both 0"),
    "weighted miwae_dreg": (lambda: elbo.Weighted(elbo.MIWAEDReG(5), beta=0.5), "whose KL can be weighted"),
    "free bits": (lambda: elbo.AnalyticKL(free_bits=-1.0), "free_bits of at least 0"),
    "weighted dreg": (lambda: elbo.Weighted(elbo.DReG(5), beta=0.5), "whose KL can be weighted"),
    "weighted twice": (lambda: elbo.beta_vae(estimator="vimco", num_particles=2), "whose KL can be weighted"),
    "weighted elbo of Pyro": (
        lambda: elbo.beta_vae(estimator="trace_elbo"),
        "whose KL can be weighted, one of .*; got Trace_ELBO. Try sampled_kl",
    ),
    "weight in a weight": (
        lambda: elbo.Weighted(elbo.beta_vae(), beta=0.5),
        "one weight of the KL; got another inside",
    ),
    "negative beta": (lambda: elbo.beta_vae(beta=-1.0), "beta above 0; got -1.0"),
    "no beta": (lambda: elbo.beta_vae(beta=0.0), "beta above 0; got 0.0"),
    "negative weight": (lambda: elbo.RWS(5, wake_phi=-1.0, sleep_phi=2.0), "weights of at least 0"),
    "one particle, rws": (lambda: elbo.RWS(1), r"a single particle teaches the guide nothing.*Try num_particles=5"),
    "one particle, rws_dreg": (lambda: elbo.RWSDReG(1), "several particles, or a sleep phase"),
    "one particle, vimco": (lambda: elbo.VIMCO(1), "at least 2"),
    "one particle, tvo": (lambda: elbo.TVO(1), "num_particles of at least 2; got 1"),
    "free bits elsewhere": (
        lambda: elbo.beta_vae(estimator="stl", free_bits=1.0),
        "arguments that estimator stl takes.*free_bits",
    ),
}


@pytest.mark.parametrize("kind", [elbo.RWS, elbo.RWSDReG])
def test_one_particle_needs_a_sleep_phase(kind):
    """φ's weight in the wake phase is the same for any particle: 1 for rws, mean gradient 0; 0 for rws_dreg."""
    weights = kind(1, sleep_phi=1.0).weighting(Terms(*torch.randn(3, 1, 6, dtype=torch.float64)))
    found = weights.score if kind is elbo.RWS else weights.path
    assert torch.equal(found, torch.full_like(found, 1.0 if kind is elbo.RWS else 0.0))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"], ids=repr)
@pytest.mark.parametrize("name", elbo.ESTIMATORS)
def test_bad_count_is_refused(name, count):
    with pytest.raises(InputError, match=f"num_particles that is a whole number of at least 1; got {count!r}"):
        elbo.ESTIMATORS[name](num_particles=count)
    if "miwae" in name or "piwae" in name:
        with pytest.raises(InputError, match=f"num_bounds that is a whole number of at least 1; got {count!r}"):
            elbo.ESTIMATORS[name](num_bounds=count)


@pytest.mark.parametrize("name", BAD)
def test_bad_argument_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Squared(elbo.IWAE):
    """DReG written again as a relative of IWAE, which may weight its KL; nothing here says that DReG may."""

    gradient = elbo.ThreeTerms

    def weighting(self, terms):
        return elbo.DReG(self.num_particles).weighting(terms)


@dataclasses.dataclass(frozen=True)
class Counting(elbo.IWAE):
    """An estimator with a state, whose KL may be weighted."""

    kl_weightable = True
    state: dict = dataclasses.field(default_factory=dict, compare=False)

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state.update(state)


def test_whether_a_kl_may_be_weighted_is_not_inherited():
    with pytest.raises(InputError, match=r"an estimator whose KL can be weighted.*got Squared"):
        elbo.Weighted(Squared(3), beta=0.5)
    assert elbo.Weighted(Counting(3), beta=0.5).total_particles == 3


def test_exactly_these_may_weight_their_kl():
    weightable = {"sampled_kl", "analytic_kl", "stl", "iwae", "miwae", "local_iwae", "ciwae", "renyi"}
    assert {name for name, estimator in OURS.items() if estimator.kl_weightable} == weightable


def test_the_state_inside_a_weight_is_kept():
    """A checkpoint holds it, and a resumed run gets it back."""
    whole, other = (elbo.Weighted(Counting(3), beta=0.5) for _ in "ab")
    whole.estimator.state["steps"] = 4.0
    assert whole.state_dict() == {"steps": 4.0}
    other.load_state_dict(whole.state_dict())
    assert other.estimator.state == {"steps": 4.0}


def test_estimators_are_frozen_values():
    assert elbo.DReG(5) == elbo.DReG(5)
    assert elbo.DReG(5) != elbo.DReG(6)
    assert elbo.ReinforceMovingAverage(5) == elbo.ReinforceMovingAverage(5)  # its state is no part of its value
    assert len({elbo.IWAE(5), elbo.IWAE(5), elbo.IWAESTL(5)}) == 2
    with pytest.raises(AttributeError):
        elbo.DReG(5).num_particles = 6
    assert repr(elbo.CIWAE(3, beta=0.1)) == "CIWAE(num_particles=3, beta=0.1)"
    for estimator in OURS.values():
        assert isinstance(estimator, Estimator)


def test_weights_by_hand_at_two_particles():
    """K = 2, B = 1, w = (1, 3): w̃ = 1/4 and 3/4, bound log 2."""
    zero = torch.zeros(2, 1)
    terms = Terms(torch.tensor([[0.0], [math.log(3.0)]]), zero, zero)
    iwae, dreg, vimco = (estimator.weighting(terms) for estimator in (elbo.IWAE(2), elbo.DReG(2), elbo.VIMCO(2)))
    assert iwae.value.item() == pytest.approx(math.log(2.0))
    assert iwae.theta.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert dreg.path.flatten().tolist() == pytest.approx([1 / 16, 9 / 16])
    # particle 1 replaced by the other (3): log 3; particle 2 by 1: log 1
    expected = [math.log(2) - math.log(3) - 0.25, math.log(2) - 0.75]
    assert vimco.score.flatten().tolist() == pytest.approx(expected, rel=1e-5)
