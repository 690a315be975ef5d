"""The VampPrior under every estimator: the encoder's parameters have a part of their gradient through log p(z).

The reference is written by hand. An estimator says its weights a, b, c of particles; the gradient is then that of
Σ a log p(x, z) at fixed z, in θ, in the pseudo-inputs and in the encoder, of b ∇z log w · dz/dφ, and of c log q(z|x).
"""

import copy
import math

import pytest
import torch
from checks import assert_close
from families import seeded, shaken
from toys import MAKE

from pyro_vae import VAE, InputError
from pyro_vae.elbo import IWAE, RWS, SampledKL, WakeSleep
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction
from pyro_vae.program.contexts import own_store

CLOSED = ["analytic_kl", "beta"]  # refused: no KL in closed form
SLEEP = ["wake_sleep", "rws", "rws_dreg"]
WEIGHTED = [name for name in MAKE if name not in CLOSED + SLEEP]
B, Z, C = 5, 2, 3


def make(posterior="diagonal_normal"):
    parts = {"prior": f"vamp:components={C},learned_weights=true", "posterior": posterior}
    return shaken(seeded(lambda: VAE((4,), Z, (5,), "gaussian:scale=0.7", "tanh", **parts)))


def data():
    return torch.randn(B, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def log_prior(vae, z):
    """Log p(z) by hand: normals at the heads of the pseudo-inputs."""
    loc, log_scale = vae.encoder(vae.prior.pseudo_inputs).unbind(-2)
    standardized = (z.unsqueeze(-2) - loc) / log_scale.exp()
    each = (-0.5 * standardized.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
    return (each + vae.prior.logits.log_softmax(-1)).logsumexp(-1)


def terms(vae, x, z):
    return Terms(vae.decode(z).log_prob(x), log_prior(vae, z), vae.encode(x).log_prob(z))


def found(estimator, vae, x, seed=3):
    """Gradients of the bound by the estimator, by parameter."""
    vae.zero_grad()
    with own_store(vae):
        seeded(estimator.loss_and_grads, vae.model, vae.guide, x, seed=seed)
    return {name: torch.zeros_like(p) if p.grad is None else -p.grad for name, p in vae.named_parameters()}


def three_weights(estimator, now):
    """The weights a, b and c of an estimator, (K, B) each."""
    weights = estimator.weighting(now.detach())
    three = weights if isinstance(weights, ScoreFunction) or hasattr(weights, "path") else weights.three_terms()
    zero = torch.zeros_like(three.theta)
    path, score = getattr(three, "path", None), three.score
    return three.theta, zero if path is None else path, zero if score is None else score


def surrogate(estimator, vae, x, z, fixed):
    """The weighted sum of the three terms, at samples z(φ) and at the same numbers detached."""
    still = copy.deepcopy(vae).requires_grad_(False)
    a, b, c = three_weights(estimator, terms(vae, x, fixed))
    now = terms(vae, x, fixed)
    return (a * now.log_joint + b * terms(still, x, z).log_weight + c * now.log_qz).sum()


def samples(estimator, vae, x, seed=3):
    """Samples of the step with their gradient, and detached."""
    return seeded(samples_of_step, estimator, vae, x, seed=seed)


def samples_of_step(estimator, vae, x):
    """As :func:`samples`, from the generator as it stands."""
    loc, log_scale = vae.encoder(x).unbind(-2)
    z = loc + log_scale.exp() * torch.randn(estimator.total_particles, B, Z, dtype=torch.float64)
    return z, z.detach()


def by_hand(estimator, vae, x):
    return gradients(surrogate(estimator, vae, x, *samples(estimator, vae, x)), vae)


def gradients(scalar, vae):
    names, parameters = zip(*vae.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(scalar, parameters, materialize_grads=True), strict=True))


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name])


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_estimator_has_the_encoder_s_part_through_the_prior(name):
    estimator, vae, x = MAKE[name](), make(), data()
    ours = found(estimator, vae, x)
    assert_same(ours, by_hand(MAKE[name](), vae, x))
    assert ours["prior.pseudo_inputs"].abs().max() > 1e-6


