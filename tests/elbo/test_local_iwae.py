"""The bound with importance weights of each example's own, given latents that all examples share.

The toy is linear and Gaussian: g ~ N(0, 1), z_b ~ N(0, 1), x_b ~ N(g + θ z_b, σ), so that log p(x), p(g|x) and
p(z|x, g) are known. The guide: g ~ N(m, exp s), z_b ~ N(a x_b + b g + c, exp t).
"""

import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from pyro import poutine
from pyro.infer import SVI
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from toys import seeded

from pyro_vae import InputError, elbo, fit
from pyro_vae.base.registry import from_spec
from pyro_vae.elbo import local_iwae
from pyro_vae.elbo.local_draw import LocalDraw

SIGMA = 0.7
X = torch.tensor([1.3, -0.4, 0.6, 0.1], dtype=torch.float64)
K = 3


@dataclass(frozen=True, eq=False)
class Toy:
    theta: Tensor
    m: Tensor
    s: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    t: Tensor

    @property
    def parameters(self):
        return list(vars(self).values())

    def plate(self, x):
        return pyro.plate("data", len(x))

    def model(self, x):
        g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(g + self.theta * z, SIGMA), obs=x)

    def guide(self, x):
        g = pyro.sample("g", dist.Normal(self.m, self.s.exp()))
        with self.plate(x):
            pyro.sample("z", dist.Normal(self.a * x + self.b * g + self.c, self.t.exp()))

    def log_evidence(self, x):
        covariance = torch.ones(len(x), len(x)).to(x) + (self.theta**2 + SIGMA**2) * torch.eye(len(x)).to(x)
        return MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)

    def posterior_of_g(self, x):
        noise = self.theta**2 + SIGMA**2
        precision = 1 + len(x) / noise
        return Normal(x.sum() / noise / precision, precision**-0.5)

    def parts(self, x, g, z):
        """Of one g, and z (K, B): log p(g)/q(g), and log w given g, (K, B)."""
        shared = Normal(0.0, 1.0).log_prob(g) - Normal(self.m, self.s.exp()).log_prob(g)
        log_q = Normal(self.a * x + self.b * g + self.c, self.t.exp()).log_prob(z)
        return shared, Normal(0.0, 1.0).log_prob(z) + Normal(g + self.theta * z, SIGMA).log_prob(x) - log_q

    def drawn(self, x, noise_g, noise_z):
        g = self.m + self.s.exp() * noise_g
        return g, self.a * x + self.b * g + self.c + self.t.exp() * noise_z

    def by_hand(self, x, noise):
        """The bound on given noise: for each of M draws a scalar, and (K, B)."""
        bounds = []
        for noise_g, noise_z in noise:
            shared, log_w = self.parts(x, *self.drawn(x, noise_g, noise_z))
            bounds.append(shared + (log_w.logsumexp(0) - math.log(len(log_w))).sum())
        return sum(bounds) / len(bounds)


def toy(**given):
    values = {"theta": 0.8, "m": 0.2, "s": -0.5, "a": 0.5, "b": -0.4, "c": 0.1, "t": -0.3} | given
    return Toy(**{n: torch.as_tensor(v, dtype=torch.float64).requires_grad_() for n, v in values.items()})


def exact_locals(**given):
    """The toy whose q(z|x, g) is p(z|x, g)."""
    theta = 0.8
    precision = 1 + theta**2 / SIGMA**2
    slope = theta / SIGMA**2 / precision
    return toy(a=slope, b=-slope, c=0.0, t=-0.5 * math.log(precision), **given)


