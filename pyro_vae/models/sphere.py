"""Directions: a distribution on the unit circle or sphere."""

import math
from typing import Literal, TypeAlias

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.base.errors import InputError

Space: TypeAlias = Literal["real", "sphere"]
"""Where latents live: real vectors, or unit vectors."""

SERIES_BELOW = 0.05  # |c|; the formula of three dimensions subtracts terms of 1/c²
FLAT_DIMS = (2, 3)


def check_flat_dims(latent_dim: int, what: str) -> None:
    """Refuse a latent_dim other than 2 and 3.

    Raises:
        InputError: another.
    """
    if latent_dim not in FLAT_DIMS:
        raise InputError(f"a latent_dim of 2 or 3 ({what} has a density there alone)", latent_dim, "latent_dim=3")


class Directions(dist.ProjectedNormal):
    r"""The direction of a normal vector of covariance I, and its mean in the space around the circle or sphere.

    .. math:: z = y / |y|, \quad y \sim N(c, I), \qquad E z = \nabla_c E |y|

    Pyro's ``ProjectedNormal`` calls the direction of c its mean, which is no expectation.
    """

    @property
    def mean(self) -> Tensor:
        """E z, (..., Z), of length below 1."""
        c = self.concentration
        squares = c.square().sum(-1, keepdim=True)
        if c.shape[-1] == 2:
            bessel = torch.special.i0e(squares / 4) + torch.special.i1e(squares / 4)
            flat: Tensor = math.sqrt(math.pi / 8) * bessel * c
            return flat
        mean: Tensor = _ratio(squares) * c
        return mean


def _ratio(squares: Tensor) -> Tensor:
    """Return |E z| / |c| in three dimensions, of |c|²."""
    safe = squares.clamp(min=SERIES_BELOW**2)
    length, half = safe.sqrt(), math.sqrt(2 / math.pi)
    formula = (1 - 1 / safe) * torch.erf(length / math.sqrt(2)) / length + half * (-safe / 2).exp() / safe
    series = half * (2 / 3 - squares / 15 + squares.square() / 140)
    return torch.where(squares < SERIES_BELOW**2, series, formula)
