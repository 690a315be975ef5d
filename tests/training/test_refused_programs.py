"""Programs and data that ``fit`` refuses before the first step."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import shapes_differ
from toys import (
    binary,
)

from pyro_vae import VAE, InputError, fit
from pyro_vae.elbo import analytic
from pyro_vae.models import StandardNormal

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def test_a_scale_multiplies_the_loss_and_not_the_held_out_bound():
    """Pyro's VAE example has no subsample scaling (issue 1437): how a model is written must not change the bound."""

    def model(x):
        with pyro.plate("data", 8, subsample_size=4, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x[index])

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", 8, subsample_size=4, dim=-1) as index:
            pyro.sample("z", dist.Normal(weight * x[index, 0], 1.0))

    held_out = {"validation": binary(8).float()}
    with pytest.raises(
        InputError, match="a plate of the 8 examples that all sites share, for a held-out bound of each; got site 'z'"
    ):
        fit((model, guide), binary(8).float(), epochs=1, batch_size=4, device="cpu", **held_out)

    class Scaled(VAE):
        def model(self, x):
            with pyro.poutine.scale(scale=100.0):
                super().model(x)

        def guide(self, x):
            with pyro.poutine.scale(scale=100.0):
                super().guide(x)

    programs = []
    for kind in (VAE, Scaled):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            programs.append(kind((6,), 2, (4,)))
    settings = {"optimizer": "sgd", "epochs": 1, "batch_size": 4, "device": "cpu", **held_out}
    pairs = zip(programs, (1e-3, 1e-5), strict=True)
    plain, scaled = (fit(program, binary(8).float(), learning_rate=rate, **settings) for program, rate in pairs)
    assert scaled.history[0].bound == pytest.approx(plain.history[0].bound, rel=1e-5)
    assert scaled.history[0].objective == pytest.approx(100 * plain.history[0].objective, rel=1e-5)


def test_latents_of_different_shapes_are_refused_before_training():
    with pytest.raises(InputError, match="one event shape of latent 'z'"):
        fit(shapes_differ(), X, epochs=1, batch_size=4, device="cpu")
    with pytest.raises(InputError, match="one event shape of latent 'z'"):
        fit(VAE((3,), 2, (4,), "gaussian", prior=StandardNormal(3)), X, epochs=1, batch_size=4, device="cpu")


def test_grey_pixels_under_a_bernoulli_are_refused():
    """Pyro's VAE example trains on them: what it reports is no density, since it does not integrate to 1."""
    grey = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
    logits = torch.tensor([1.0], dtype=torch.float64)
    density = analytic.log_bernoulli(grey, logits).exp()
    assert torch.trapezoid(density, grey[:, 0]).item() == pytest.approx(math.tanh(0.5), abs=1e-6)  # 0.46
    images = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="binary pixels: a Bernoulli gives grey levels no probability"):
        fit(VAE((6,), 2, (4,), "bernoulli"), images, epochs=1, batch_size=4, device="cpu")


@pytest.mark.parametrize("batch_size", [4, 12])
def test_a_parameter_for_each_example_is_refused_by_its_size(batch_size):
    """Also where one batch holds all: an epoch takes them in another order, and each would get another's parameter."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    expected = "on batches of any size: 12 examples do, 11 do not; got .*Shape mismatch inside plate.*z"
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=expected) as caught:
        fit((model, guide), X, epochs=1, batch_size=batch_size, device="cpu", estimator="sampled_kl")
    assert "\n" not in str(caught.value)
