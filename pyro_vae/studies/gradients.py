r"""Estimators side by side on one program: what their gradients are like, what they cost, and what they buy.

The gradient of an estimator is a random vector g, here of the bound per datum on one batch of data, θ (what the model
uses) and φ (what the guide uses) apart. From N draws with mean ḡ and total variance V (the trace of the covariance):

============  ==========================================================================================
signal²       ‖ḡ‖² − V/N: the squared norm of E g, freed from the noise of the mean
SNR           √(signal² / V)
bias²         ‖ḡ − r̄‖² − V/N − V_r/N_r, over the reference's signal²; 0 in expectation where there is none
DSNR          E ‖g∥‖ / ‖g⊥‖: along and across the reference's direction (Rainforth et al., arXiv 1802.04537)
cosine        E cos(g, r̄), of a single draw
============  ==========================================================================================

The reference r is the plain (total) gradient of the bound that the estimator claims to follow, from draws of its own.
Standard errors: jackknife over ten blocks for the first three, over draws for the others.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.base.random import isolated_rng
from pyro_vae.base.statistics import Estimate, Moments, estimate, jackknife
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.importance import IWAE, IWAESTL, MIWAE, PIWAE, DReG
from pyro_vae.elbo.pathwise import STL, AnalyticKL, SampledKL
from pyro_vae.elbo.score import VIMCO, Reinforce, ReinforceMovingAverage
from pyro_vae.elbo.wake_sleep import WakeSleep
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import sample_sites, trace_program

Report = Callable[[str], None]
GROUPS = ("theta", "phi")
TIMED = 15  # rounds, interleaved; the median counts


@dataclass(frozen=True)
class GradientReport:
    """What the gradient of one estimator is like in one group of parameters."""

    estimator: str
    group: str  # theta or phi
    reference: str
    draws: int
    norm: float  # of the mean, freed from noise; per datum
    variance: Estimate
    snr: Estimate
    bias_squared: Estimate  # over the squared norm of the reference
    dsnr: Estimate
    cosine: Estimate


@dataclass(frozen=True)
class EstimatorReport:
    """What one estimator gives and costs on one program."""

    estimator: str
    particles: int
    bound: Estimate  # nats per datum; of what its loss reports
    ess: Estimate  # effective sample size over the number of particles
    seconds: float  # a step: loss and gradients; the median of interleaved rounds
    memory: float  # MB a step: the peak on CUDA, what is kept for the backward pass elsewhere
    gradients: tuple[GradientReport, ...]


def compare_gradients(
    program: Program,
    x: Tensor,
    estimators: Mapping[str, Any],
    draws: int = 1000,
    reference_draws: int = 4000,
    seed: int = 0,
    report: Report = lambda what: None,
) -> list[EstimatorReport]:
    """Compare the gradients of estimators on one batch, with fresh noise for every draw.

    Args:
        program: the program, on its device.
        x: a batch, (B, *event_shape).
        estimators: name -> ``pyro.infer.ELBO``.
        draws: N, of each estimator.
        reference_draws: N_r, of each reference.
        seed: of all noise.
        report: called with the name of what is being drawn, once a draw.
    """
    estimators = copy.deepcopy(dict(estimators))  # some remember a baseline: those of the caller stay as they are
    with isolated_rng(x.device, seed), own_store(program):
        subject = _Subject(program, x)
        wanted = {name: {g: subject.reference_of(e, g) for g in GROUPS} for name, e in estimators.items()}
        distinct = dict.fromkeys(reference for pair in wanted.values() for reference in pair.values())
        references = {r: subject.moments(r, reference_draws, lambda r=r: report(f"reference {r}")) for r in distinct}  # type: ignore[misc]
        costs = subject.costs(estimators)
        reports = []
        for name, estimator in estimators.items():
            mine = {g: (str(wanted[name][g]), references[wanted[name][g]][g]) for g in GROUPS}
            bound, gradients = subject.gradients(name, estimator, mine, draws, lambda name=name: report(name))  # type: ignore[misc]
            particles = getattr(estimator, "draws", getattr(estimator, "num_particles", 1))
            ess = effective_sample_size(program, x, particles)
            reports.append(EstimatorReport(name, particles, bound, ess, *costs[name], gradients))
        return reports


def count_references(program: Program, x: Tensor, estimators: Mapping[str, Any]) -> int:
    """Return how many distinct references a comparison draws from, for a progress bar."""
    with isolated_rng(x.device), own_store(program):
        subject = _Subject(program, x)
        return len({subject.reference_of(e, g) for e in estimators.values() for g in GROUPS})


def parameter_groups(program: Program, x: Tensor) -> dict[str, list[Tensor]]:
    """Return the tensors that the guide uses as φ and those that only the model uses as θ."""
    with torch.no_grad():
        traces = trace_program(program, x)
    used: list[dict[int, Tensor]] = []
    for trace in traces:
        sites: list[Any] = [site for site in trace.nodes.values() if site["type"] == "param"]
        tensors = [site["value"].unconstrained() for site in sites]
        used.append({id(tensor): tensor for tensor in tensors})
    guide, model = used
    return {"theta": [t for key, t in model.items() if key not in guide], "phi": list(guide.values())}


class _Subject:
    """One program on one batch, as the comparison looks at it; its store must be active."""

    def __init__(self, program: Program, x: Tensor) -> None:
        self.program, self.x = program, x
        self.groups = parameter_groups(program, x)
        with torch.no_grad():
            guide_trace, _ = trace_program(program, x)
        self.reparameterized = all(site["fn"].has_rsample for _, site in sample_sites(guide_trace))

    def reference_of(self, estimator: Any, group: str) -> Any:
        """Return the plain estimator of the bound that this one follows for a group of parameters.

        Where a latent has no reparameterization, or no plain estimator is known (RWS, TVO, wake-sleep's φ), the
        estimator is its own reference: its bias is then not looked for.
        """
        if isinstance(estimator, Weighted):
            return Weighted(self.reference_of(estimator.estimator, group), estimator.beta)
        if not self.reparameterized:
            return estimator
        count = estimator.num_particles
        if isinstance(estimator, PIWAE):
            return IWAE(estimator.draws if group == "theta" else count)
        if isinstance(estimator, WakeSleep):
            return SampledKL(count) if group == "theta" else estimator
        if isinstance(estimator, IWAESTL | DReG | VIMCO | MIWAE):
            return IWAE(count)
        if isinstance(estimator, STL | AnalyticKL | Reinforce | ReinforceMovingAverage):
            return SampledKL(count)
        return estimator if isinstance(estimator, Estimator) else SampledKL(count)  # Pyro's own follow the ELBO

    def gradient(self, estimator: Any) -> tuple[float, dict[str, Tensor]]:
        """Return the bound per datum and its gradient, flat, for each group of parameters."""
        loss = estimator.differentiable_loss(self.program.model, self.program.guide, self.x) / len(self.x)
        tensors = [tensor for group in GROUPS for tensor in self.groups[group]]
        found = torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True)
        flat = iter([-g.flatten() for g in found])
        parts = {group: [next(flat) for _ in self.groups[group]] for group in GROUPS}
        return -loss.item(), {g: torch.cat(p) if p else self.x.new_zeros(0) for g, p in parts.items()}

    def moments(self, estimator: Any, draws: int, tick: Callable[[], None]) -> dict[str, Moments]:
        """Return mean and variance of the gradient over fresh draws."""
        moments = {group: Moments() for group in GROUPS}
        for _ in range(draws):
            tick()
            _, found = self.gradient(estimator)
            for group in GROUPS:
                moments[group].add(found[group])
        return moments

    def gradients(
        self,
        name: str,
        estimator: Any,
        references: Mapping[str, tuple[str, Moments]],
        draws: int,
        tick: Callable[[], None],
    ) -> tuple[Estimate, tuple[GradientReport, ...]]:
        """Return the bound, and a report for each group that has parameters."""
        used = [group for group in GROUPS if self.groups[group]]
        moments, means = {g: Moments() for g in used}, {g: references[g][1].mean() for g in used}
        bounds: list[float] = []
        directions: dict[str, list[tuple[float, float]]] = {group: [] for group in used}
        for _ in range(draws):
            tick()
            bound, found = self.gradient(estimator)
            bounds.append(bound)
            for group in used:
                moments[group].add(found[group])
                directions[group].append(_directions(found[group].double(), means[group]))
        reports = [_gradient_report(name, g, references[g], moments[g], directions[g]) for g in used]
        return _mean_of(bounds), tuple(reports)

    def costs(self, estimators: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """Return seconds (median of interleaved rounds) and MB of a step of each estimator."""
        seconds: dict[str, list[float]] = {name: [] for name in estimators}
        for _ in range(TIMED):
            for name, estimator in estimators.items():
                start = time.perf_counter()
                self.gradient(estimator)  # .item() inside waits for the device
                seconds[name].append(time.perf_counter() - start)
        return {name: (statistics.median(seconds[name]), self._memory(e)) for name, e in estimators.items()}

    def _memory(self, estimator: Any) -> float:
        device = self.x.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self.gradient(estimator)
            return (torch.cuda.max_memory_allocated(device) - before) / 1e6
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.gradient(estimator)
        return sum(kept.values()) / 1e6


def _directions(g: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return ‖g∥‖/‖g⊥‖ and the cosine, against the reference's direction."""
    along = torch.dot(g, reference).item() / reference.norm().item()
    squared = g.square().sum().item()
    across = math.sqrt(max(squared - along**2, 0.0))
    return (abs(along) / across if across else math.inf), (along / math.sqrt(squared) if squared else math.nan)


def _gradient_report(
    name: str,
    group: str,
    reference: tuple[str, Moments],
    own: Moments,
    directions: list[tuple[float, float]],
) -> GradientReport:
    referred, other = reference
    ratios, cosines = (list(column) for column in zip(*directions, strict=True))

    def signal(moments: Moments, without: int | None) -> float:
        return moments.mean(without).square().sum().item() - moments.variance(without) / moments.counted(without)

    def snr(without: int | None) -> float:
        variance = own.variance(without)
        return math.sqrt(max(signal(own, without), 0.0) / variance) if variance else math.inf

    def bias(without: int | None) -> float:
        distance = (own.mean(without) - other.mean(without)).square().sum().item()
        noise = sum(m.variance(without) / m.counted(without) for m in (own, other))
        return (distance - noise) / signal(other, None)

    return GradientReport(
        name,
        group,
        referred,
        own.count,
        math.sqrt(max(signal(own, None), 0.0)),
        Estimate(*jackknife(own.variance, own.blocks)),
        Estimate(*jackknife(snr, own.blocks)),
        Estimate(*jackknife(bias, own.blocks)),
        _mean_of(ratios),
        _mean_of(cosines),
    )


def _mean_of(values: list[float]) -> Estimate:
    return estimate(torch.tensor(values, dtype=torch.float64))


def effective_sample_size(program: Program, x: Tensor, num_particles: int, repeats: int = 20) -> Estimate:
    r"""Return :math:`1 / (K \sum_k \tilde w_k^2)`, from 1/K (one particle has it all) to 1, over data and repeats."""
    shares = [draw_terms(program, x, num_particles).log_weight.softmax(0) for _ in range(repeats)]
    sizes = torch.stack([1 / share.square().sum(0) / num_particles for share in shares])
    return Estimate(sizes.mean().item(), estimate(sizes.mean(0)).standard_error)
