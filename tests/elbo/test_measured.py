"""Measure-valued gradients: exact where nothing is sampled, exact on average elsewhere; the rest is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean
from torch import nn

from pyro_vae import InputError, elbo, fit
from pyro_vae.elbo import measured

DRAWS = 40_000
MEASURED = {"gradient": "measure_valued"}


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class One:
    """One latent z; x ~ N(θ f(z), 1)."""

    def __init__(self, prior, posterior, infer, of=lambda z: z, x=0.7, copies=3):
        self.prior, self.posterior, self.infer, self.of = prior, posterior, infer, of
        self.x = torch.full((copies,), x)
        self.theta, self.a = (torch.full((copies,), v).requires_grad_() for v in (0.9, 0.4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(self.theta * self.of(z), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.a), infer=self.infer)

    def gradient(self, estimator):
        loss = estimator.differentiable_loss(self.model, self.guide, self.x)
        return -torch.autograd.grad(loss, self.a)[0]


def bernoulli(a):
    return dist.Bernoulli(logits=a)


def three(a):
    return dist.Categorical(logits=torch.stack([a, -a, 2 * a], -1))


EXACT = {  # nothing is left to chance with one particle
    "bernoulli": (lambda x: dist.Bernoulli(0.3 * torch.ones_like(x)), bernoulli),
    "categorical": (lambda x: dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), three),
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_a_discrete_latent_alone_has_the_enumerated_gradient(name, vectorize):
    prior, posterior = EXACT[name]
    by_measure, by_sum = (One(prior, posterior, {"gradient": how}) for how in ("measure_valued", "enumerate"))
    found = by_measure.gradient(elbo.SampledKL(1))
    assert torch.allclose(found, by_sum.gradient(elbo.SampledKL(1)), atol=1e-12)
    for estimator in (elbo.SampledKL(4, vectorize_particles=vectorize), elbo.STL(1), elbo.AnalyticKL(1)):
        if name == "bernoulli" or not isinstance(estimator, elbo.AnalyticKL):
            assert torch.allclose(by_measure.gradient(estimator), by_sum.gradient(elbo.SampledKL(1)), atol=1e-12)


def poisson_truth(a):
    """d/da of the ELBO of z ~ Poisson(exp a), by a sum over z."""
    a = torch.tensor(a).requires_grad_()
    z = torch.arange(60.0)
    log_q = torch.distributions.Poisson(a.exp()).log_prob(z)
    log_p = torch.distributions.Poisson(1.5).log_prob(z) + torch.distributions.Normal(0.9 * z / 4, 1.0).log_prob(
        torch.tensor(0.7)
    )
    return torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), a)[0].item()


def test_a_poisson_latent():
    one = One(
        lambda x: dist.Poisson(1.5 * torch.ones_like(x)),
        lambda a: dist.Poisson(a.exp()),
        MEASURED,
        lambda z: z / 4,
        copies=DRAWS,
    )
    assert_mean(one.gradient(elbo.SampledKL(1)), poisson_truth(0.4))


def event_truth(how, draws):
    prior = lambda x: dist.Bernoulli(0.3 * torch.ones(len(x), 3)).to_event(1)  # noqa: E731
    posterior = lambda a: dist.Bernoulli(logits=a[:, None] * torch.tensor([1.0, -2.0, 0.5])).to_event(1)  # noqa: E731
    return One(prior, posterior, {"gradient": how}, lambda z: z @ torch.tensor([1.0, 0.5, -1.0]), copies=draws)


@pytest.mark.parametrize("estimator", [elbo.SampledKL(1), elbo.IWAE(2)], ids=repr)
def test_an_event_of_several_variables(estimator):
    """Each has runs of its own. The truth is the score's mean."""
    found, truth = (event_truth(how, DRAWS).gradient(estimator) for how in ("measure_valued", "score"))
    error = math.sqrt((found.var() + truth.var()) / DRAWS)
    assert abs(found.mean() - truth.mean()) < 5 * error
    assert found.var() < truth.var()


def test_a_missing_part_would_be_found(monkeypatch):
    parts = measured.parts
    one = One(lambda x: dist.Normal(0.0 * x, 1.0), lambda a: dist.Normal(a, (0.3 * a).exp()), MEASURED, copies=DRAWS)
    exact = One(lambda x: dist.Normal(0.0 * x, 1.0), lambda a: dist.Normal(a, (0.3 * a).exp()), {}, copies=DRAWS)
    truth = exact.gradient(elbo.SampledKL(1)).mean().item()
    difference = one.gradient(elbo.SampledKL(1)) - exact.gradient(elbo.SampledKL(1))
    assert_mean(difference, 0.0)
    monkeypatch.setattr(measured, "parts", lambda site: parts(site)[:2])  # the mean's alone
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(one.gradient(elbo.SampledKL(1)), truth)


