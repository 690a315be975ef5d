"""Distributions inside ``to_event``."""

from torch.distributions import Distribution, Independent


def innermost(fn: Distribution) -> Distribution:
    """Return the distribution inside all ``to_event`` (``Independent``) wrappers.

    Example:
        >>> import torch
        >>> from pyro import distributions as dist
        >>> type(innermost(dist.Normal(torch.zeros(3), 1.0).to_event(1))).__name__
        'Normal'
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
