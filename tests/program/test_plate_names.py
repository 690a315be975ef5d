"""A plate of the examples under two names, one in the model and another in the guide: only that is said."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae import InputError, elbo, fit

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TWO = r"one name for the plate in dimension -1.*got 'data' in the model and 'batch' .*Try pyro.plate\('data'"


def local(name):
    """z of each example; the guide's plate has the name given."""
    encoder = nn.Linear(3, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate(name, len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return model, guide


def shared(name, size):
    """Levels of components, in a plate of their own under two names, beside z of each example."""

    def model(x):
        with pyro.plate("components", size):
            level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            total = level.sum(-1)[..., None, None]
            pyro.sample("x", dist.Normal(z + total, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(size))
        with pyro.plate(name, size):
            pyro.sample("level", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("kind", [elbo.SampledKL, elbo.IWAE, elbo.DReG, elbo.VIMCO])
def test_two_names_are_said(kind, vectorized):
    with pyro.get_param_store().scope(), pytest.warns(UserWarning, match=TWO) as caught:
        assert kind(3, vectorize_particles=vectorized).draw(*local("batch"), (X,), {}).batch == 1
    assert all("\n" not in str(one.message) for one in caught)


@pytest.mark.parametrize(
    "pair",
    [
        local("data"),
        shared("components", 2),
        shared("kinds", 2),
        shared("kinds", len(X)),
        (local("data")[0], AutoNormal(local("data")[0])),
    ],
    ids=["one name", "shared, one name", "shared, two names", "shared, as many as examples", "autoguide"],
)
def test_nothing_else_is_said(pair):
    """A plate that only some sites are in is not kept, whatever its name: two names there make no difference."""
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in (elbo.SampledKL(2), elbo.IWAE(2)):
            estimator.loss(*pair, X)


def test_fit_says_it_and_refuses_a_held_out_bound():
    options = {"estimator": "iwae", "engine": "svi", "epochs": 1, "batch_size": 3, "device": "cpu"}
    with pyro.get_param_store().scope(), pytest.warns(UserWarning, match=TWO):
        fit(local("batch"), X, **options)
    with pyro.get_param_store().scope(), pytest.raises(InputError, match="plates of other names in model and guide"):
        fit(local("batch"), X, validation=X, **options)
