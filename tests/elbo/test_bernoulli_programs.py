"""DisARM, REBAR and the concrete relaxation on other programs: plates, events, masks, scales; and what they refuse."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from bernoulli_toys import OURS, X, cells, coin, f64, given, gradients, normal, product
from checks import assert_close, assert_mean
from pyro import poutine
from pyro.infer import SVI
from toys import seeded

from pyro_vae import InputError, elbo
from pyro_vae.elbo import disarm as disarms
from pyro_vae.elbo import relaxed as relaxations
from pyro_vae.program.handlers import WeightLatents

UNBIASED = ["disarm", "rebar"]


class Functions:
    """A model, a guide and the tensors that they depend on."""

    def __init__(self, model, guide, *parameters):
        self.model, self.guide, self.parameters = model, guide, list(parameters)


def over_cells(estimator, make, thresholds, monkeypatch):
    """The expectation of DisARM's gradients: a call for each cell of the noise of one latent of two elements."""
    nodes, weights = product(*[cells(*each) for each in thresholds])
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        program, x = make()
        given(monkeypatch, node)
        total = total + weight * torch.cat([g.flatten() for g in gradients(estimator, program, x)])
    return total


def sides(logits):
    return [(f64(a).sigmoid().item(), f64(-a).sigmoid().item()) for a in logits]


# ---- plates


LOGITS = (0.4, -0.3)


def mass(b, logits):
    return torch.distributions.Bernoulli(logits=logits).log_prob(b)


def enumerated(log_joint):
    """The gradient of the ELBO in two logits, of a log joint of (d₁, d₂)."""
    a = f64(LOGITS).requires_grad_()
    total = 0.0
    for state in itertools.product([0.0, 1.0], repeat=2):
        d, log_q = f64(state), mass(f64(state), a).sum()
        total = total + log_q.exp() * (log_joint(d) + 2 * math.log(0.5) - log_q)
    return torch.autograd.grad(total, a)[0]


def nested():
    """Two pixels within one example, in a plate of their own."""
    a, x = f64(LOGITS).requires_grad_(), f64([[X]])

    def model(x):
        with pyro.plate("data", 1, dim=-2):
            with pyro.plate("pixels", 2, dim=-1):
                d = pyro.sample("d", dist.Bernoulli(f64([[0.5, 0.5]])))
            pyro.sample("x", dist.Normal(d.sum(-1, keepdim=True) ** 2, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1, dim=-2), pyro.plate("pixels", 2, dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=a[None]))

    return Functions(model, guide, a), x


def two_components(shape):
    """Two latents that all examples share: in a plate, or one event."""
    a, x = f64(LOGITS).requires_grad_(), f64([X, -X, 2.0])

    def latents(fn):
        if shape == "event":
            return pyro.sample("d", fn.to_event(1))
        with pyro.plate("components", 2, dim=-1):
            return pyro.sample("d", fn)

    def model(x):
        d = latents(dist.Bernoulli(f64([0.5, 0.5])))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(d.sum(-1, keepdim=shape == "plate") ** 2, 1.0), obs=x)

    return Functions(model, lambda x: latents(dist.Bernoulli(logits=a)), a), x


def coupled_means(d):
    return d - 2.0 * d.flip(-1)


