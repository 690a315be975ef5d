"""Weighted sums of terms."""

import torch
from torch import Tensor


def weighted_sum(weight: Tensor, terms: Tensor) -> Tensor:
    """Return Σ weight terms, a scalar; a term of −∞ with weight 0 counts 0."""
    return torch.where(weight == 0, 0.0, weight * terms).sum()


def scaled_sum(scale: Tensor | float, value: Tensor) -> Tensor:
    """Return Σ scale value; a scale is a number, or (B,); a value of −∞ with scale 0 counts 0."""
    return weighted_sum(scale, value) if isinstance(scale, Tensor) and scale.dim() else scale * value.sum()


def is_each(weight: Tensor | float) -> bool:
    """Whether a weight is one for each term, which the surrogate carries; one number is left to the loss."""
    return isinstance(weight, Tensor) and weight.dim() > 0
