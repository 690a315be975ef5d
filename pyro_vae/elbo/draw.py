"""One draw of particles and its log-densities: the one place where noise is sampled, and what it refuses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.random import noise_state, set_noise_state
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.scales import UNSCALED, Scales, scales_of
from pyro_vae.elbo.terms import (
    Run,
    Terms,
    check_run,
    check_scores,
    check_shape,
    density,
    is_single,
    score_function,
    whole_score,
)
from pyro_vae.elbo.values import Values
from pyro_vae.program.enumeration import checked_enumeration
from pyro_vae.program.handlers import Enumeration, Hold, Sampled, SampleMessage, Strategy, Unplanned
from pyro_vae.program.particles import checked_nesting
from pyro_vae.program.plates import Plates, shared_plates, sizes, summed, warn_of_two_names
from pyro_vae.program.protocol import PARTICLES, Program, Trace
from pyro_vae.program.tracing import Site

Latents = Literal["attached", "path", "leaves", "fixed"]


class Draw:
    """K particles sampled from a guide, and their densities.

    B is the size of the plates that all sites share: the number of examples where every latent is local, and 1 where
    the program has a global latent (:doc:`/programs`).

    Args:
        model: p(x, z), x observed.
        guide: q(z|x).
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K.
        latents: how the densities see the latents: ``attached`` to the guide that sampled them; ``leaves``, detached
            tensors whose own gradient can be taken; ``path``, the model as ``attached`` and the guide as ``leaves``,
            where a guide samples one latent, else ``leaves``; or ``fixed``, detached as they are sampled.
        beta: weight of log p(z) and log q(z|x) in the terms (:class:`~pyro_vae.elbo.Weighted`).
        vectorize_particles: several particles in a plate, to the left of all others; False: in runs one by one.
        plate: a plate of particles even where K is 1.
        scaled: False leaves out the scales of the sites.
        enumerate_sites: give enumerated sites all their values; False samples them.
        strategies: how sites get their gradient, by name, in the place of their own marks.

    Raises:
        InputError: a latent that only one of model and guide has, or in two event shapes; a latent enumerated in the
            model alone; latents to be ``fixed`` of which one is a ``Delta`` with parameters; a program that means
            something else in a plate of particles than one by one, or with the values of a site in parallel.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        num_particles: int,
        latents: Latents = "attached",
        beta: float | Tensor = 1.0,
        *,
        vectorize_particles: bool = True,
        plate: bool = False,
        scaled: bool = True,
        enumerate_sites: bool = True,
        strategies: Mapping[str, Strategy] | None = None,
    ) -> None:
        self.strategies = strategies or {}
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.num_particles, self.beta, self.latents, self.scaled = num_particles, beta, latents, scaled
        vectorized = plate or (vectorize_particles and num_particles > 1)
        self._dim = -1 - checked_nesting(model, guide, args, kwargs) if vectorized else None
        self._subsamples = Trace()  # those of the first run, which all others share
        self.values: Values | None = None
        self.runs = self._all_runs(1 if vectorized else num_particles, enumerate_sites)
        self.plates: Plates = self._kept_plates()
        self.axes: Plates = self.plates if self.values is None else (*self.values.frames, *self.plates)
        self.scales: Scales = scales_of(self.runs[0], self.plates) if scaled else UNSCALED
        self.batch_shape = self._batch_shape()

    @property
    def batch(self) -> int:
        """B, the size of the plates that all sites share; 1 where there are none."""
        return torch.Size(self.batch_shape[len(self.axes) - len(self.plates) :]).numel()

    @property
    def scale(self) -> Tensor | float:
        """The scale that all sites share, divided out of the terms: a number, or a tensor (B,)."""
        common = self.scales.common
        if isinstance(common, Tensor) and common.dim():
            return self._kept(common).reshape(-1)
        return common

    @cached_property
    def probability(self) -> Tensor | None:
        """The probability of each combination of enumerated values, one to a particle, (C^K B,); None without any."""
        if self.values is None:
            return None
        sites = [[site for site in run.guide_latents if site["name"] in self.values.sizes] for run in self.runs]
        log_q = [[self._kept(site["fn"].log_prob(site["value"])) for site in each] for each in sites]
        return self.joined([self.expanded(sum(parts[1:], parts[0])) for parts in log_q]).sum(0).exp().detach()

    @property
    def weight(self) -> Tensor | float:
        """The weight of each term in the loss: the scale, times the probability of enumerated values."""
        if self.probability is None:
            return self.scale
        scale, count = self.scale, len(self.probability)
        repeats = count // len(scale) if isinstance(scale, Tensor) and scale.dim() else 1
        return self.probability * (scale.repeat(repeats) if isinstance(scale, Tensor) and scale.dim() else scale)

    def marginal(self, value: Tensor) -> Tensor:
        """Return the mean of bounds over the enumerated values, (B,): exact, the sum over all combinations."""
        if self.probability is None:
            return value
        return torch.where(self.probability == 0, 0.0, self.probability * value).reshape(-1, self.batch).sum(0)

    @property
    def guide_trace(self) -> Trace:
        """The trace of the guide's only run."""
        return self._only().guide_trace

    @property
    def model_trace(self) -> Trace:
        """The trace of the model's only run."""
        return self._only().model_trace

    @property
    def drawn(self) -> dict[str, Tensor]:
        """The values of the guide's latents by site, the K particles in the first dimension."""
        each = [{site["name"]: site["value"] for site in run.guide_latents} for run in self.runs]
        return {name: self.of_runs([values[name] for values in each]) for name in each[0]}

    def of_runs(self, found: Sequence[Tensor]) -> Tensor:
        """Return one tensor of what every run has, the particles in the first dimension."""
        return found[0] if self._dim is not None else torch.stack(list(found))

    @property
    def terms(self) -> Terms:
        """The densities at the latents, those of the latents times beta."""
        parts = [self._terms(run) for run in self.runs]
        if len(parts) == 1 and self.values is None:
            return parts[0]
        return Terms(*(self.joined([getattr(p, name) for p in parts]) for name in ("log_px_z", "log_pz", "log_qz")))

    @property
    def model_attached(self) -> bool:
        """Whether the model sees samples attached to the guide."""
        return self.latents == "attached" or (self.latents == "path" and is_single(self.runs[0].guide_trace))

    @cached_property
    def log_score(self) -> Tensor | None:
        r"""The log-density whose gradient, times an advantage, completes the pathwise one, (K, B); None if it is zero.

        That of sites without reparameterization; with ``fixed`` latents, of all; of a ``Rejector``, the log-probability
        of acceptance (Naesseth et al., arXiv 1610.05683). Neither scaled nor masked, as in Pyro's ``score_parts``.
        """
        return self.log_score_of(lambda site: True)

    def log_score_of(self, chosen: Callable[[Site], bool]) -> Tensor | None:
        """Return the part of :attr:`log_score` of chosen sites, (K, B); None if it is zero."""
        sites = [[site for site in (*r.guide_latents, *r.guide_factors) if chosen(site)] for r in self.runs]
        found = [[self.score(site) for site in each] for each in sites]
        kept = [[self._kept(part) for part in parts if part is not None] for parts in found]
        if not any(kept):
            return None
        return self.joined([self.expanded(sum(parts[1:], parts[0])) for parts in kept])

    @torch.no_grad()
    def again(self, run: Run, name: str, value: Tensor) -> "Draw":
        """Sample a run again, detached: a latent at another value, those before it as they are, those after it anew."""
        given = {n: cast(Tensor, site["value"]) for n, site in self._subsamples.nodes.items()}
        for site in run.guide_latents:
            if site["name"] == name:
                break
            given[site["name"]] = site["value"].detach()
        particles, plate = (self.num_particles, True) if self._dim is not None else (1, False)
        call = self.model, self.guide, self.args, self.kwargs, particles
        with Hold({**given, name: value}):
            return Draw(*call, "fixed", self.beta, plate=plate, scaled=self.scaled, strategies=self.strategies)

    def joined(self, runs: list[Tensor]) -> Tensor:
        """Return terms of the runs, (K of the run, B) each, as (K, B); with enumerated values, (K, C^K B)."""
        terms = torch.cat(runs) if len(runs) > 1 else runs[0]
        return terms if self.values is None else self.values.combined(terms)

    def _terms(self, run: Run) -> Terms:
        scales = self.scales
        log_px_z = self.total(run.observed, scales.observed)
        if run.guide_factors:  # their derivative counts with the weight of log p
            log_px_z = log_px_z - self.beta * self.total(run.guide_factors, scales.latent)
        latents = (self.beta * self.total(sites, scales.latent) for sites in (run.model_latents, run.guide_latents))
        return Terms(log_px_z, *latents)

    def log_q_of(self, chosen: Callable[[Site], bool]) -> Tensor | None:
        """Return the part of beta log q of chosen latents, (K, B); None where there are none."""
        found = [[site for site in run.guide_latents if chosen(site)] for run in self.runs]
        if not any(found):
            return None
        return self.joined([self.beta * self.total(each, self.scales.latent) for each in found])

    def total(self, sites: Iterable[Site], scale: float | Tensor | None = 1.0) -> Tensor:
        """Sum the log-densities of sites of one run to (K of the run, B).

        Args:
            sites: the sites.
            scale: a factor of the sum; None: each site's own.
        """
        parts = [self._kept(self.density(s) if scale is not None else self.density(s) * s["scale"]) for s in sites]
        if not parts:
            return self._zero()
        total = sum(parts[1:], parts[0])
        return self.expanded(total if scale is None or (isinstance(scale, float) and scale == 1.0) else scale * total)

    def expanded(self, total: Tensor) -> Tensor:
        """Return a sum over the plates that are not kept as (K of the run, B); B is C B with C enumerated values."""
        count = self.num_particles if self._dim is not None else 1
        return total.expand(count, *self.batch_shape).reshape(count, -1)

    def kept(self, log_prob: Tensor) -> Tensor:
        """Sum the plates that are not kept, and return (K of the run, B)."""
        return self.expanded(self._kept(log_prob))

    def density(self, site: Site) -> Tensor:
        """Return the log-density of a site, masked and not scaled; its dimensions are those of its plates."""
        log_prob = density(site)
        check_shape(site, log_prob, self._dim, () if self.values is None else self.values.dims)
        return log_prob

    def _kept(self, log_prob: Tensor) -> Tensor:
        return summed(log_prob, self.axes, self._dim)

    def _zero(self) -> Tensor:
        device = next((site["value"].device for run in self.runs for site in run.sites), None)
        return self.expanded(torch.zeros((1,) * (1 + len(self.axes)), device=device))

    def score(self, site: Site) -> Tensor | None:
        """Return the log-density of a site's score, of its batch shape, not scaled, not masked; None if it is zero."""
        return whole_score(site) if self.latents == "fixed" and not site["is_observed"] else score_function(site)

    @property
    def particles_dim(self) -> int | None:
        """The dimension of the particles; None where they are run one by one."""
        return self._dim

    def _only(self) -> Run:
        if len(self.runs) > 1:
            raise TypeError("a draw of particles run one by one has a trace for each: use its runs")
        return self.runs[0]

    def _kept_plates(self) -> Plates:
        """Return the plates that all sites share, but for one without a size where some log-density counts once."""
        warn_of_two_names(self.runs[0].guide_trace, self.runs[0].model_trace)
        shared = shared_plates(*(trace for run in self.runs for trace in (run.guide_trace, run.model_trace)))
        if all(plate.size > 0 for plate in shared):
            return shared
        totals = [summed(density(site), shared, self._dim).shape[1:] for site in self.runs[0].sites]
        return tuple(plate for i, plate in enumerate(shared) if plate.size > 0 or len({t[i] for t in totals}) == 1)

    def _batch_shape(self) -> tuple[int, ...]:
        unsized = any(plate.size < 0 for plate in self.plates)
        return sizes(self.axes, [self._kept(density(site)) for site in self.runs[0].sites] if unsized else [])

    def _all_runs(self, count: int, enumerate_sites: bool) -> list[Run]:
        """Run guide and model; again with all values of enumerated sites, where there are any."""
        device = next((each.device for each in self.args if isinstance(each, Tensor)), torch.device("cpu"))
        noise = noise_state(device)
        try:
            return [self._run(Enumeration(None) if enumerate_sites else None) for _ in range(count)]
        except Unplanned:
            set_noise_state(noise, device)  # so that a first step and a resumed one have the same noise
        nesting = checked_enumeration(self.model, self.guide, self.args, self.kwargs, self.strategies)
        first = -1 - nesting - (self._dim is not None)
        found = [Enumeration(first) for _ in range(count)]
        runs = [self._run(each) for each in found]
        self.values = Values(found, self.num_particles)
        return runs

    def _run(self, enumeration: Enumeration | None) -> Run:
        see: Literal["attached", "leaves", "fixed"] = "leaves" if self.latents in ("path", "leaves") else self.latents  # type: ignore[assignment]
        sampled = Sampled(see, enumeration, self.strategies)
        with sampled:
            guide_trace = self._trace(poutine.replay(self.guide, trace=self._subsamples))
        if self.latents == "fixed":
            check_scores(guide_trace)
        given = guide_trace.copy()
        pruned = prune_subsample_sites(guide_trace)
        if self.latents == "path" and is_single(pruned):
            name, value = next(iter(sampled.drawn.items()))
            given.nodes[name] = cast(SampleMessage, {**given.nodes[name], "value": value})
        for name, site in self._subsamples.nodes.items():
            given.nodes.setdefault(name, site)
        model_trace = self._trace(poutine.replay(self.model, trace=given))
        for trace in (guide_trace, model_trace):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and site_is_subsample(site):
                    self._subsamples.nodes.setdefault(name, site)
        run = Run(pruned, prune_subsample_sites(model_trace), sampled.drawn, sampled.leaves)
        check_run(run, self.strategies)
        return run

    def _trace(self, function: PyroFunction) -> Trace:
        if self._dim is not None:
            function = pyro.plate(PARTICLES, self.num_particles, dim=self._dim)(function)
        return poutine.trace(function).get_trace(*self.args, **self.kwargs)


@torch.no_grad()
def draw_terms(program: Program, x: Batch, num_particles: int = 1, *, vectorize_particles: bool = True) -> Terms:
    """Sample K particles from the guide and score them, (K, B): evaluation is made of these.

    Several latent sites add up. Masks count, scales do not. The program's store must be active
    (:func:`pyro_vae.program.own_store`).
    """
    return _sampled(program, x, num_particles, vectorize_particles, False).terms


def draw_particles(program: Program, x: Batch, num_particles: int, *, vectorize_particles: bool = True) -> Draw:
    """Sample K particles from the guide, detached; in a plate values have a dimension of K even for K = 1."""
    return _sampled(program, x, num_particles, vectorize_particles, vectorize_particles)


def _sampled(program: Program, x: Batch, count: int, vectorize: bool, plate: bool) -> Draw:
    call = program.model, program.guide, *arguments(x), count
    return Draw(*call, "fixed", vectorize_particles=vectorize, plate=plate, scaled=False, enumerate_sites=False)