def batch_normalised():
    """Two examples, each of which depends on the other's latent."""
    a, x = f64(LOGITS).requires_grad_(), f64([1.5, -0.5])

    def model(x):
        with pyro.plate("data", len(x)):
            d = pyro.sample("d", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(coupled_means(d), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("d", dist.Bernoulli(logits=a))

    return Functions(model, guide, a), x


def of_sum(x):
    return lambda d: normal(d.sum() ** 2, x).sum()


SHAPES = {
    "nested plates": (nested, of_sum([X])),
    "shared, in a plate": (lambda: two_components("plate"), of_sum([X, -X, 2.0])),
    "shared, an event": (lambda: two_components("event"), of_sum([X, -X, 2.0])),
    "examples that depend on each other": (batch_normalised, lambda d: normal(coupled_means(d), [1.5, -0.5]).sum()),
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_disarm_is_exact_whatever_the_plates(shape, vectorize, monkeypatch):
    make, log_joint = SHAPES[shape]
    found = over_cells(elbo.DisARM(2, vectorize_particles=vectorize), make, sides(LOGITS), monkeypatch)
    assert_close(found, enumerated(log_joint))


def test_pairs_weighted_by_their_own_example_alone_would_be_found(monkeypatch):
    monkeypatch.setattr(disarms, "of_all_examples", lambda signal: signal)
    make, log_joint = SHAPES["examples that depend on each other"]
    found = over_cells(elbo.DisARM(2), make, sides(LOGITS), monkeypatch)
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(found, enumerated(log_joint), tolerance=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_rebar_is_exact_on_average_whatever_the_plates(shape):
    make, log_joint = SHAPES[shape]
    program, x = make()
    found = seeded(lambda: [torch.cat(gradients(elbo.Rebar(50), program, x)) for _ in range(80)])
    assert_mean(torch.stack(found), enumerated(log_joint))


def test_rebar_weighted_by_its_own_example_alone_would_be_found(monkeypatch):
    monkeypatch.setattr(relaxations, "of_all_examples", lambda signal: signal)
    make, log_joint = SHAPES["examples that depend on each other"]
    program, x = make()
    found = seeded(lambda: [torch.cat(gradients(elbo.Rebar(50), program, x)) for _ in range(80)])
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(torch.stack(found), enumerated(log_joint))


# ---- many units, their variance


class Units:
    """A vector d of Bernoulli latents, one event, x ~ N(W d, 1); q: logits a, (B, units). Its ELBO is known."""

    def __init__(self, units, batch, size):
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(4, units, generator=generator, dtype=torch.float64) / math.sqrt(units)
        self.x = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
        signs = torch.randn(units, generator=generator, dtype=torch.float64).sign()
        self.a = (size * signs).expand(batch, units).clone().requires_grad_()

    @property
    def parameters(self):
        return [self.a]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=torch.zeros_like(self.a)).to_event(1))
            pyro.sample("x", dist.Normal(d @ self.w.T, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=self.a).to_event(1))

    def data(self):
        return self.x.expand(len(self.a), 4)

    def exact(self):
        p = self.a[:1].sigmoid()
        squares = ((self.x - p @ self.w.T) ** 2).sum() + (p * (1 - p) * (self.w**2).sum(0)).sum()
        entropy = torch.distributions.Bernoulli(logits=self.a[:1]).entropy().sum()
        return torch.autograd.grad(entropy - 0.5 * squares, self.a)[0][0]


def of_units(estimator, units=20, batch=4000, size=2.0):
    program = Units(units, batch, size)
    return seeded(gradients, estimator, program, program.data())[0], program.exact()


@pytest.mark.parametrize("name", UNBIASED)
def test_two_hundred_units_of_one_event(name):
    assert_mean(*of_units(OURS[name], units=200, batch=2000))


def variance_at_the_optimum(estimator, scale, batch=4000):
    """The total variance of the gradient where the guide is the best of its family, its logits away from 0."""
    one, many = Units(20, 1, 0.0), Units(20, batch, 0.0)
    one.w = many.w = scale * one.w
    optimizer = torch.optim.Adam([one.a], 0.05)
    for _ in range(400):
        one.a.grad = -one.exact()[None]
        optimizer.step()
    many.a.data.copy_(one.a.data.expand_as(many.a))
    assert one.a.abs().mean() > 0.3
    return seeded(gradients, estimator, many, many.data())[0].var(0).sum()


@pytest.mark.parametrize(("scale", "ratio"), [(1.0, 0.4), (3.0, 0.7)])
def test_disarm_has_less_variance_than_reinforce_at_the_same_two_particles(scale, ratio):
    """At the optimum; far from it the two are close: docs/estimators.md."""
    ours, theirs = (variance_at_the_optimum(each, scale) for each in (elbo.DisARM(2), elbo.Reinforce(2)))
    assert ours < ratio * theirs


def test_a_planted_factor_of_two_is_found_in_the_variance(monkeypatch):
    plain = disarms.pair_differences
    monkeypatch.setattr(disarms, "pair_differences", lambda *args: 2.0 * plain(*args))
    ours, theirs = (variance_at_the_optimum(each, 3.0) for each in (elbo.DisARM(2), elbo.Reinforce(2)))
    assert ours > 0.7 * theirs


@pytest.mark.parametrize("factor", [-1.0, 2.0])
def test_a_planted_factor_is_found_in_the_mean(factor, monkeypatch):
    plain = disarms.pair_differences
    monkeypatch.setattr(disarms, "pair_differences", lambda *args: factor * plain(*args))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(*of_units(elbo.DisARM(2)))


def test_the_control_variate_of_rebar_lowers_the_variance():
    with_it, without = (of_units(elbo.Rebar(1, eta=eta))[0].var(0).sum() for eta in (1.0, 0.0))
    assert with_it < 0.2 * without


# ---- masks and scales


def wrapped(handler, batch=6):
    program = coin(batch)
    return Functions(handler(program.model), handler(program.guide), *program.parameters)


def data(batch=6):
    return torch.linspace(-1, 1, batch, dtype=torch.float64)


def seeded_gradients(name, handler):
    estimator = replace(OURS[name], num_particles=4)
    return torch.stack(seeded(gradients, estimator, wrapped(handler), data()))


@pytest.mark.parametrize("name", OURS)
def test_scales_multiply_and_masks_leave_out(name):
    plain = seeded_gradients(name, lambda f: f)
    each = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.5, 1.0], dtype=torch.float64)
    assert_close(seeded_gradients(name, lambda f: poutine.scale(f, 7.0)), 7 * plain)
    assert_close(seeded_gradients(name, lambda f: poutine.scale(f, each)), each * plain)
    mask = torch.tensor([True, False, True, True, False, True])
    assert_close(seeded_gradients(name, lambda f: poutine.mask(f, mask)), mask * plain)


