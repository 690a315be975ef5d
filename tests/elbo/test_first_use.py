"""What happens at the first use of a program, and what an estimator reads from guides that run the model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.effect import AutoNormalMessenger
from pyro.infer.reparam import ConjugateReparam
from toys import seeded

from pyro_vae import InputError, elbo


def shared_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("make", [AutoNormal, AutoNormalMessenger])
@pytest.mark.parametrize("estimator", [elbo.SampledKL(1), elbo.IWAE(1), elbo.STL(1)], ids=["sampled_kl", "iwae", "stl"])
def test_a_guide_that_runs_the_model_keeps_the_likelihood(make, estimator):
    """A messenger's guide observes what the model observes: that is the model's density, not the guide's."""
    x = torch.tensor([2.5, 3.0, 3.5])
    with pyro.get_param_store().scope():
        guide = make(shared_mean)
        guide(x)
        ours, stock = (seeded(each.loss, shared_mean, guide, x) for each in (estimator, Trace_ELBO()))
    assert ours == pytest.approx(stock, rel=1e-5)


def test_parameters_made_at_the_first_use_follow_the_seed():
    """The trial of particles is not to start them all at one seed of its own."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def first(estimator, seed):
        def guide(x):
            loc = pyro.param("loc", lambda: torch.randn(()))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0))

        with pyro.get_param_store().scope():
            seeded(estimator.loss, model, guide, torch.ones(3), seed=seed)
            return pyro.param("loc").item()

    assert first(elbo.IWAE(5), 1) != first(elbo.IWAE(5), 2)
    assert first(elbo.IWAE(5), 1) == first(Trace_ELBO(), 1)


def test_samples_outside_the_trace_are_given_to_both_sides_of_the_trial():
    """Pyro's ``ConjugateReparam`` samples in the model without a record; a plate of particles expands it."""

    @pyro.poutine.reparam(config={"p": ConjugateReparam(dist.Beta(3.0, 4.0))})
    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Binomial(10, p), obs=x)

    x = torch.tensor(4.0)
    losses = [seeded(elbo.SampledKL(50).loss, model, lambda x: None, x, seed=s) for s in range(20)]
    expected = [seeded(Trace_ELBO(50).loss, model, lambda x: None, x, seed=s) for s in range(20, 40)]
    found, truth = torch.tensor(losses), torch.tensor(expected)
    assert abs(found.mean() - truth.mean()) <= 5 * (found.var() / 20 + truth.var() / 20).sqrt()


def test_noise_of_its_own_is_refused_in_a_plate_and_right_one_by_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.randn(()), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(InputError, match=r"site 'x' with noise of its own, outside pyro\.sample"):
        elbo.IWAE(3).loss(model, guide, torch.ones(4))
    assert elbo.IWAE(3, vectorize_particles=False).loss(model, guide, torch.ones(4)) > 0


def test_a_factor_of_a_guide_must_say_whether_it_is_reparameterized():
    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.factor("f", z)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match="has_rsample at factor 'f' of the guide; got none"):
        elbo.SampledKL().loss(model, guide, torch.ones(4))


class Slotted:
    """A model that cannot be referred to weakly."""

    __slots__ = ()

    def __call__(self, x):
        shared_mean(x)


def test_a_model_with_slots_is_tried_at_every_use():
    def guide(x):
        pyro.sample("mean", dist.Normal(1.0, 1.0))

    assert elbo.IWAE(3).loss(Slotted(), guide, torch.ones(4)) > 0


def test_a_dead_particle_leaves_the_gradient_finite():
    """Its weight is 0: the loss, and its gradient, are those of the others."""

    def program(low):
        loc = torch.tensor(0.3, requires_grad=True)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                inside = (z > low).float().log()  # −∞ below
                pyro.factor("inside", inside)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]))

        return model, guide, loc

    for estimator in (elbo.IWAE(8), elbo.DReG(8), elbo.VIMCO(8), elbo.RWS(8), elbo.Renyi(8, alpha=0.5)):
        model, guide, loc = program(0.0)
        loss = seeded(estimator.differentiable_loss, model, guide, torch.ones(50))
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, loc)[0])


