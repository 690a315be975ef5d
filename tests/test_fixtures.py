"""The guards themselves: each must see the thing it guards against."""

import conftest
import pyro
import pytest
import torch
from checks import assert_close, assert_mean

LEAKS = {
    "parameter store": "pyro.param('left', torch.ones(1))",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "argument validation": "pyro.enable_validation(False)",
    "gradients": "torch.set_grad_enabled(False)",
    "pyro settings": "pyro.settings.set(module_local_params=True)",
}


@pytest.mark.parametrize("what", LEAKS)
def test_a_test_that_leaks_fails(what, request):
    guard = request.getfixturevalue("nothing_left_behind_factory")
    with pytest.raises(AssertionError, match=what if what != "parameter store" else "left"):
        guard(lambda: exec(LEAKS[what], {"pyro": pyro, "torch": torch}))


@pytest.fixture
def nothing_left_behind_factory():
    """Run the guard of conftest around a function, as pytest does around a test."""

    def run(function):
        steps = conftest.nothing_left_behind.__wrapped__()
        next(steps)
        function()
        with pytest.raises(StopIteration):
            next(steps)

    return run


def test_clean_function_passes_the_guard(nothing_left_behind_factory):
    nothing_left_behind_factory(lambda: None)


def test_assert_mean_sees_a_bias_and_accepts_none():
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert_mean(samples, 0.0)
    with pytest.raises(AssertionError):
        assert_mean(samples + 0.1, 0.0)
    with pytest.raises(AssertionError):
        assert_mean(torch.ones(100), 1.1)
    with pytest.raises(AssertionError):
        assert_mean(torch.full((10,), torch.nan), 0.0)


def test_assert_close_sees_a_difference_and_nan():
    assert_close(torch.ones(2), torch.ones(2))
    for wrong in (torch.tensor([1.0, 1.01]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(AssertionError):
            assert_close(wrong, torch.ones(2))