def test_runs_that_share_the_noise_of_the_values_would_be_found(monkeypatch):
    """The noise of later sites must be independent of where the measured one is put."""
    theta = torch.full((DRAWS,), 0.5).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 0.8 * torch.ones(DRAWS)), infer=MEASURED)
            pyro.sample("d", dist.Bernoulli(logits=0.5 * z - 0.3))

    def model(x):
        with pyro.plate("data", len(x)):
            d = pyro.sample("d", dist.Bernoulli(0.5 * torch.ones_like(x)))
            z = pyro.sample("z", dist.Normal(0.4 * d, 1.0))
            pyro.sample("x", dist.Normal(0.9 * z + d, 1.0), obs=x)

    def gradient(how):
        loss = elbo.SampledKL(2, strategies={"z": how}).differentiable_loss(model, guide, torch.full((DRAWS,), 0.7))
        return -torch.autograd.grad(loss, theta)[0]

    truth = torch.cat([gradient("pathwise") for _ in range(4)])
    found = gradient("measure_valued")
    error = math.sqrt(found.var() / DRAWS + truth.var() / len(truth))
    assert abs(found.mean() - truth.mean()) < 5 * error
    parts = measured.parts

    def from_the_runs_own_noise(site):
        state = torch.get_rng_state()
        found = parts(site)
        torch.set_rng_state(state)
        return found

    monkeypatch.setattr(measured, "parts", from_the_runs_own_noise)
    wrong = gradient("measure_valued")
    assert abs(wrong.mean() - truth.mean()) > 5 * error


# ---- refused


def refused(fn, message, estimator=None, infer=MEASURED, plate=None):
    def latent(x):
        if plate:
            with pyro.plate("inner", plate, dim=-2):
                pyro.sample("z", fn(x), infer=infer)
        else:
            pyro.sample("z", fn(x), infer=infer)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            latent(x)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            latent(x)
            pyro.sample("x", dist.Normal(x, 1.0), obs=x)

    with pytest.raises(InputError, match=message):
        (estimator or elbo.SampledKL(1)).differentiable_loss(model, guide, torch.randn(3))


def test_what_has_no_measure_valued_gradient_here_is_refused():
    refused(
        lambda x: dist.Gamma(x.exp(), 1.0), "a Bernoulli, Categorical, Poisson or Normal at measure-valued site 'z'"
    )
    refused(
        lambda x: dist.Bernoulli(0.5 * torch.ones(2, len(x))),
        "measure-valued site 'z' in no plates but those that all sites share; got plate 'inner'",
        plate=2,
    )
    refused(lambda x: dist.Bernoulli(0.5 * torch.ones(len(x))), "VIMCO, which scores all sites", elbo.VIMCO(2))


def test_engine_compiled_refuses():
    net = nn.Linear(2, 1)

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))
                pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, 2]).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("net", self.net)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.net(x)[..., 0], validate_args=False), infer=MEASURED)

    with pytest.raises(InputError, match=r"a step that is run as it is.*engine=\"svi\""):
        fit(Program(), torch.randn(8, 2), estimator="sampled_kl", engine="compiled", epochs=1, batch_size=4)


def test_examples_that_depend_on_each_other_are_refused():
    norm = nn.BatchNorm1d(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(norm(z.reshape(-1, 1)).reshape(z.shape), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0), infer=MEASURED)

    with pytest.raises(InputError, match=r"independent given their latents, for a measure-valued site"):
        elbo.SampledKL().differentiable_loss(model, guide, torch.randn(5))


def test_an_enumerated_site_beside_is_refused():
    def sites(x, z, d):
        with pyro.plate("data", len(x)):
            pyro.sample("d", dist.Bernoulli(0.5 * torch.ones(len(x))), infer=d)
            pyro.sample("z", dist.Normal(x, 1.0), infer=z)

    def model(x):
        sites(x, {}, {})

    def guide(x):
        sites(x, MEASURED, {"gradient": "enumerate"})

    with pytest.raises(InputError, match=r"measure-valued or enumerated sites, not both; got 'z' beside d"):
        elbo.SampledKL().differentiable_loss(model, guide, torch.randn(5))