@pytest.mark.parametrize("estimator", [SampledKL(3), IWAE(3)], ids=repr)
def test_total_derivatives_are_those_of_the_bound(estimator):
    """Without weights: autograd of the bound itself, through samples, densities and the prior."""
    vae, x = make(), data()
    z, _ = samples(estimator, vae, x)
    log_w = terms(vae, x, z).log_weight
    bound = log_w.mean(0) if isinstance(estimator, SampledKL) else log_w.logsumexp(0) - math.log(3)
    assert_same(found(estimator, vae, x), gradients(bound.sum(), vae))


@pytest.mark.parametrize("name", SLEEP)
def test_sleep_phase(name):
    """One pair (x', z') of the model, a draw of the mixture, teaches the guide; nothing of it reaches the model."""
    estimator, vae, x = MAKE[name](), make(), data()
    weight = 1.0 if isinstance(estimator, WakeSleep) else estimator.sleep_phi

    def sleep():
        z, fixed = samples_of_step(estimator, vae, x)
        with torch.no_grad():
            z_sleep = vae.p_z().expand((B,)).sample()
            x_sleep = vae.decode(z_sleep).sample()
        return surrogate(estimator, vae, x, z, fixed) + weight * vae.encode(x_sleep).log_prob(z_sleep).sum()

    assert_same(found(estimator, vae, x), gradients(seeded(sleep, seed=3), vae))


@pytest.mark.parametrize("posterior", ["full_normal", "iaf:hidden=[4]", "normal_mixture:components=2"])
@pytest.mark.parametrize("name", ["dreg", "stl", "vimco", "rws"])
def test_other_posteriors_in_the_prior(name, posterior):
    """The same with densities of q by ``VAE.encode``; of z, which the flow samples, no path is compared."""
    vae, x = make(posterior), data()
    estimator = RWS(3) if name == "rws" else MAKE[name]()
    with own_store(vae):
        drawn = seeded(lambda: estimator.draw(vae.model, vae.guide, (x,), {}).drawn["z"], seed=3).detach()
        ours = found(estimator, vae, x)

    def densities(program, z):
        each = program.encode(program.prior.pseudo_inputs).log_prob(z.unsqueeze(-2).expand(*z.shape[:-1], C, Z))
        log_pz = (each + program.prior.logits.log_softmax(-1)).logsumexp(-1)
        return Terms(program.decode(z).log_prob(x), log_pz, program.encode(x).log_prob(z))

    now = densities(vae, drawn)
    a, b, c = three_weights(estimator, now)
    still = copy.deepcopy(vae).requires_grad_(False)
    with own_store(vae):
        z = seeded(lambda: estimator.draw(vae.model, vae.guide, (x,), {}, "attached").drawn["z"], seed=3)
    scalar = a * now.log_joint + b * densities(still, z).log_weight + c * now.log_qz
    assert_same(ours, gradients(scalar.sum(), vae))


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_kl_is_refused(name):
    vae, x = make(), data()
    with own_store(vae), pytest.raises(InputError, match=r"none for Normal and Mixture\. Try sampled_kl"):
        MAKE[name]().loss(vae.model, vae.guide, x)


class Detached(VAE):
    """Planted: the prior's posterior is cut from the encoder."""

    def p_z(self):
        return self.prior(lambda u: self.posterior(*self.encoder(u).detach().unbind(-2)))


@pytest.mark.parametrize("name", ["sampled_kl", "stl", "dreg", "rws", "vimco", "tvo"])
def test_a_detached_encoder_in_the_prior_is_found(name):
    vae, x = make(), data()
    estimator = RWS(3) if name == "rws" else MAKE[name]()
    expected = by_hand(estimator, vae, x)
    vae.__class__ = Detached
    with pytest.raises(AssertionError):
        assert_same(found(estimator, vae, x), expected)
