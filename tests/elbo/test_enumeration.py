"""Enumerated sites: the sum over their values is Pyro's, or brute force's; what cannot be summed is refused."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.labels import M2
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyro_vae import InputError, elbo
from pyro_vae.elbo import draw_terms
from pyro_vae.elbo.catalogue import as_estimator
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.values import Values
from pyro_vae.program import as_program, own_store

PARALLEL = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Two:
    """A label of three values, and a coin that depends on it; x ~ N(2 θ[c] + e, 1)."""

    def __init__(self, infer):
        self.infer = infer
        self.parameters = [torch.randn(n).requires_grad_() for n in (3, 3, 1)]
        self.x = torch.randn(4)

    def model(self, x):
        theta = self.parameters[0]
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3)))
            e = pyro.sample("e", dist.Bernoulli(torch.sigmoid(theta[c])))
            pyro.sample("x", dist.Normal(2 * theta[c] + e, 1.0), obs=x)

    def guide(self, x):
        _, a, w = self.parameters
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=a * x[:, None]), infer=self.infer)
            pyro.sample("e", dist.Bernoulli(torch.sigmoid(w * x + 0.3 * c)), infer=self.infer)

    def step(self, estimator):
        loss = estimator.differentiable_loss(self.model, self.guide, self.x)
        return [loss.detach(), *torch.autograd.grad(loss, self.parameters)]

    def brute_force(self, count, of_weights):
        """Minus the bound of ``count`` particles, summed over the examples: a loop over all their values."""
        theta, a, w = self.parameters
        normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
        each = {}
        for c, e in itertools.product(range(3), range(2)):
            c_, e_ = torch.tensor(c), torch.tensor(float(e))
            log_q = torch.distributions.Categorical(logits=a * self.x[:, None]).log_prob(c_)
            log_q = log_q + bernoulli(torch.sigmoid(w * self.x + 0.3 * c)).log_prob(e_)
            log_p = bernoulli(torch.sigmoid(theta[c])).log_prob(e_) - math.log(3)
            each[c, e] = log_q, log_p + normal(2 * theta[c] + e, 1.0).log_prob(self.x) - log_q
        total = 0.0
        for particles in itertools.product(each.values(), repeat=count):
            log_q, log_w = (torch.stack(part) for part in zip(*particles, strict=True))
            total = total + (log_q.sum(0).exp() * of_weights(log_w)).sum()
        return [-total.detach(), *torch.autograd.grad(-total, self.parameters)]


def assert_equal(found, expected, tolerance=1e-10):
    for ours, other in zip(found, expected, strict=True):
        assert torch.allclose(ours, other, rtol=tolerance, atol=tolerance)


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


ELBOS = [
    elbo.SampledKL(1),
    elbo.SampledKL(2),
    elbo.SampledKL(2, vectorize_particles=False),
    elbo.STL(1),
    elbo.AnalyticKL(1),
    elbo.AnalyticKL(2),
    elbo.IWAE(1),
    elbo.Reinforce(2),
    elbo.ByAutograd(elbo.SampledKL(1)),
]


@pytest.mark.parametrize("estimator", ELBOS, ids=repr)
def test_the_elbo_is_that_of_trace_enum_elbo(estimator):
    """Value and gradient: nothing is sampled."""
    program = Two(PARALLEL)
    assert_equal(program.step(estimator), program.step(TraceEnum_ELBO(max_plate_nesting=1)))
    assert estimator.loss(program.model, program.guide, program.x) == pytest.approx(program.step(estimator)[0].item())


@pytest.mark.parametrize(
    "estimator",
    [elbo.IWAE(2), elbo.DReG(2), elbo.VIMCO(2), elbo.OVIS(2), elbo.IWAE(2, vectorize_particles=False), elbo.IWAE(3)],
    ids=repr,
)
def test_the_importance_weighted_bound_is_the_sum_over_all_particles_values(estimator):
    program = Two(PARALLEL)
    assert_equal(program.step(estimator), program.brute_force(estimator.num_particles, log_mean_exp))


def test_wrong_combinations_would_be_found(monkeypatch):
    """All particles at one value, as a plate of examples beside enumerated values would have it."""
    program = Two(PARALLEL)
    monkeypatch.setattr(Values, "combined", lambda self, terms: terms)
    with pytest.raises(AssertionError):
        assert_equal(program.step(elbo.IWAE(2)), program.brute_force(2, log_mean_exp))


@pytest.mark.parametrize("estimator", [elbo.SampledKL(1), elbo.STL(1)], ids=repr)
def test_the_label_of_a_semi_supervised_model_is_summed_as_pyro_sums_it(estimator):
    """On the same noise: the style is sampled for every value of the label."""
    net, x = M2(infer=PARALLEL), torch.bernoulli(torch.full((5, 6), 0.4))
    losses = []
    with pyro.get_param_store().scope():
        for each in (TraceEnum_ELBO(max_plate_nesting=1), estimator, estimator):
            torch.manual_seed(3)
            loss = each.differentiable_loss(net.model, net.guide, x)
            losses.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
    stock, first, second = losses
    assert_equal(first[:1], stock[:1])
    if type(estimator) is elbo.SampledKL:
        assert_equal(first, stock)
    assert_equal(first, second, 1e-14)  # the trial at the first use took no noise


def test_strategies_by_name_are_those_of_the_sites():
    marked, plain = Two({"gradient": "enumerate"}), Two({})
    plain.parameters, plain.x = marked.parameters, marked.x
    by_name = {"c": "enumerate", "e": "enumerate"}
    assert_equal(plain.step(elbo.IWAE(2, strategies=by_name)), marked.step(elbo.IWAE(2)))
    weighted = elbo.Weighted(elbo.SampledKL(1, strategies=by_name), beta=0.5)
    assert_equal(plain.step(weighted), marked.step(elbo.Weighted(elbo.SampledKL(1), beta=0.5)))
    assert repr(elbo.IWAE(2, strategies={"c": "score"})) == "IWAE(strategies={'c': 'score'}, num_particles=2)"
    assert as_estimator("iwae:strategies={c: enumerate, e: enumerate},num_particles=2") == elbo.IWAE(
        2, strategies=by_name
    )
    with pytest.raises(InputError, match=r"strategies for latents of the guide, c, e; got 'd'"):
        plain.step(elbo.IWAE(2, strategies={"d": "score"}))


def test_evaluation_samples_enumerated_sites():
    program = Two(PARALLEL)
    terms = draw_terms(as_program((program.model, program.guide), program.x), program.x, 7)
    assert terms.log_weight.shape == (7, 4)


def test_a_common_scale_multiplies_the_sum():
    program = Two(PARALLEL)
    scaled = Two(PARALLEL)
    scaled.parameters, scaled.x = program.parameters, program.x
    model, guide = scaled.model, scaled.guide
    for factor in (3.0, torch.tensor([1.0, 2.0, 0.5, 3.0])):
        scaled.model = pyro.poutine.scale(model, scale=factor)
        scaled.guide = pyro.poutine.scale(guide, scale=factor)
        found = scaled.step(elbo.IWAE(2))
        if isinstance(factor, float):
            assert_equal(found, [factor * each for each in program.step(elbo.IWAE(2))])
        parts = []
        for number in range(4):
            one = Two(PARALLEL)
            one.parameters, one.x = program.parameters, program.x[number : number + 1]
            weight = factor if isinstance(factor, float) else factor[number]
            parts.append([weight * each for each in one.step(elbo.IWAE(2))])
        assert_equal(found, [sum(each) for each in zip(*parts, strict=True)])


# ---- refused


def coin(fn, infer=PARALLEL, plates=(), decode=lambda z: z):
    """A program with one enumerated site."""

    def latent(x):
        if not plates:
            return pyro.sample("z", fn(x), infer=infer)
        with pyro.plate("inner", plates[0], dim=-2):
            return pyro.sample("z", fn(x), infer=infer).sum(-2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            latent(x)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(decode(latent(x)), 1.0), obs=x)

    return model, guide


def two_coins(x):
    return dist.Bernoulli(0.5 * torch.ones(len(x), 2)).to_event(1)


REFUSED = {
    "infinite support": (coin(lambda x: dist.Poisson(torch.ones_like(x))), "a finite support at site 'z'.*Poisson"),
    "an event of two": (coin(two_coins, decode=lambda z: z.sum(-1)), "a finite support at site 'z'.*Bernoulli, event"),
    "continuous": (coin(lambda x: dist.Normal(x, 1.0)), "a finite support at site 'z'.*Normal"),
    "samples": (coin(lambda x: dist.Bernoulli(0.5 * torch.ones_like(x)), PARALLEL | {"num_samples": 5}), "num_samples"),
    "inner plate": (
        coin(lambda x: dist.Bernoulli(0.5 * torch.ones(2, len(x))), plates=(2,)),
        "enumerated site 'z' in no plates but those that all sites share; got plate 'inner'",
    ),
    "from the left": (
        coin(lambda x: dist.Bernoulli(0.3 * torch.ones_like(x)), decode=lambda z: z - z.sum(0)),
        "broadcasts over the values",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_summed_is_refused(name):
    (model, guide), message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        elbo.SampledKL(1).differentiable_loss(model, guide, torch.randn(3))


def test_too_many_combinations_are_refused():
    program = Two(PARALLEL)
    with pytest.raises(InputError, match=r"at most 65,536 combinations.*got 6 values of c, e for each of 7 particles"):
        program.step(elbo.IWAE(7))


def test_a_site_that_the_model_alone_enumerates_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones_like(x)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match=r"a guide that has site 'z', which the model enumerates.*TraceEnum_ELBO"):
        elbo.SampledKL().loss(model, lambda x: None, torch.randn(3))


def test_examples_that_depend_on_each_other_are_refused():
    norm = nn.BatchNorm1d(1)

    def latent(x):
        return pyro.sample("z", dist.Bernoulli(0.4 * torch.ones_like(x)), infer=PARALLEL)

    def guide(x):
        with pyro.plate("data", len(x)):
            latent(x)

    def model(x):
        with pyro.plate("data", len(x)):
            z = latent(x)
            mean = norm(z.reshape(-1, 1)).reshape(z.shape)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(InputError, match=r"broadcasts over the values|independent given their latents"):
        elbo.SampledKL().loss(model, guide, torch.randn(5))


def test_a_draw_keeps_its_number_of_examples():
    program = Two(PARALLEL)
    draw = Draw(program.model, program.guide, (program.x,), {}, 2)
    assert draw.batch == 4
    assert draw.terms.log_weight.shape == (2, 6**2 * 4)
    assert torch.allclose(draw.probability.reshape(-1, 4).sum(0), torch.ones(4))
    with own_store(as_program((program.model, program.guide), program.x)):
        assert elbo.IWAE(2).bound(as_program((program.model, program.guide), program.x), program.x).value.shape == (4,)


# ---- programs of other shapes, against Pyro's own sum


class Shape:
    """A program with parameters a and θ: ``sites(mode)`` is guide and model in one."""

    def __init__(self, sites, infer):
        self.sites, self.infer = sites, infer
        self.a, self.theta = (torch.tensor(v).requires_grad_() for v in (0.7, -0.4))

    def model(self, x):
        self.sites(self, x, True)

    def guide(self, x):
        self.sites(self, x, False)

    def coin(self, x, model, name="d"):
        if model:
            return pyro.sample(name, dist.Bernoulli(torch.sigmoid(self.theta)))
        return pyro.sample(name, dist.Bernoulli(logits=self.a * x), infer=self.infer)

    def step(self, estimator):
        loss = estimator.differentiable_loss(self.model, self.guide, X)
        return [loss.detach(), *torch.autograd.grad(loss, (self.a, self.theta))]


X = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64)


def data_plate_of_two_dimensions(program, x, model):
    with pyro.plate("data", 6, dim=-2):
        d = program.coin(x[:, None], model)
        if model:
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(2 * d, 1.0), obs=x[:, None] + torch.arange(3.0))


def shared_by_all(program, x, model):
    prior, logits = torch.tensor([0.2, 0.3, 0.5]), torch.stack([program.a, -program.a, 2 * program.a])
    d = pyro.sample("d", dist.Categorical(prior)) if model else None
    if not model:
        pyro.sample("d", dist.Categorical(logits=logits), infer=program.infer)
    else:
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(d * program.theta, 1.0), obs=x)


def masked(program, x, model):
    with pyro.plate("data", 6), pyro.poutine.mask(mask=torch.tensor([True, False, True, True, False, True])):
        d = program.coin(x, model)
        if model:
            pyro.sample("x", dist.Normal(2 * d, 1.0), obs=x)


def subsampled(program, x, model):
    with pyro.plate("data", 12, subsample=torch.arange(6)):
        d = program.coin(x, model)
        if model:
            pyro.sample("x", dist.Normal(2 * d, 1.0), obs=x)


def chain(program, x, model):
    """Dimensions of a Markov chain, which Pyro uses again, are not."""
    with pyro.plate("data", 6):
        d = torch.zeros(6)
        for t in pyro.markov(range(3)):
            d = program.coin(x + d if not model else x, model, f"d{t}")
            if model:
                pyro.sample(f"x{t}", dist.Normal(d * program.theta, 1.0), obs=x + t)


def with_factors(program, x, model):
    with pyro.plate("data", 6):
        d = program.coin(x, model)
        if model:
            pyro.factor("more", -d * program.theta)
            pyro.sample("x", dist.Normal(2 * d, 1.0), obs=x)
        else:
            pyro.factor("own", 0.3 * d * program.a, has_rsample=True)


SHAPES = [data_plate_of_two_dimensions, shared_by_all, masked, subsampled, chain, with_factors]


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("sites", SHAPES, ids=lambda sites: sites.__name__)
def test_programs_of_other_shapes_are_summed_as_pyro_sums_them(sites, vectorize):
    stock = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    expected = Shape(sites, PARALLEL).step(stock)
    for estimator in (elbo.SampledKL(1), elbo.STL(1), elbo.SampledKL(2, vectorize_particles=vectorize)):
        assert_equal(Shape(sites, PARALLEL).step(estimator), expected)


@pytest.mark.parametrize("sites", [s for s in SHAPES if s is not with_factors], ids=lambda sites: sites.__name__)
def test_the_measure_valued_gradient_of_the_guide_has_the_same_mean(sites):
    """On every draw where there is one variable; of a chain on average over 400."""
    exact = Shape(sites, PARALLEL).step(elbo.SampledKL(1))[1]
    program = Shape(sites, {"gradient": "measure_valued"})
    if sites is chain:
        found = torch.stack([program.step(elbo.SampledKL(1))[1] for _ in range(400)])
        assert abs(found.mean() - exact) < 5 * found.std() / 20
    else:
        assert_equal([program.step(elbo.SampledKL(1))[1]], [exact])


def test_examples_compared_with_each_other_are_refused():
    """With all examples at one value the trial of enumeration sees nothing: their dependence is a trial of its own."""

    def latent(x):
        return pyro.sample("z", dist.Bernoulli(0.4 * torch.ones_like(x)), infer=PARALLEL)

    def guide(x):
        with pyro.plate("data", len(x)):
            latent(x)

    def model(x):
        with pyro.plate("data", len(x)):
            z = latent(x)
            pyro.sample("x", dist.Normal(z - z.mean(-1, keepdim=True), 1.0), obs=x)

    with pytest.raises(InputError, match=r"independent given their latents, for a sum over each example's own values"):
        elbo.SampledKL().loss(model, guide, torch.randn(5))