def noise_of(draws, particles, one_by_one=False, seed=0):
    """The noise that a seed gives: for each draw of g that of g, then of the K particles."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    batch = len(X)
    shapes = [(batch,)] * particles if one_by_one else [(particles, batch) if particles > 1 else (batch,)]
    return [(normal(), torch.cat([normal(*s).reshape(-1, batch) for s in shapes])) for _ in range(draws)]


def result(estimator, program, x=X, seed=0):
    """The bound of one step and its gradient in every parameter."""
    loss = seeded(estimator.differentiable_loss, program.model, program.guide, x, seed=seed)
    gradients = torch.autograd.grad(-loss, program.parameters, materialize_grads=True)
    return -loss.detach(), gradients


def assert_same(found, value, parameters):
    bound, gradients = found
    assert_close(bound, value.detach())
    expected = torch.autograd.grad(value, parameters, materialize_grads=True)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert_close(gradient, reference)


# ---- the value and the gradient by hand


@pytest.mark.parametrize("vectorize", [True, False], ids=["plate", "one by one"])
@pytest.mark.parametrize(("draws", "particles"), [(1, 1), (1, 4), (3, 4), (3, 1)])
def test_value_and_gradient_equal_those_by_hand_on_the_same_noise(draws, particles, vectorize):
    program = toy()
    estimator = elbo.LocalIWAE(particles, draws, vectorize_particles=vectorize)
    noise = noise_of(draws, particles, one_by_one=not vectorize)
    assert_same(result(estimator, program), program.by_hand(X, noise), program.parameters)
    loss = seeded(estimator.loss, program.model, program.guide, X)
    assert loss == pytest.approx(-program.by_hand(X, noise).item(), rel=1e-12)


def counted_k_times(draw):
    """The density of g is in each particle's weight."""
    return replace_given(draw, lambda each: replace(each, shared=K * each.shared))


def shared_noise(draw):
    """All particles of an example are the first."""
    return replace_given(draw, lambda each: replace(each, terms=each.terms.__class__(*map(first_row, all_of(each)))))


def joint(draw):
    """One weight for all examples."""
    return replace_given(draw, lambda each: replace(each, terms=each.terms.__class__(*map(in_one, all_of(each)))))


def replace_given(draw, change):
    draw.given = [change(each) for each in draw.given]
    return draw


def all_of(each):
    return each.terms.log_px_z, each.terms.log_pz, each.terms.log_qz


def first_row(term):
    return term[:1].expand_as(term)


def in_one(term):
    return term.sum(1, keepdim=True)


@pytest.mark.parametrize("planted", [counted_k_times, shared_noise, joint])
def test_planted_errors_are_found(planted, monkeypatch):
    plain = elbo.LocalIWAE.draw
    monkeypatch.setattr(elbo.LocalIWAE, "draw", lambda *args: planted(plain(*args)))
    program = toy()
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(result(elbo.LocalIWAE(K), program), program.by_hand(X, noise_of(1, K)), program.parameters)


# ---- what the value is


def test_with_the_posterior_of_the_local_latents_it_is_the_evidence_less_the_gap_of_g():
    """Draw by draw: L = log p(x) + log p(g|x) − log q(g), whatever z; the evidence if q(g) is the posterior, too."""
    program = exact_locals()
    for seed in range(5):
        ((noise_g, _),) = noise_of(1, K, seed=seed)
        g, _ = program.drawn(X, noise_g, 0.0)
        gap = Normal(program.m, program.s.exp()).log_prob(g) - program.posterior_of_g(X).log_prob(g)
        assert_close(result(elbo.LocalIWAE(K), program, seed=seed)[0], (program.log_evidence(X) - gap).detach())
    posterior = program.posterior_of_g(X)
    exact = exact_locals(m=posterior.loc.item(), s=posterior.scale.log().item())
    assert_close(result(elbo.LocalIWAE(K, 2), exact)[0], exact.log_evidence(X).detach())


