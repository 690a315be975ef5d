"""An engine's step leaves global state alone: Pyro's parameter store and the switches of Pyro and torch."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from toys import MAKE, binary, small_vae

from pyro_vae import elbo
from pyro_vae.engines.svi import SVIEngine


def test_a_second_vae_of_the_same_names_trains_its_own_tensors():
    """In Pyro's global store it trains the first one's."""
    x = binary()

    def moved(vae, step):
        before = [p.detach().clone() for p in vae.parameters()]
        step(vae)
        return any(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))

    def in_the_global_store(vae):
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO()).step(x)

    def here(vae):
        with SVIEngine(vae, elbo.IWAE(3)) as engine:
            engine.step(x, learning_rate=0.01)

    with pyro.get_param_store().scope():
        assert moved(small_vae(), in_the_global_store)
        assert not moved(small_vae(), in_the_global_store)
    assert moved(small_vae(), here)
    assert moved(small_vae(), here)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("name", MAKE)
def test_no_global_switch_is_touched(name, validation):
    """Pyro's validation cannot be compiled: compiling used to switch it off for the whole process."""
    vae, x = small_vae(), binary()
    with pyro.validation_enabled(validation), SVIEngine(vae, MAKE[name]()) as engine:
        engine.step(x, learning_rate=0.01)
        MAKE[name]().loss(vae.model, vae.guide, x)
        assert is_validation_enabled() is validation
        assert torch.distributions.Distribution._validate_args is validation
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32
