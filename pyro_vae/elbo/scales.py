"""The scales of a program's sites: what is divided out of a bound, what weights the KL, what is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from pyro_vae.program.plates import Plates, summed
from pyro_vae.program.tracing import Site

Scale = float | Tensor
Tempering = Literal["none", "kl", "sites"]


class Sites(Protocol):
    """The sites of one run of a program."""

    @property
    def sites(self) -> list[Site]:
        """Every site."""

    @property
    def observed(self) -> list[Site]:
        """The observed sites of the model."""


@dataclass(frozen=True, eq=False)
class Scales:
    """How the scales of sites enter a bound.

    ========  ==========================================  ==============================================================
    kind      scales                                      in the terms
    ========  ==========================================  ==============================================================
    none      one, of all sites                           divided out; it multiplies the bound (``common``)
    kl        one of the latents, one of the data         their ratio is β, a weight of the KL (``latent``)
    sites     others, as N/B beside a global latent       each log-density times its own (factors are None)
    ========  ==========================================  ==============================================================
    """

    kind: Tempering
    common: Scale
    latent: Scale | None
    observed: Scale | None


UNSCALED = Scales("none", 1.0, 1.0, 1.0)


def scales_of(run: Sites, plates: Plates) -> Scales:
    """Return the scales of a run's sites, with these plates kept."""
    first = run.sites[0]["scale"] if run.sites else 1.0
    if _one([site["scale"] for site in run.sites]) and _is_kept(first, plates):
        return Scales("none", first, 1.0, 1.0)
    observed = {id(site) for site in run.observed}
    data = [site["scale"] for site in run.observed]
    latents = [site["scale"] for site in run.sites if id(site) not in observed]
    two = plates and data and _one(data) and _one(latents)  # without shared plates it is a subsample's N/B, no beta
    if two and not isinstance(data[0], Tensor) and not isinstance(latents[0], Tensor) and data[0] != 0:
        return Scales("kl", data[0], latents[0] / data[0], 1.0)
    return Scales("sites", 1.0, None, None)


def differ(left: Tensor | float, right: Tensor | float) -> bool:
    """Whether two scales or two masks differ anywhere; plain numbers are compared without reading a tensor."""
    if left is right:
        return False
    unequal: Tensor | bool = left != right
    return bool(unequal.any()) if isinstance(unequal, Tensor) else unequal


def _one(scales: Sequence[Scale]) -> bool:
    return not any(differ(scale, scales[0]) for scale in scales[1:])


def _is_kept(scale: Scale, plates: Plates) -> bool:
    """Whether a scale differs at most between the examples of the plates kept."""
    if not isinstance(scale, Tensor) or not scale.dim():
        return True
    return scale.numel() == summed(scale, plates, None).numel()
