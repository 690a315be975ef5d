r"""Draws of the global latents, with K particles of the local ones given each.

A site is local if it is inside the plates of the examples, and global if it is not
(:func:`~pyro_vae.program.locality.plates_of_examples`). Each draw of the global latents is a run of the program; the
local particles are in a plate that only local sites are in, or in runs one by one that are given the same global
latents. So the density of a global latent is there once, however many particles share it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.scales import Scales, scales_of
from pyro_vae.elbo.terms import Run, Terms, check_shape, density, is_measured
from pyro_vae.program.handlers import Strategy
from pyro_vae.program.inside import Names, PlateInside, SharedOutside, is_inside
from pyro_vae.program.locality import check_locality
from pyro_vae.program.particles import checked_nesting
from pyro_vae.program.plates import Plates, shared_plates, sizes, summed
from pyro_vae.program.protocol import PARTICLES, Trace
from pyro_vae.program.tracing import Site, sample_sites


@dataclass(frozen=True, eq=False)
class Given:
    """The local particles given one draw of the global latents, and what that draw adds to the bound by itself."""

    shared: Tensor  # (), Σ scale (log p − log q) over the global sites
    terms: Terms  # (K, B), of the local sites, without the scale that they share
    scale: Tensor | float  # that scale: a number, or (B,)
    shared_score: Tensor | None  # (), log q of the global sites that have a score
    score: Tensor | None  # (K, B), the same of the local sites

    @property
    def bounds(self) -> Tensor:
        """The importance-weighted bound of each example given the global latents, times its scale, (B,)."""
        return self.scale * log_mean_exp(self.terms.log_weight)

    @property
    def bound(self) -> Tensor:
        """The bound of all examples, a scalar."""
        return self.shared + self.bounds.sum()


class LocalDraw(Draw):
    """M draws of the global latents, and K particles of the local latents given each.

    Args:
        model: p(x, z), x observed.
        guide: q(z|x).
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K.
        num_globals: M.
        latents: as of :class:`~pyro_vae.elbo.Draw`, ``attached`` or ``fixed``.
        plates: the names of the plates of the examples.
        vectorize_particles: the K particles in a plate; False: in runs one by one.
        strategies: how sites get their gradient, by name.

    Raises:
        InputError: enumerated or measure-valued sites, global sites that depend on local latents, examples that
            depend on each other given the global latents, and what :class:`~pyro_vae.elbo.Draw` refuses.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        num_particles: int,
        num_globals: int,
        latents: Latents,
        plates: Names,
        *,
        vectorize_particles: bool = True,
        strategies: Mapping[str, Strategy] | None = None,
    ) -> None:
        check_locality(model, guide, args, kwargs, plates)
        self.inside, self.num_local = plates, num_particles
        self._local_dim: int | None = None
        if vectorize_particles and num_particles > 1:
            self._local_dim = -1 - checked_nesting(model, guide, args, kwargs, plates)
            plate = PlateInside(plates, PARTICLES, num_particles, dim=self._local_dim)
            model, guide, runs = plate(model), plate(guide), num_globals
        else:
            guide, runs = SharedOutside(plates, num_particles)(guide), num_globals * num_particles
        super().__init__(model, guide, args, kwargs, runs, latents, vectorize_particles=False, strategies=strategies)
        self._check_sampled()

    def _check_sampled(self) -> None:
        """Refuse sites that are enumerated or measure-valued."""
        other = [
            *(self.values.sizes if self.values else ()),
            *(s["name"] for s in self.runs[0].guide_latents if is_measured(s)),
        ]
        if other:
            raise InputError(
                "sites with a pathwise gradient or a score, beside global latents",
                f"another strategy at site {other[0]!r}",
                'infer={"gradient": "score"}',
            )

    @property
    def scale(self) -> float:
        """One: the bound is of all examples, and the scale of every site is inside."""
        return 1.0

    @property
    def terms(self) -> Terms:
        """Refuse: the terms of global and local sites do not add up to one log w.

        Raises:
            InputError: always.
        """
        raise InputError(
            "an estimator whose value is a function of log w of all latents",
            "local_iwae on a program with global latents, which has another log w for each example",
            "local_iwae by itself",
        )

    @cached_property
    def given(self) -> list[Given]:
        """What each of the M draws of the global latents gives."""
        count = 1 if self._local_dim is not None else self.num_local
        return [self._given(self.runs[i : i + count]) for i in range(0, len(self.runs), count)]

    @cached_property
    def local_scales(self) -> Scales:
        """The scales of the local sites."""
        return scales_of(self._first, self._local_plates)

    def _given(self, runs: list[Run]) -> Given:
        local = [_part(run, self._is_local) for run in runs]
        shared = _part(runs[0], lambda site: not self._is_local(site))  # all runs have the same
        parts = [self._terms_of(run) for run in local]
        terms = Terms(*(torch.cat([getattr(p, name) for p in parts]) for name in ("log_px_z", "log_pz", "log_qz")))
        score = _cat([self._score_of(run, self._kept_local) for run in local])
        return Given(self._shared(shared), terms, self._local_scale(), self._score_of(shared, torch.sum), score)

    def _is_local(self, site: Site) -> bool:
        return is_inside(site, self.inside)

    @cached_property
    def _first(self) -> Run:
        """The local sites of the first run: all runs have the same scales and sizes."""
        return _part(self.runs[0], self._is_local)

    @cached_property
    def _local_plates(self) -> Plates:
        return shared_plates(*(t for run in self.runs for t in (run.guide_trace, run.model_trace)), inside=self.inside)

    @cached_property
    def _local_sizes(self) -> tuple[int, ...]:
        unsized = any(plate.size < 0 for plate in self._local_plates)
        return sizes(self._local_plates, [self._summed(density(s)) for s in self._first.sites] if unsized else [])

    def _shared(self, run: Run) -> Tensor:
        """Σ scale (log p − log q) of the global sites, those of the latents times beta."""
        groups = (
            (run.observed, 1.0),
            (run.model_latents, self.beta),
            ([*run.guide_latents, *run.guide_factors], -self.beta),
        )
        parts = [
            weight * (site["scale"] * self._log_density(site, None)).sum() for sites, weight in groups for site in sites
        ]
        return sum(parts[1:], parts[0])

    def _terms_of(self, run: Run) -> Terms:
        scales = self.local_scales
        groups = (run.guide_factors, run.model_latents, run.guide_latents)
        factors, log_pz, log_qz = (self.beta * self._total(sites, scales.latent) for sites in groups)
        return Terms(self._total(run.observed, scales.observed) - factors, log_pz, log_qz)

    def _total(self, sites: Iterable[Site], scale: float | Tensor | None) -> Tensor:
        """Sum the log-densities of local sites to (K of the run, B), times a scale; None: each times its own."""
        parts = [
            (site["scale"] if scale is None else scale) * self._log_density(site, self._local_dim) for site in sites
        ]
        kept = [self._kept_local(part) for part in parts]
        return sum(kept[1:], kept[0]) if kept else self._kept_local(self._nothing())

    def _log_density(self, site: Site, particles: int | None) -> Tensor:
        log_prob = density(site)
        check_shape(site, log_prob, particles)
        return log_prob

    def _score_of(self, run: Run, total: Callable[[Tensor], Tensor]) -> Tensor | None:
        found = [self.score(site) for site in (*run.guide_latents, *run.guide_factors)]
        parts = [total(part) for part in found if part is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def _summed(self, log_prob: Tensor) -> Tensor:
        return summed(log_prob, self._local_plates, self._local_dim)

    def _kept_local(self, log_prob: Tensor) -> Tensor:
        """Sum to the plates of the examples, (K of the run, B)."""
        count = 1 if self._local_dim is None else self.num_local
        return self._summed(log_prob).expand(count, *self._local_sizes).reshape(count, -1)

    def _local_scale(self) -> Tensor | float:
        common = self.local_scales.common
        if not isinstance(common, Tensor) or not common.dim():
            return common
        return summed(common, self._local_plates, None).expand(1, *self._local_sizes).reshape(-1)

    def _nothing(self) -> Tensor:
        device = next((site["value"].device for site in self.runs[0].sites), None)
        return torch.zeros((), device=device)


def _part(run: Run, chosen: Callable[[Site], bool]) -> Run:
    """Return a run with the sample sites that are chosen, and no others."""
    return Run(_chosen(run.guide_trace, chosen), _chosen(run.model_trace, chosen), run.drawn, run.leaves)


def _chosen(trace: Trace, chosen: Callable[[Site], bool]) -> Trace:
    found = Trace()
    found.nodes.update({name: trace.nodes[name] for name, site in sample_sites(trace) if chosen(site)})
    return found


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    """Return the scores of particles one by one side by side; a site has a score in all runs or in none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