def test_bounds_are_in_order_on_the_same_draws():
    """ELBO ≤ L of 5 ≤ L of 50 ≤ log p(x) − KL(q(g) ‖ p(g|x)) ≤ log p(x), the first three by the same particles."""
    program, rows = toy(t=0.4), []
    with torch.no_grad():
        for seed in range(400):
            draw = seeded(elbo.LocalIWAE(50).draw, program.model, program.guide, (X,), {}, "fixed", seed=seed)
            shared, log_w = draw.given[0].shared, draw.given[0].terms.log_weight
            five = (log_w.unflatten(0, (10, 5)).logsumexp(1) - math.log(5)).mean(0)
            rows.append(shared + torch.stack([log_w.mean(0).sum(), five.sum(), draw.given[0].bounds.sum()]))
        lowest, middle, highest = torch.stack(rows).T
        gap = torch.distributions.kl_divergence(Normal(program.m, program.s.exp()), program.posterior_of_g(X))
        limit = program.log_evidence(X) - gap
    assert (middle >= lowest).all()  # by Jensen's inequality on the same particles
    for lower, upper in ((lowest, middle), (middle, highest), (highest, limit)):
        difference = upper - lower
        assert difference.mean() > -5 * difference.std() / len(difference) ** 0.5
    assert (middle - lowest).mean() > 5 * (middle - lowest).std() / 20
    assert (highest - middle).mean() > 5 * (highest - middle).std() / 20
    assert gap > 0


def test_it_is_tighter_than_the_joint_bound_of_as_many_particles():
    program, x = toy(t=0.4), X.repeat(5)
    losses = [
        [seeded(each.loss, program.model, program.guide, x, seed=s) for s in range(300)]
        for each in (elbo.IWAE(5), elbo.LocalIWAE(5))
    ]
    gained = torch.tensor(losses[0]) - torch.tensor(losses[1])
    assert gained.mean() > 5 * gained.std() / len(gained) ** 0.5


# ---- programs with one kind of latents


class Local:
    """No global latent; z or a discrete one in its place."""

    def __init__(self, discrete=False):
        self.discrete = discrete
        self.theta, self.a = (torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (0.8, 0.5))

    @property
    def parameters(self):
        return [self.theta, self.a]

    def model(self, x):
        with pyro.plate("data", len(x)):
            half = torch.full_like(x, 0.5)
            z = pyro.sample("z", dist.Bernoulli(half) if self.discrete else dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.theta * z, SIGMA), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.a * x) if self.discrete else dist.Normal(self.a * x, 0.8))


@pytest.mark.parametrize("vectorize", [True, False], ids=["plate", "one by one"])
@pytest.mark.parametrize("discrete", [False, True])
def test_without_global_latents_it_is_the_importance_weighted_bound(discrete, vectorize):
    program = Local(discrete)
    for ours, plain in ((elbo.LocalIWAE(4), elbo.IWAE(4)), (elbo.LocalIWAE(3, 2), elbo.MIWAE(3, 2))):
        ours, plain = (replace(each, vectorize_particles=vectorize) for each in (ours, plain))
        (value, gradients), (expected, others) = (result(each, program) for each in (ours, plain))
        assert torch.equal(value, expected)
        for mine, theirs in zip(gradients, others, strict=True):
            assert_close(mine, theirs, tolerance=1e-14)
        draw = seeded(ours.draw, program.model, program.guide, (X,), {}, "fixed")
        assert ours.value(draw).shape == X.shape


def test_weights_of_a_program_without_a_plate_are_joint():
    """One example, of which every latent is local."""

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, len(x)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x.mean(), 0.5))

    ours, plain = (seeded(each.loss, model, guide, X) for each in (elbo.LocalIWAE(4), elbo.IWAE(4)))
    assert ours == plain


# ---- subsampling


class WithNoise(Messenger):
    """Give g and z of each example noise of their own, the same in every subsample."""

    def __init__(self, noise_g, noise_z, index):
        super().__init__()
        self.noise = {"g": noise_g, "z": noise_z[:, index]}

    def _pyro_sample(self, msg):
        if msg["name"] in self.noise and msg["value"] is None:
            msg["value"] = msg["fn"].mean + msg["fn"].stddev * self.noise[msg["name"]]
            msg["done"] = True


