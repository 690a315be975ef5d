"""Estimates."""

import math

import pytest
import torch

from pyro_vae.base.statistics import estimate


def test_estimate_is_mean_and_standard_error():
    result = estimate(torch.tensor([1.0, 2.0, 4.0]))
    assert result.value == pytest.approx(7 / 3)
    assert result.standard_error == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2 / 3))
    assert math.isnan(estimate(torch.ones(1)).standard_error)
