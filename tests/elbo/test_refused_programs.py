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


def test_sleep_is_refused_where_only_part_of_the_observations_would_be_sampled():
    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :1] + y[..., None], 1.0).to_event(1))

    for estimator in (elbo.WakeSleep(2), elbo.RWS(2, sleep_phi=1.0)):
        with pytest.raises(InputError, match="one observed site of them, for the sleep phase; got several"):
            estimator.loss_and_grads(model, guide, X, X[:, 0])
    assert math.isfinite(elbo.RWS(2).loss(model, guide, X, X[:, 0]))