class Subsampled(Toy):
    """N examples, of which B count N/B each."""

    def plate(self, x):
        return pyro.plate("data", len(X), subsample_size=len(x))


def inside_the_log(self):
    return (self.scale * self.terms.log_weight).logsumexp(0) - math.log(K)


def over_subsamples(estimator, count):
    """The mean over all subsamples of this size of value and gradient, at the same noise."""
    program = Subsampled(**vars(toy()))
    found, (noise,) = [], noise_of(1, K)
    result(estimator, program)  # its trials have noise of their own
    for index in itertools.combinations(range(len(X)), count):
        with WithNoise(*noise, list(index)):
            value, gradients = result(estimator, program, X[list(index)])
        found.append(torch.stack([value, *gradients]))
    return torch.stack(found).mean(0)


def test_subsamples_estimate_the_bound_without_bias():
    """The mean over all subsamples is the bound of all examples, to the last digit; so is the gradient's."""
    estimator = elbo.LocalIWAE(K)
    whole = over_subsamples(estimator, len(X))
    assert_close(over_subsamples(estimator, 2), whole)
    assert_close(over_subsamples(estimator, 1), whole)
    with pytest.raises(InputError, match="subsampling beside a global latent"):
        over_subsamples(elbo.IWAE(K), 2)


def test_a_scale_inside_the_logarithm_would_be_found(monkeypatch):
    monkeypatch.setattr(local_iwae.Given, "bounds", property(inside_the_log))
    whole = over_subsamples(elbo.LocalIWAE(K), len(X))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(over_subsamples(elbo.LocalIWAE(K), 2), whole)


# ---- masks, scales, factors


class Rich(Toy):
    """Masked examples, a scale for each, and factors of global and local latents in model and guide."""

    counts, scale = torch.tensor([True, False, True, True]), torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)

    def model(self, x):
        g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
        pyro.factor("of g", -0.1 * g**2)
        with self.plate(x), poutine.mask(mask=self.counts), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.factor("of z", -0.2 * z**2)
            pyro.sample("x", dist.Normal(g + self.theta * z, SIGMA), obs=x)

    def guide(self, x):
        g = pyro.sample("g", dist.Normal(self.m, self.s.exp()))
        pyro.factor("penalty of g", 0.3 * self.m * g, has_rsample=True)
        with self.plate(x), poutine.mask(mask=self.counts), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(self.a * x + self.b * g + self.c, self.t.exp()))
            pyro.factor("penalty of z", 0.4 * self.a * z, has_rsample=True)

    def by_hand(self, x, noise, beta=1.0):
        ((noise_g, noise_z),) = noise
        g, z = self.drawn(x, noise_g, noise_z)
        p, q = Normal(0.0, 1.0), Normal(self.a * x + self.b * g + self.c, self.t.exp())
        shared = beta * (p.log_prob(g) - Normal(self.m, self.s.exp()).log_prob(g) - 0.3 * self.m * g) - 0.1 * g**2
        data = Normal(g + self.theta * z, SIGMA).log_prob(x) - 0.2 * z**2
        log_w = data + beta * (p.log_prob(z) - q.log_prob(z) - 0.4 * self.a * z)
        bounds = (log_w * self.counts).logsumexp(0) - math.log(len(log_w))
        return shared + (self.scale * bounds).sum()


@pytest.mark.parametrize("vectorize", [True, False], ids=["plate", "one by one"])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_masks_scales_factors_and_a_weight_of_the_kl(beta, vectorize):
    program, estimator = Rich(**vars(toy())), elbo.LocalIWAE(K, vectorize_particles=vectorize)
    estimator = estimator if beta == 1 else elbo.Weighted(estimator, beta=beta)
    noise = noise_of(1, K, one_by_one=not vectorize)
    assert_same(result(estimator, program), program.by_hand(X, noise, beta), program.parameters)


