"""Fixtures: devices, the shared data, and the guard that no test leaves a global switch changed."""

import logging
from pathlib import Path

import pyro
import pytest
import torch

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])]


@pytest.fixture(params=DEVICES)
def device(request):
    """Every test that takes it runs on the CPU, and on CUDA where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root():
    """The published data sets, where the folder beside the checkout has them."""
    folder = Path(__file__).parents[2] / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("no published data sets beside the checkout (../shared/datasets)")
    return folder


def global_switches():
    """Everything global that this package promises not to touch."""
    return {
        "parameter store": sorted(pyro.get_param_store().keys()),
        "pyro settings": pyro.settings.get(),
        "argument validation": torch.distributions.Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "root logging level": logging.getLogger().level,
        "root logging handlers": len([h for h in logging.getLogger().handlers if "pytest" not in type(h).__module__]),
    }


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves Pyro's store non-empty or a global switch changed; clean up after it."""
    before = global_switches()
    assert before["parameter store"] == []
    yield
    after = global_switches()
    pyro.clear_param_store()
    pyro.settings.set(**before["pyro settings"])
    torch.set_default_dtype(before["default dtype"])
    torch.distributions.Distribution.set_default_validate_args(before["argument validation"])
    torch.set_grad_enabled(before["gradients"])
    assert after == before


@pytest.fixture(autouse=True)
def doctest_seed(doctest_namespace):
    """Examples in docstrings run with torch at hand and under one seed."""
    doctest_namespace["torch"] = torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
