"""Programs that every estimator, or every sleep phase, refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import shapes_differ

from pyro_vae import InputError, elbo
from pyro_vae.elbo.catalogue import ESTIMATORS

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if not n.startswith("trace_")])
def test_latents_of_different_shapes_are_refused_by_every_estimator(name):
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=r"\(1,\) in the guide, \(4,\) in the model"):
        ESTIMATORS[name]().loss_and_grads(*shapes_differ(), X)


def test_the_sleep_phase_samples_every_observation():
    seen = []

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x), dim=-1):
            seen.append((x, y))
            pyro.sample("z", dist.Normal(x[..., :1] + y[..., None], 1.0).to_event(1))

    def other(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x + 0)

    for estimator in (elbo.WakeSleep(2), elbo.RWS(2, sleep_phi=1.0)):
        y = X[:, 0].clone()
        seen.clear()
        estimator.loss_and_grads(model, guide, X, y)
        slept_x, slept_y = seen[-1]
        assert not torch.equal(slept_x, X)
        assert not torch.equal(slept_y, y)
        with pytest.raises(InputError, match="arguments of model and guide, for the sleep phase; got site 'x', whose"):
            estimator.loss_and_grads(other, guide, X, y)
    assert math.isfinite(elbo.RWS(2).loss(model, guide, X, X[:, 0]))