def test_a_scale_of_the_global_latent_alone_holds():
    """The bound is linear in its density; log w of an example has none of it."""
    program, doubled = toy(), toy()

    class Doubled(Messenger):
        def _pyro_sample(self, msg):
            msg["scale"] = 2.0 * msg["scale"] if msg["name"] == "g" else msg["scale"]

    model, guide = Doubled()(program.model), Doubled()(program.guide)
    ((noise_g, noise_z),) = noise_of(1, K)
    shared, _ = doubled.parts(X, *doubled.drawn(X, noise_g, noise_z))
    found = -seeded(elbo.LocalIWAE(K).loss, model, guide, X)
    assert found == pytest.approx((doubled.by_hand(X, [(noise_g, noise_z)]) + shared).item(), rel=1e-12)


def test_a_scale_of_the_local_latents_weights_their_kl():
    """As for joint weights: one scale of the latents beside one of the data, here N/B and half of it."""
    program = toy()

    class Halved(Messenger):
        def _pyro_sample(self, msg):
            scale = {"z": 1.5, "x": 3.0}.get(msg["name"], 1.0)
            msg["scale"] = scale * msg["scale"]

    model, guide = Halved()(program.model), Halved()(program.guide)
    ((noise_g, noise_z),) = noise_of(1, K)
    g, z = program.drawn(X, noise_g, noise_z)
    shared, log_w = program.parts(X, g, z)
    data = Normal(g + program.theta * z, SIGMA).log_prob(X)
    bounds = (data + 0.5 * (log_w - data)).logsumexp(0) - math.log(K)
    found = -seeded(elbo.LocalIWAE(K).loss, model, guide, X)
    assert found == pytest.approx((shared + 3 * bounds.sum()).item(), rel=1e-12)


# ---- latents without reparameterization


class Coins:
    """A global coin and one for each of two examples, on which the mean of x depends; exact by enumeration."""

    x = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def __init__(self):
        values = (0.4, -0.3, 0.7, 0.9)
        self.g, self.z, self.slope, self.theta = (torch.tensor(v, dtype=torch.float64).requires_grad_() for v in values)

    @property
    def parameters(self):
        return [self.g, self.z, self.slope, self.theta]

    def mean(self, g, z):
        return self.theta * z - 1.5 * g

    def model(self, x):
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.5, dtype=x.dtype)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(self.mean(g, z), 1.0), obs=x)

    def guide(self, x):
        g = pyro.sample("g", dist.Bernoulli(logits=self.g))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.z + self.slope * g * x))

    def exact(self):
        """The gradient of E L for K = 2: 2 states of g, and 4 of each example's particles."""
        total, bernoulli = 0.0, lambda logits, z: torch.distributions.Bernoulli(logits=logits).log_prob(z)
        for g in torch.tensor([0.0, 1.0], dtype=torch.float64):
            log_q_g = bernoulli(self.g, g)
            inner = math.log(0.5) - log_q_g
            for x, pair in itertools.product(self.x, itertools.product([0.0, 1.0], repeat=2)):
                z = torch.tensor(pair, dtype=torch.float64)
                log_q = bernoulli(self.z + self.slope * g * x, z)
                log_w = Normal(self.mean(g, z), 1.0).log_prob(x) + math.log(0.5) - log_q
                inner = inner + log_q.sum().exp() * (log_w.logsumexp(0) - math.log(2))
            total = total + log_q_g.exp() * inner
        return torch.stack(torch.autograd.grad(total, self.parameters))


class Forced(Messenger):
    """Give the sites of a guide values in the order of sampling; :attr:`probability` is that of these."""

    def __init__(self, values):
        super().__init__()
        self.values, self.log_probability = iter(values), 0.0

    def _pyro_sample(self, msg):
        if msg["name"] in ("g", "z") and not msg["done"]:
            shape = msg["fn"].batch_shape
            msg["value"] = torch.stack([next(self.values) for _ in range(shape.numel())]).reshape(shape)
            msg["done"] = True
            self.log_probability += msg["fn"].log_prob(msg["value"]).sum().detach()


