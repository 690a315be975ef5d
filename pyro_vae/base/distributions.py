"""Distributions: looking through the wrappers that Pyro and torch put around them."""

import torch
from torch.distributions import Distribution


def innermost(fn: Distribution) -> Distribution:
    """Return the distribution inside any number of ``to_event`` (``Independent``) wrappers.

    Example:
        >>> import torch
        >>> from pyro import distributions as dist
        >>> type(innermost(dist.Normal(torch.zeros(3), 1.0).to_event(1))).__name__
        'Normal'
    """
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn
