"""Terms: the three log-densities that every bound is made of, read off the traces of a program."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.program import Program, sample_sites, trace_program


@dataclass(frozen=True, eq=False)
class Terms:
    """The log-densities of K particles for B data, in nats, unscaled; each of shape (K, B)."""

    log_px_z: Tensor
    log_pz: Tensor
    log_qz: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log w = log p(x|z) + log p(z) − log q(z|x), (K, B)."""
        return self.log_px_z + self.log_pz - self.log_qz


def draw_terms(program: Program, x: Tensor, num_particles: int = 1) -> Terms:
    r"""Draw K particles from the guide and score them: the one place where evaluation draws.

    Several latent sites add up: log p(z) and log q(z|x) are the sums over them. Masks count, plate scales do
    not: the terms are those of the data at hand, whatever share of a data set it is.

    Args:
        program: the program, its store active (:func:`pyro_vae.program.own_store`).
        x: a batch, (B, *event_shape).
        num_particles: K.

    Returns:
        The :class:`Terms`, differentiable where autograd is on.
    """
    guide_trace, model_trace = trace_program(program, x, num_particles)
    shape = (num_particles, len(x))
    observed = [site for _, site in sample_sites(model_trace) if site["is_observed"]]
    latent = [site for _, site in sample_sites(model_trace) if not site["is_observed"]]
    return Terms(
        log_px_z=_total(observed, shape, x),
        log_pz=_total(latent, shape, x),
        log_qz=_total([site for _, site in sample_sites(guide_trace)], shape, x),
    )


def _total(sites: list[Any], shape: tuple[int, int], x: Tensor) -> Tensor:
    total = torch.zeros(shape, device=x.device, dtype=x.dtype)
    for site in sites:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        total = total + scale_and_mask(log_prob, scale=1.0, mask=site["mask"])
    return total
