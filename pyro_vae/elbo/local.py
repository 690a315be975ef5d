r"""The advantage of a score site within its own plates, for bounds that are linear in log w.

Where a program has a latent that all examples share, the bound is one for all, and so would be the advantage of every
local latent: its noise would grow with the number of examples. What an element of a plate cannot change cancels on
average, so a site is weighted by the terms of its own element, and by those outside its plates:

.. math:: \sum_s \sum_b \Bigl(c_{sb} - \frac1{K-1} \sum_{j \ne k} c^{(j)}_{sb}\Bigr) \nabla \log q(z_{sb}),
    \qquad c_{sb} = \sum_t \pm \log p_t \text{ summed to the plates of } s

It holds if the elements of a plate are independent given what is outside it, which Pyro's ``Trace_ELBO`` assumes, too.
Source: Ranganath, Gerrish and Blei, Black box variational inference, AISTATS 2014 (Rao-Blackwellization).
"""

import torch
from torch import Tensor

from pyro_vae.base.statistics import mean_of_others
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.terms import Run
from pyro_vae.program.plates import Plates, plates_of, summed
from pyro_vae.program.tracing import Site


def has_local_scores(draw: Draw) -> bool:
    """Whether a site with a score is in a plate that not all sites share."""
    kept = {plate.name for plate in draw.plates}
    return any(
        plate.name not in kept and plate.size > 0 for site in _scored(draw, draw.runs[0]) for plate in plates_of(site)
    )


class LocalAdvantage:
    """The advantage of each score site within its own plates."""

    def scored(self, draw: Draw) -> Tensor:
        """Return Σ advantage log q of the sites that have a score function, a scalar."""
        total = torch.zeros(())
        for name in [site["name"] for site in _scored(draw, draw.runs[0])]:
            sites = [next(site for site in _scored(draw, run) if site["name"] == name) for run in draw.runs]
            plates = plates_of(sites[0])
            score = torch.cat([_aligned(draw.score(site), plates, site, draw) for site in sites])
            cost = (
                torch.cat([self._cost(draw, run, plates) for run in draw.runs])
                .detach()
                .expand(draw.num_particles, *score.shape[1:])
            )
            count = len(cost)
            advantage = (cost - mean_of_others(cost)) / count if count > 1 else cost
            total = total + (advantage * score).sum()
        return total

    def _cost(self, draw: Draw, run: Run, plates: Plates) -> Tensor:
        scales = draw.scales
        groups = (
            (run.observed, 1.0, scales.observed),
            (run.model_latents, draw.beta, scales.latent),
            (run.guide_latents, -draw.beta, scales.latent),
            (run.guide_factors, -draw.beta, scales.latent),
        )
        parts = [
            sign * (site["scale"] if factor is None else factor) * _aligned(draw.density(site), plates, site, draw)
            for sites, sign, factor in groups
            for site in sites
        ]
        return sum(parts[1:], parts[0])


def _scored(draw: Draw, run: Run) -> list[Site]:
    return [site for site in (*run.guide_latents, *run.guide_factors) if draw.score(site) is not None]


def _aligned(log_prob: Tensor | None, plates: Plates, site: Site, draw: Draw) -> Tensor:
    """Sum a log-density to those of the plates that its site is in, (K, *sizes), 1 for the others."""
    assert log_prob is not None
    own = {plate.name for plate in plates_of(site)}
    shared = tuple(plate for plate in plates if plate.name in own)
    total = summed(log_prob, shared, draw.particles_dim)
    sizes = iter(total.shape[1:])
    return total.reshape(total.shape[0], *(next(sizes) if plate.name in own else 1 for plate in plates))