def mean_gradient(estimator):
    """The expectation of the estimator's gradient: the sum over all values of the latents, by their probability."""
    program, total, probability = Coins(), 0.0, 0.0
    seeded(estimator.loss, program.model, program.guide, program.x)  # its trials have samples of their own
    count = estimator.num_globals * (1 + 2 * len(program.x))
    for values in itertools.product(torch.tensor([0.0, 1.0], dtype=torch.float64), repeat=count):
        with Forced(values) as forced:
            draw = estimator.draw(program.model, program.guide, (program.x,), {})
        gradient = torch.autograd.grad(estimator.of_draw(draw).surrogate, program.parameters)
        total = total + forced.log_probability.exp() * torch.stack(gradient)
        probability += float(forced.log_probability.exp())
    assert probability == pytest.approx(1.0)
    return total


COINS = [elbo.LocalIWAE(2), elbo.LocalIWAE(2, 2), elbo.LocalIWAE(2, vectorize_particles=False)]


@pytest.mark.parametrize("estimator", COINS, ids=str)
def test_the_mean_gradient_of_discrete_latents_is_that_of_the_mean_bound(estimator):
    assert_close(mean_gradient(estimator), Coins().exact())


@pytest.mark.parametrize("lost", ["_local_score", "_global_score"])
def test_without_a_score_the_gradient_is_biased(lost, monkeypatch):
    monkeypatch.setattr(local_iwae, lost, lambda given: torch.zeros(()))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(mean_gradient(elbo.LocalIWAE(2)), Coins().exact())


# ---- what the program may do


def weights(flatten):
    """A decoder of ``nn.functional.linear`` with latent weights, which takes no further dimension of the weights."""

    def model(x):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = nn.functional.linear(z, weight)
            pyro.sample("x", dist.Normal(mean.flatten(1) if flatten else mean, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: 0.1 * torch.ones(3, 2))
        pyro.sample("weight", dist.Normal(loc, 0.3).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[..., :2], 0.5).to_event(1))

    return model, guide


def test_a_decoder_of_given_weights_runs_in_a_plate_of_local_particles():
    x = torch.randn(4, 3)
    with pyro.get_param_store().scope():
        model, guide = weights(flatten=False)
        assert math.isfinite(elbo.LocalIWAE(5, 2).loss(model, guide, x))
        with pytest.raises(InputError, match="vectorize_particles=False"):
            elbo.IWAE(5).loss(model, guide, x)
        model, guide = weights(flatten=True)
        with pytest.raises(InputError, match=r"broadcasts over particles.*vectorize_particles=False"):
            elbo.LocalIWAE(5).loss(model, guide, x)
        assert math.isfinite(elbo.LocalIWAE(5, vectorize_particles=False).loss(model, guide, x))


def changed(**methods):
    return type("Changed", (Toy,), methods)(**vars(toy()))


def global_last(self, x):
    """Guide: g is sampled given z."""
    with self.plate(x):
        z = pyro.sample("z", dist.Normal(self.a * x, 1.0))
    pyro.sample("g", dist.Normal(z.mean(), 1.0))


def normalised(self, x):
    """Model: each example depends on the mean of all z."""
    g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
    with self.plate(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(g + z - z.mean(-1, keepdim=True), SIGMA), obs=x)


def total_of_z(self, x):
    g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
    with self.plate(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(g + z, SIGMA), obs=x)
    pyro.sample("total", dist.Normal(z.sum(-1), 1.0), obs=x.sum())


def other_plate(self, x):
    g = pyro.sample("g", dist.Normal(self.m, 1.0))
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(g * x, 1.0))


