"""Distributions inside ``to_event``, Pyro's and torch's."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.base.distributions import innermost

NORMAL = dist.Normal(torch.zeros(2, 3), 1.0)
WRAPPED = {
    "none": NORMAL,
    "pyro": NORMAL.to_event(1),
    "twice": NORMAL.to_event(1).to_event(1),
    "torch": torch.distributions.Independent(NORMAL, 1),
    "torch outside pyro": torch.distributions.Independent(NORMAL.to_event(1), 1),
}


@pytest.mark.parametrize("fn", WRAPPED.values(), ids=WRAPPED)
def test_innermost_is_the_wrapped_distribution(fn):
    assert innermost(fn) is NORMAL


def test_other_wrappers_stay():
    masked = NORMAL.mask(torch.tensor(True))
    assert innermost(masked) is masked