@pytest.mark.parametrize("count", [2, 5000])
def test_the_advantage_needs_memory_in_proportion_to_the_particles(count):
    def model(x):
        with pyro.plate("data", len(x)):
            d = pyro.sample("d", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(d, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("d", dist.Bernoulli(torch.tensor(0.4)))

    for kind in (elbo.SampledKL, elbo.STL, elbo.IWAE, elbo.DReG):
        terms = elbo.Terms(*(torch.randn(count, 3) for _ in range(3)))
        estimator = kind(count)
        assert estimator.advantage(terms).shape == (count, 3)
        if count == 2:
            generic = elbo.CIWAE.advantage if kind is None else elbo.Estimator.advantage
            assert torch.allclose(estimator.advantage(terms), generic(estimator, terms), atol=1e-5)
        assert estimator.loss(model, guide, torch.ones(3)) > 0


def beside_a_global_latent(estimator, count, draws):
    """Draws of the gradient of the first of many local logits, beside a latent that all share."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            d = pyro.sample("d", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(d + m, 1.0), obs=x)

    logits = torch.zeros(count, requires_grad=True)

    def guide(x):
        pyro.sample("m", dist.Normal(0.3, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("d", dist.Bernoulli(logits=logits))

    x = torch.linspace(-1, 2, count)
    found = []
    for seed in range(draws):
        loss = seeded(estimator.differentiable_loss, model, guide, x, seed=seed)
        found.append(torch.autograd.grad(loss, logits)[0][0].item())
    return torch.tensor(found)


@pytest.mark.parametrize("kind", [elbo.SampledKL, elbo.STL, elbo.Reinforce])
@pytest.mark.parametrize("vectorize", [True, False])
def test_a_local_score_is_weighted_by_its_own_element(kind, vectorize):
    """Its noise does not grow with the number of examples, and its mean is that of Pyro's ``Trace_ELBO``."""
    estimator = kind(3, vectorize_particles=vectorize)
    few, many = (beside_a_global_latent(estimator, count, 150) for count in (5, 200))
    assert many.std() < 1.5 * few.std()
    stock = beside_a_global_latent(Trace_ELBO(3), 200, 150)
    assert abs(many.mean() - stock.mean()) <= 5 * (many.var() / 150 + stock.var() / 150).sqrt()


@pytest.mark.parametrize("how", ["scores", "measured"])
def test_an_unknown_gradient_of_a_site_is_refused(how):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0), infer={"gradient": how})

    with pytest.raises(InputError, match=f"as gradient of site 'z'; got '{how}'"):
        elbo.SampledKL().loss(model, guide, torch.ones(3))


def test_batch_normalisation_in_the_encoder_trains_with_every_estimator():
    """The check of independent examples must not touch buffers that a graph still needs."""
    encoder, decoder = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)), torch.nn.Linear(2, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    for estimator in (elbo.DReG(3), elbo.Reinforce(3), elbo.RWS(3), elbo.TVO(3)):

        def fresh(x):
            return guide(x)

        estimator.loss_and_grads(model, fresh, torch.randn(4, 3))
        assert encoder[0].weight.grad.isfinite().all()


def test_the_sleep_phase_refuses_a_model_that_looks_at_x():
    """Teacher forcing: what it samples in the place of x is no sample of p(x, z)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], -1)
            pyro.sample("x", dist.Normal(before + z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    x = torch.randn(4, 3)
    for estimator in (elbo.WakeSleep(1), elbo.RWS(3, sleep_phi=1.0)):
        with pytest.raises(InputError, match=r"a model that does not look at x, to simulate from it; got .* site 'x'"):
            estimator.differentiable_loss(model, guide, x)
    assert elbo.RWS(3).loss(model, guide, x) > 0


def test_the_sleep_phase_takes_keyword_arguments():
    def model(*, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(*, x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x, 1.0))

    with pyro.get_param_store().scope():
        assert elbo.WakeSleep(2).loss_and_grads(model, guide, x=torch.ones(4)) > 0
        assert pyro.param("loc").unconstrained().grad.isfinite()


def normalised(channels, flat):
    """A decoder with batch normalisation, over the last dimension (``flat``) or over whichever comes second."""
    norm = torch.nn.BatchNorm1d(channels)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(channels), 1.0).to_event(1))
            h = norm(z.reshape(-1, channels)).reshape(z.shape) if flat else norm(z)
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

    loc = torch.zeros(channels, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x), channels]).to_event(1))

    return norm, model, guide


def test_another_mode_of_a_module_is_another_program():
    """Pyro's functions have no mode of their own; their modules have."""
    norm, model, guide = normalised(3, flat=True)
    x = torch.randn(4, 3)
    norm.eval()
    assert elbo.Reinforce(3).loss_and_grads(model, guide, x) > 0
    norm.train()
    with pytest.raises(InputError, match="one by one"):
        elbo.Reinforce(3).loss_and_grads(model, guide, x)
    with pytest.raises(InputError, match="whose log-densities change with the latents of other examples"):
        elbo.VIMCO(3, vectorize_particles=False).loss_and_grads(model, guide, x)
    assert elbo.Reinforce(3, vectorize_particles=False).loss_and_grads(model, guide, x) > 0
    assert elbo.SampledKL(1).loss_and_grads(model, guide, x) > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_normalisation_over_the_batch_is_found_with_fresh_statistics(training):
    """Where the batch equals the width it runs; statistics of 0 and 1 would hide it."""
    norm, model, guide = normalised(4, flat=False)
    norm.train(training)
    before = norm.running_mean
    with pytest.raises(InputError, match=r"site 'x' with .* in a plate of 2 and .* one by one"):
        elbo.IWAE(3).loss(model, guide, torch.randn(4, 4))
    assert norm.running_mean is before
    assert not norm.running_mean.any()


def test_a_delta_of_a_bare_parameter_has_no_score_to_split():
    point = torch.nn.Parameter(torch.tensor(0.5))

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Delta(point))

    with pytest.raises(InputError, match="a Delta of the guide's own parameters"):
        elbo.DReG(3, vectorize_particles=False).differentiable_loss(model, guide, torch.ones(4))
    losses = [elbo.STL(2, vectorize_particles=False), elbo.SampledKL(1)]
    found = [torch.autograd.grad(each.differentiable_loss(model, guide, torch.ones(4)), point)[0] for each in losses]
    assert torch.allclose(*found)
