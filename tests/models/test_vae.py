"""The VAE as a Pyro program: shapes for any event, the textbook's densities, and invalid arguments."""

import math

import pyro
import pytest
import torch
from checks import assert_close
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, InputError, elbo
from pyro_vae.elbo import analytic
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.models.networks import ACTIVATIONS, MLP
from pyro_vae.program.contexts import own_store
from pyro_vae.program.tracing import trace_program
from pyro_vae.program.validation import check_program

SHAPES = [(7,), (8, 8), (28, 20), (3, 5, 4), (1, 28, 28)]
LIKELIHOODS = ["bernoulli", "gaussian:scale=0.2", "learned_gaussian:min_scale=0.1,mean_link=sigmoid"]


@pytest.mark.parametrize("event_shape", SHAPES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_program_of_any_event_shape(event_shape, likelihood, device):
    vae = VAE(event_shape, latent_dim=3, hidden=(6, 5), likelihood=likelihood).to(device)
    x = torch.bernoulli(torch.full((4, *event_shape), 0.5, device=device))
    check_program(vae, x)
    with own_store(vae):
        for particles, leading in ((None, (4,)), (1, (1, 4)), (5, (5, 4))):
            guide_trace, model_trace = trace_program(vae, x, particles)
            assert guide_trace.nodes["z"]["value"].shape == (*leading, 3)
            assert model_trace.nodes["x"]["fn"].batch_shape == leading
            assert model_trace.nodes["x"]["fn"].event_shape == event_shape


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_terms_are_the_textbooks(likelihood):
    """Log p(x|z), log p(z), log q(z|x) of the traces equal the hand-written ones at the same z."""
    vae = VAE((4, 3), latent_dim=2, hidden=(5,), likelihood=likelihood).double()
    x = torch.bernoulli(torch.full((6, 4, 3), 0.5, dtype=torch.float64))
    with own_store(vae), torch.random.fork_rng():
        torch.manual_seed(0)
        terms = draw_terms(vae, x, num_particles=3)
        torch.manual_seed(0)
        noise = torch.randn(3, 6, 2, dtype=torch.float64)
    loc, log_scale = vae.encoder(x).unbind(-2)
    z = analytic.reparameterize(loc, log_scale, noise)
    heads = [head.flatten(2) for head in vae.decoder(z).unbind(-3)]
    if likelihood == "bernoulli":
        expected = analytic.log_bernoulli(x.flatten(1), *heads)
    elif likelihood.startswith("gaussian"):
        expected = analytic.log_gaussian(x.flatten(1), heads[0], torch.tensor(0.2, dtype=torch.float64).log())
    else:
        floor = torch.log(0.1 + heads[1].exp())
        expected = analytic.log_gaussian(x.flatten(1), torch.sigmoid(heads[0]), floor)
    assert_close(terms.log_px_z, expected)
    assert_close(terms.log_pz, analytic.log_standard_normal(z))
    assert_close(terms.log_qz, analytic.log_gaussian(z, loc, log_scale))
    assert_close(terms.log_weight, terms.log_px_z + terms.log_pz - terms.log_qz)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_mean_log_weight_is_minus_pyros_loss(num_particles):
    vae = VAE((4, 3), latent_dim=2, hidden=(5,)).double()
    x = torch.bernoulli(torch.full((6, 4, 3), 0.5, dtype=torch.float64))
    with own_store(vae), torch.random.fork_rng():
        torch.manual_seed(1)
        loss = elbo.ESTIMATORS["trace_elbo"](num_particles).loss(vae.model, vae.guide, x)
        torch.manual_seed(1)
        terms = draw_terms(vae, x, num_particles)
    assert terms.log_weight.mean(0).sum().item() == pytest.approx(-loss, rel=1e-12)


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(num_particles=3)])
def test_stock_svi_trains_it(loss):
    """In a script that uses nothing else of this package."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        vae = VAE((8, 8), latent_dim=2, hidden=(16,))
        x = torch.bernoulli(torch.full((32, 8, 8), 0.1))
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
        losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_estimators_state_their_nesting_and_particles():
    for make in elbo.ESTIMATORS.values():
        estimator = make(num_particles=7)
        nesting = math.inf if isinstance(estimator, elbo.Estimator) else 2  # found from the program; data, particles
        assert (estimator.num_particles, estimator.max_plate_nesting) == (7, nesting)
        assert isinstance(estimator, pyro.infer.ELBO)


def test_parts_can_be_given():
    class Prior(torch.nn.Module):
        def forward(self):
            return pyro.distributions.Normal(torch.ones(2), torch.ones(2)).to_event(1)

    decoder = MLP((2,), (3,), hidden=())
    vae = VAE((3,), latent_dim=2, prior=Prior(), decoder=decoder)
    assert vae.decoder is decoder
    with own_store(vae):
        _, model_trace = trace_program(vae, torch.ones(4, 3))
    assert model_trace.nodes["z"]["fn"].mean.tolist() == [[1.0, 1.0]] * 4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_maps_each_row_alone(activation):
    """Broadcasting over leading dimensions equals mapping every row by itself."""
    net = MLP((2, 3), (4,), heads=2, hidden=(5,), activation=activation).double()
    x = torch.randn(3, 6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([torch.stack([net(x[k, b]) for b in range(6)]) for k in range(3)])
    assert net(x).shape == (3, 6, 2, 4)
    assert_close(net(x), alone)


def test_parameter_count_of_a_paper():
    """A 784-500-20 model with a mean and a log-scale: AEVB's size, 815,824 parameters."""
    vae = VAE((28, 28), latent_dim=20, hidden=(500,))
    assert sum(p.numel() for p in vae.parameters()) == 815_824


BAD = {
    "no latent": (lambda: VAE((8, 8), latent_dim=0), "latent_dim that is a whole number of at least 1; got 0"),
    "negative latent": (lambda: VAE((8, 8), latent_dim=-2), "got -2"),
    "fractional latent": (lambda: VAE((8, 8), latent_dim=2.5), "got 2.5"),
    "empty layer": (lambda: VAE((8, 8), hidden=(0,)), r"hidden as a sequence of whole numbers above 0; got \(0,\)"),
    "negative layer": (lambda: VAE((8, 8), hidden=(400, -1)), r"got \(400, -1\)"),
    "empty event": (lambda: VAE((8, 0)), r"event_shape as a sequence of whole numbers above 0; got \(8, 0\)"),
    "event as a number": (lambda: VAE(64), r"got 64\. Try event_shape=\(64,\)"),
    "hidden as a number": (lambda: VAE((8, 8), hidden=400), r"got 400\. Try hidden=\(400,\)"),
    "hidden as text": (lambda: VAE((8, 8), hidden="400"), "whole numbers above 0; got '400'"),
    "likelihood": (lambda: VAE((8, 8), likelihood="bernouli"), "Try 'bernoulli'"),
    "likelihood's argument": (lambda: VAE((8, 8), likelihood="gaussian:sigma=1"), "got 'sigma'"),
    "activation": (lambda: VAE((8, 8), activation="reul"), "Try 'relu'"),
    "other images": (lambda: VAE((8, 8)).encode(torch.zeros(3, 28, 28)), r"shape \(..., 8, 8\); got \(3, 28, 28\)"),
    "particles": (lambda: elbo.trace_elbo(num_particles=0), "num_particles that is a whole number of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()