def without_size(self, x):
    with pyro.plate("data"):
        g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(g + z, SIGMA), obs=x)


def guide_without_size(self, x):
    with pyro.plate("data"):
        pyro.sample("g", dist.Normal(self.m, 1.0))
        pyro.sample("z", dist.Normal(self.a * x, 1.0))
    pyro.factor("nothing", self.m * 0.0, has_rsample=True)


def scaled_data(self, x):
    with poutine.scale(scale=torch.tensor(0.5)):
        g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
    with self.plate(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with poutine.scale(scale=torch.tensor([1.0, 2.0, 1.0, 1.0])):
            pyro.sample("x", dist.Normal(g + z, SIGMA), obs=x)


REFUSED = {
    "a global latent sampled given local ones": ({"guide": global_last}, "site 'g' of the guide, outside the plate"),
    "a global observation of local latents": ({"model": total_of_z}, "site 'total' of the model, outside the plate"),
    "examples that depend on each other": ({"model": normalised}, "independent given the global latents"),
    "two names of the plate": ({"guide": other_plate}, "latent 'z' inside the plate of the examples in both"),
    "no size": ({"model": without_size, "guide": guide_without_size}, "a size of plate 'data'"),
    "a scale of the data": ({"model": scaled_data}, "one scale for all sites in the plate of the examples"),
}


@pytest.mark.parametrize("vectorize", [True, False], ids=["plate", "one by one"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_in_one_line(name, vectorize):
    methods, message = REFUSED[name]
    program = changed(**methods)
    with pytest.raises(InputError, match=message) as caught:
        elbo.LocalIWAE(K, vectorize_particles=vectorize).loss(program.model, program.guide, X)
    assert "\n" not in str(caught.value)
    assert "sampled_kl" in str(caught.value) or "plate" in str(caught.value)


def test_a_latent_sampled_last_that_depends_on_no_other_is_taken():
    """Order alone is no dependence."""

    def last(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Normal(self.a * x, self.t.exp()))
        pyro.sample("g", dist.Normal(self.m, self.s.exp()))

    program = changed(guide=last)
    for vectorize in (True, False):
        assert math.isfinite(result(elbo.LocalIWAE(K, vectorize_particles=vectorize), program)[0])


def crossed(x):
    columns, rows = pyro.plate("columns", x.shape[-1], dim=-1), pyro.plate("rows", len(x), dim=-2)
    with columns:
        column = pyro.sample("column", dist.Normal(x.new_zeros(()), 1.0))
    with rows:
        row = pyro.sample("row", dist.Normal(x.new_zeros(()), 1.0))
    with columns, rows:
        pyro.sample("x", dist.Normal(row + column, 1.0), obs=x)


def guide_of_crossed(x):
    with pyro.plate("columns", x.shape[-1], dim=-1):
        pyro.sample("column", dist.Normal(x.mean(0), 0.5))
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("row", dist.Normal(x.mean(1, keepdim=True), 0.5))


def test_of_crossed_plates_one_must_be_named():
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"plates rows, columns, of which none has .*plate='rows'"):
        elbo.LocalIWAE(K).loss(crossed, guide_of_crossed, x)
    with pytest.raises(InputError, match="one plate named 'row'; got plates columns, rows"):
        elbo.LocalIWAE(K, plate="row").loss(crossed, guide_of_crossed, x)
    generator = torch.Generator().manual_seed(0)
    columns = x.mean(0) + 0.5 * torch.randn(5, dtype=torch.float64, generator=generator)
    rows = x.mean(1, keepdim=True) + 0.5 * torch.randn(K, 3, 1, dtype=torch.float64, generator=generator)
    prior = Normal(0.0, 1.0)
    shared = (prior.log_prob(columns) - Normal(x.mean(0), 0.5).log_prob(columns)).sum()
    log_w = prior.log_prob(rows) - Normal(x.mean(1, keepdim=True), 0.5).log_prob(rows)
    log_w = log_w.squeeze(-1) + Normal(rows + columns, 1.0).log_prob(x).sum(-1)
    expected = shared + (log_w.logsumexp(0) - math.log(K)).sum()
    found = -seeded(elbo.LocalIWAE(K, plate="rows").loss, crossed, guide_of_crossed, x)
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_a_joint_vector_of_the_global_latents_beside_a_local_guide():
    """Pyro's autoguide of the global sites, with Deltas of them, beside an encoder."""
    program = toy()

    def model(x):
        bias = pyro.sample("bias", dist.LogNormal(x.new_zeros(()), 1.0))
        g = pyro.sample("g", dist.Normal(bias, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(g + program.theta * z, SIGMA), obs=x)

    def encoder(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(program.a * x, program.t.exp()))

    with pyro.get_param_store().scope(), default_float64():
        joint = pyro.infer.autoguide.AutoMultivariateNormal(poutine.block(model, hide=["z"]))
        joint(X)

        def guide(x):
            joint(x)
            encoder(x)

        estimators = [elbo.LocalIWAE(1), elbo.SampledKL(1)]
        ours, stock = ([seeded(e.loss, model, guide, X, seed=s) for s in range(3)] for e in estimators)
        assert ours == pytest.approx(stock, rel=1e-12)
        draw = seeded(elbo.LocalIWAE(K, 2).draw, model, guide, (X,), {})
        assert isinstance(draw, LocalDraw)
        assert [given.terms.log_weight.shape for given in draw.given] == [(K, len(X))] * 2


@contextmanager
def default_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ---- as an estimator


def test_another_estimator_around_it_is_weighted_or_refuses():
    program = toy()
    with pytest.raises(InputError, match="local_iwae by itself"):
        elbo.ByAutograd(elbo.LocalIWAE(K)).loss(program.model, program.guide, X)
    weighted = elbo.Weighted(elbo.LocalIWAE(K, vectorize_particles=False), beta=1.0)
    noise = noise_of(1, K, one_by_one=True)
    assert_same(result(weighted, program), program.by_hand(X, noise), program.parameters)
    assert elbo.LocalIWAE(K, 7).reference("phi") == elbo.LocalIWAE(K)


def test_it_is_made_by_name():
    made = from_spec(elbo.ESTIMATORS, "local_iwae:num_particles=3,num_globals=2,plate=rows", "estimator")
    assert made == elbo.LocalIWAE(3, 2, plate="rows")
    for count in (0, 1.5, True):
        with pytest.raises(InputError, match="num_globals that is a whole number"):
            elbo.LocalIWAE(3, count)


def test_stock_svi_and_fit_train_with_it():
    x = X.float().repeat(5).unsqueeze(1)

    def model(x):
        g = pyro.sample("g", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(g + z, SIGMA).to_event(1), obs=x)

    def guide(x):
        pyro.sample("g", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.0)) * x, 0.6).to_event(1))

    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo.LocalIWAE(4))
        losses = [svi.step(x) for _ in range(40)]
        assert sum(losses[-5:]) < sum(losses[:5])
    found = []
    for engine in ("svi", "compiled:inductor=false"):
        with pyro.get_param_store().scope():
            settings = {"epochs": 2, "batch_size": 10, "device": "cpu", "estimator": "local_iwae:num_particles=4"}
            found.append(fit((model, guide), x, engine=engine, **settings).history[-1].objective)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("how", ["enumerate", "measure_valued"])
def test_other_strategies_beside_global_latents_are_refused(how):
    def guide(x):
        pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))

    def model(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))
            pyro.sample("x", dist.Normal(z + g, 1.0), obs=x)

    with pytest.raises(InputError, match=r"pathwise gradient or a score, beside global latents|no plates but those"):
        elbo.LocalIWAE(2, strategies={"z": how}).differentiable_loss(model, guide, torch.randn(3))