def masked_coin(batch, masks):
    """The coin, the distributions of its latent masked inside."""
    program = coin(batch)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=program.m).mask(masks))
            pyro.sample("x", dist.Normal(program.theta * d, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=program.a).mask(masks))

    return Functions(model, guide, *program.parameters)


@pytest.mark.parametrize("factor", [0.3, 0.0])
def test_a_weighted_or_masked_kl_is_exact(factor, monkeypatch):
    """A scale on the latents is the weight of the KL; a mask leaves it out, and the latent is sampled all the same."""
    p = sides([0.8])[0]
    nodes, weights = cells(*p)
    given(monkeypatch, nodes)
    program, x = coin(len(nodes)), torch.full((len(nodes),), X, dtype=torch.float64)
    if factor:
        program = wrapped(lambda f: WeightLatents(factor)(f), len(nodes))
    else:
        program = masked_coin(len(nodes), torch.zeros(len(nodes), dtype=torch.bool))
    found = torch.stack([(weights * g).sum() for g in gradients(elbo.DisARM(2), program, x)])
    one = coin(1)
    q = {1.0: one.a.sigmoid(), 0.0: (-one.a).sigmoid()}
    kl = sum(q[d] * (mass(f64(d), one.a) - mass(f64(d), one.m)) for d in q)
    likelihood = sum(q[d] * normal(one.theta * d, X) for d in q)
    truth = torch.autograd.grad((likelihood - factor * kl).sum(), one.parameters)
    assert_close(found, torch.cat(truth))


# ---- values, Pyro's interface


@pytest.mark.parametrize("name", UNBIASED)
def test_the_value_is_log_evidence_where_the_guide_is_the_posterior(name):
    program, x = coin(6), data()
    joint = [mass(f64(d), program.m) + normal(program.theta * d, x) for d in (0.0, 1.0)]
    program.a.data.copy_((joint[1] - joint[0]).detach())
    estimator = replace(OURS[name], num_particles=4)
    value = seeded(estimator.draw, program.model, program.guide, (x,), {}, "fixed")
    assert_close(estimator.value(value).detach(), torch.logaddexp(*joint).detach(), tolerance=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_stock_svi_takes_a_step(name):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(d.sum(-1), 1.0), obs=x)

    def guide(x):
        a = pyro.param("a", torch.full((3,), 0.2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=a).to_event(1))

    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), OURS[name])
        assert all(math.isfinite(svi.step(x)) for _ in range(3))
        assert math.isfinite(svi.evaluate_loss(x))
        assert (pyro.param("a") != 0.2).all()


# ---- refused


def guided(fn, **infer):
    """The coin's model; a guide that samples its latent from another distribution."""
    program = coin(6)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", fn(program), infer=infer)

    return Functions(program.model, guide, *program.parameters)


