"""Every estimator computes on the device and in the precision of the data, and never waits for the device."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode
from toys import MAKE, binary, small_vae

from pyro_vae import elbo
from pyro_vae.program.contexts import own_store


def test_every_estimator_has_a_row_in_make():
    assert set(MAKE) == set(elbo.ESTIMATORS) - {"trace_elbo", "trace_mean_field_elbo"}


class HostReads(TorchDispatchMode):
    """Count what makes the processor wait for the device: reading a number out of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += function in (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def host_reads(estimator):
    vae = small_vae()
    with own_store(vae), pyro.validation_enabled(False):
        estimator.differentiable_loss(
            vae.model, vae.guide, binary()
        )  # the first use compares particles with single runs
        with HostReads() as reads:
            estimator.differentiable_loss(vae.model, vae.guide, binary())
    return reads.count


@pytest.mark.parametrize("name", [n for n in MAKE if n != "reinforce_moving_average"])
def test_no_number_is_read_from_the_device(name):
    """Pyro 1.9.2: ``Trace_ELBO`` calls ``.item()`` once per site and step, and each call waits for the device."""
    assert host_reads(Trace_ELBO()) >= 3
    assert host_reads(MAKE[name]()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_everything_is_made_on_the_device_and_in_the_precision_of_the_data(name, dtype, device):
    """Pyro's ``vae_comparison`` makes CPU tensors in a CUDA run."""
    vae, x = small_vae().to(device, dtype), binary().to(device, dtype)
    with own_store(vae):
        bound = MAKE[name]().bound(vae, x)
        bound.surrogate.backward()
    for tensor in (bound.value, bound.surrogate):
        assert (tensor.device, tensor.dtype) == (x.device, dtype)
    assert bound.value.shape == (5,)
    assert all(p.grad.device == x.device for p in vae.parameters() if p.grad is not None)