def prior_of(fn):
    program = coin(6)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", fn)
            pyro.sample("x", dist.Normal(program.theta * d, 1.0), obs=x)

    return Functions(model, program.guide, *program.parameters)


def coins(program):
    return dist.Bernoulli(logits=program.a)


def geometric(program):
    return dist.Geometric(logits=program.a)


REFUSED = {
    "another discrete latent": (
        lambda: guided(geometric),
        list(OURS),
        r"Bernoulli or reparameterized latents .*'d', Geo",
    ),
    "a mark": (lambda: guided(coins, gradient="score"), list(OURS), r"latent 'd' without a mark"),
    "enumeration": (lambda: guided(coins, enumerate="parallel"), list(OURS), r"latent 'd' without a mark"),
    "another prior": (
        lambda: prior_of(dist.Binomial(1, torch.full((6,), 0.5, dtype=torch.float64))),
        ["rebar", "concrete"],
        r"Bernoulli distribution of latent 'd' in model and guide .* got Binomial",
    ),
}


@pytest.mark.parametrize(("what", "name"), [(what, name) for what in REFUSED for name in REFUSED[what][1]])
def test_what_has_no_gradient_is_refused_in_one_line(what, name):
    make, _, match = REFUSED[what]
    program = make()
    with pytest.raises(InputError, match=match) as caught:
        gradients(replace(OURS[name], num_particles=2), program, data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (lambda: elbo.Concrete(temperature=0.0), "a finite temperature above 0; got 0.0"),
        (lambda: elbo.Concrete(density="soft"), "one of concrete, mass; got 'soft'"),
        (lambda: elbo.Rebar(temperature=-1.0), "a finite temperature above 0; got -1.0"),
        (lambda: elbo.Rebar(eta=math.inf), "a finite eta; got inf"),
        (lambda: elbo.DisARM(0), "num_particles that is a whole number"),
        (lambda: elbo.Weighted(elbo.DisARM(2), 0.5), "whose KL can be weighted"),
        (
            lambda: gradients(elbo.DisARM(2, strategies={"d": "enumerate"}), coin(6), data()),
            "'d' without a mark .*'enum",
        ),
        (lambda: gradients(elbo.Rebar(strategies={"e": "score"}), coin(6), data()), "latents of the guide, d; got 'e'"),
        (lambda: gradients(elbo.DisARM(3), coin(6), data()), r"a multiple of 2 .*got 3. Try num_particles=2"),
        (lambda: gradients(elbo.ByAutograd(elbo.Concrete(2)), coin(6), data()), r"independent particles"),
        (lambda: gradients(elbo.ByAutograd(elbo.DisARM(2)), coin(6), data()), r"independent particles"),
        (lambda: gradients(elbo.ByAutograd(elbo.Rebar(2)), coin(6), data()), r"independent particles"),
    ],
)
def test_arguments_that_are_refused(estimator, match):
    with pytest.raises(InputError, match=match):
        estimator()


def test_a_guide_with_noise_of_its_own_is_refused_one_by_one():
    """A pair shares its logits; in a plate, the trial of the particles refuses such noise."""
    program = guided(lambda p: dist.Bernoulli(logits=p.a + torch.randn(())))
    with pytest.raises(InputError, match="one value of the logits of 'd'"):
        gradients(elbo.DisARM(2, vectorize_particles=False), program, data())
    with pytest.raises(InputError, match="noise of its own"):
        gradients(elbo.DisARM(2), program, data())


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_latents_than_at_the_first_call_is_refused(first, then, vectorize):
    def latents(x, count):
        with pyro.plate("data", len(x), dim=-1):
            return sum(pyro.sample(f"d{i}", dist.Bernoulli(torch.full_like(x, 0.4))) for i in range(count))

    def model(x, count):
        d = latents(x, count)
        with pyro.plate("more", len(x), dim=-1):
            pyro.sample("x", dist.Normal(d, 1.0), obs=x)

    estimator = elbo.DisARM(6, vectorize_particles=vectorize)
    estimator.loss(model, latents, data(), first)
    with pytest.raises(InputError, match=f"as many Bernoulli latents .* got {then} in place of {first}"):
        estimator.loss(model, latents, data(), then)
