r"""Gradients of estimators side by side on one program: bias, variance, signal-to-noise ratio, and cost.

The gradient of an estimator is a random vector g, here of the bound per example on one batch of data, split into θ
(parameters that only the model uses) and φ (those of the guide). From N draws with mean ḡ and total variance V (the
trace of the covariance):

============  ==========================================================================================
signal²       ‖ḡ‖² − V/N: the squared norm of E g, without the noise of the mean
SNR           √(signal² / V)
distance²     ‖ḡ − r̄‖² − V/N − V_r/N_r; 0 in expectation without bias
bias²         distance² over the reference's signal²
DSNR          E ‖g∥‖ / ‖g⊥‖: along and across u (Rainforth et al., arXiv 1802.04537)
cosine        E cos(g, u), of a single draw
============  ==========================================================================================

u is the direction of E r; the reference r is the plain estimator with the same expectation
(:meth:`pyro_vae.elbo.Estimator.reference`), from its own draws. Where none is known, no bias is reported, and r are
other draws of the estimator itself. The errors count the noise of both: :mod:`pyro_vae.studies.gradient_figures`.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import pandas as pd
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae.base.batch import Arguments, Batch, arguments, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.statistics import Estimate, Moments, estimate
from pyro_vae.base.tables import Records, columns_of
from pyro_vae.base.types import Progress, PyroFunction, no_progress
from pyro_vae.elbo.catalogue import as_estimators
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.estimator import Estimator, Group
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.program.adapter import as_program
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import trace_program, trained_tensors
from pyro_vae.studies.gradient_figures import GradientSample, gradient_figures

GROUPS: tuple[Group, Group] = ("theta", "phi")
PYROS = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)  # these follow the ELBO
LEAST_DRAWS = 20  # one for each block of the jackknife
TIMED = 15  # rounds, interleaved; the median counts


@dataclass(frozen=True)
class GradientReport:
    """Bias, variance and signal-to-noise ratio of one estimator's gradient in one group of parameters."""

    estimator: str
    group: str  # theta or phi
    reference: str | None  # None: no plain estimator with the same expectation is known
    draws: int
    norm: float  # of the mean, without its noise; per example
    variance: Estimate
    snr: Estimate
    distance_squared: Estimate | None  # ‖E g − E r‖²: 0 within five errors, no bias found; None without a reference
    bias_squared: Estimate | None  # over the squared norm of the reference; None without one, or if unknown
    dsnr: Estimate | None  # None if unknown
    cosine: Estimate | None  # None if unknown
    unknown: tuple[str, ...]  # a line for each figure that these draws do not determine: its name and why


@dataclass(frozen=True)
class EstimatorReport:
    """Bound, cost and gradients of one estimator on one program."""

    estimator: str
    particles: int
    bound: Estimate  # nats per example; of the loss it reports
    ess: Estimate  # effective sample size over the number of particles
    seconds: float  # a step: loss and gradients; the median of interleaved rounds
    memory: float  # MB a step: the peak on CUDA, what is kept for the backward pass elsewhere
    gradients: tuple[GradientReport, ...]


class GradientComparison(Records[EstimatorReport]):
    """The reports of :func:`compare_gradients`, one per estimator; prints as a table."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per estimator and group of parameters; a figure without a value is NaN."""
        rows = [
            {**columns_of(report), **_with_numbers(columns_of(gradient))}
            for report in self
            for gradient in report.gradients
        ]
        return pd.DataFrame(rows)

    def shown(self) -> pd.DataFrame:
        """Return bound, variance, SNR and bias, with their standard errors; "–": no reference, or see ``unknown``."""
        rows = [
            {
                "estimator": report.estimator,
                "K": report.particles,
                "bound": str(report.bound),
                "group": gradient.group,
                "variance": str(gradient.variance),
                "SNR": str(gradient.snr),
                "bias²": "–" if gradient.bias_squared is None else str(gradient.bias_squared),
                "ms": f"{1e3 * report.seconds:.2f}",
            }
            for report in self
            for gradient in report.gradients
        ]
        return pd.DataFrame(rows)


def _with_numbers(columns: dict[str, object]) -> dict[str, object]:
    """Give figures without a value the columns of those with one."""
    none = {name for name in ("distance_squared", "bias_squared", "dsnr", "cosine") if columns[name] is None}
    return columns | {column: math.nan for name in none for column in (name, f"{name}_standard_error")}


class Differentiable(Protocol):
    """The interface of an estimator that can be compared: a ``pyro.infer.ELBO`` with a differentiable loss."""

    num_particles: int

    @property
    def vectorize_particles(self) -> bool:
        """Whether several particles are run in a plate."""

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> Tensor:
        """Return the loss, with the gradient of the estimator."""


def compare_gradients(
    program: object,
    x: Batch,
    estimators: Mapping[str, str | ELBO],
    draws: int = 1000,
    reference_draws: int = 4000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> GradientComparison:
    """Compare the gradients of estimators on one batch, with fresh noise for every draw.

    Args:
        program: as for :func:`pyro_vae.fit`, on the device of x.
        x: a batch, (B, *event_shape), or the arguments of a call.
        estimators: name -> ``pyro.infer.ELBO``, or a text such as ``"iwae:num_particles=5"``.
        draws: N, of each estimator, at least 20.
        reference_draws: N_r, of each reference, at least 20.
        seed: of all noise.
        progress: called as ``progress(what, done, total)`` for every draw.

    Returns:
        One report per estimator, in their order; prints as a table, and has ``to_dataframe()``.

    Raises:
        InputError: an argument that does not fit; an estimator that does not define its reference, or names itself.
    """
    if not isinstance(x, Tensor | Arguments) or any(tensor.dim() < 1 for tensor in tensors_of(x)):
        raise InputError("a batch, a tensor (B, ...)", type(x).__name__, "data.validation.binarized(seed=0)[:20]")
    for name, count in (("draws", draws), ("reference_draws", reference_draws)):
        if not isinstance(count, int) or count < LEAST_DRAWS:
            raise InputError(f"{name} of at least {LEAST_DRAWS}", repr(count), f"{name}={LEAST_DRAWS}")
    own = cast(dict[str, Differentiable], copy.deepcopy(as_estimators(estimators)))  # the caller's baselines stay
    subject_program = as_program(program, x.cpu())
    subject_program.to(x.device)
    with isolated_rng(x.device, seed), own_store(subject_program):
        subject = _Subject(subject_program, x)
        wanted = {name: {g: _reference(e, g) for g in GROUPS} for name, e in own.items()}
        compared = {name: {g: wanted[name][g] or e for g in GROUPS} for name, e in own.items()}
        distinct = dict.fromkeys(other for pair in compared.values() for other in pair.values())
        references = {
            other: subject.moments(
                other, reference_draws, partial(progress, f"reference {other}", total=reference_draws)
            )
            for other in distinct
        }
        costs = subject.costs(own)
        reports = []
        for name, estimator in own.items():
            mine = {g: (wanted[name][g], references[compared[name][g]][g]) for g in GROUPS}
            bound, gradients = subject.gradients(name, estimator, mine, draws, partial(progress, name, total=draws))
            particles = estimator.total_particles if isinstance(estimator, Estimator) else estimator.num_particles
            ess = effective_sample_size(subject.program, x, particles, vectorize_particles=_vectorized(estimator))
            reports.append(EstimatorReport(name, particles, bound, ess, *costs[name], gradients))
        return GradientComparison(reports)


def parameter_groups(program: Program, x: Batch) -> dict[str, list[Tensor]]:
    """Return the tensors that the guide uses as φ and those that only the model uses as θ."""
    with torch.no_grad():
        traces = trace_program(program, x)
    guide, model = ({id(tensor): tensor for tensor in trained_tensors(trace).values()} for trace in traces)
    return {"theta": [t for key, t in model.items() if key not in guide], "phi": list(guide.values())}


class _Subject:
    """One program on one batch, and its groups of parameters; its store must be active."""

    def __init__(self, program: Program, x: Batch) -> None:
        self.program, self.x = program, x
        self.groups = parameter_groups(program, x)

    def gradient(self, estimator: Differentiable) -> tuple[float, dict[Group, Tensor]]:
        """Return the bound per example and its gradient, flat, for each group of parameters."""
        args, kwargs = arguments(self.x)
        loss = estimator.differentiable_loss(self.program.model, self.program.guide, *args, **kwargs) / len(self.x)
        tensors = [tensor for group in GROUPS for tensor in self.groups[group]]
        found = torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True)
        flat = iter([-g.flatten() for g in found])
        parts = {group: [next(flat) for _ in self.groups[group]] for group in GROUPS}
        return -loss.item(), {g: torch.cat(p) if p else torch.zeros(0, device=self.x.device) for g, p in parts.items()}

    def moments(self, estimator: Differentiable, draws: int, tick: Callable[[int], None]) -> dict[Group, Moments]:
        """Return mean and variance of the gradient over fresh draws."""
        moments = {group: Moments() for group in GROUPS}
        for done in range(draws):
            tick(done)
            _, found = self.gradient(estimator)
            for group in GROUPS:
                moments[group].add(found[group])
        return moments

    def gradients(
        self,
        name: str,
        estimator: Differentiable,
        references: Mapping[Group, tuple[Estimator | None, Moments]],
        draws: int,
        tick: Callable[[int], None],
    ) -> tuple[Estimate, tuple[GradientReport, ...]]:
        """Return the bound, and a report for each group that has parameters."""
        samples = {g: GradientSample(references[g][1].left_out()) for g in GROUPS if self.groups[g]}
        bounds: list[float] = []
        for done in range(draws):
            tick(done)
            bound, found = self.gradient(estimator)
            bounds.append(bound)
            for group, sample in samples.items():
                sample.add(found[group])
        reports = [_gradient_report(name, group, references[group][0], samples[group]) for group in samples]
        return estimate(torch.tensor(bounds, dtype=torch.float64)), tuple(reports)

    def costs(self, estimators: Mapping[str, Differentiable]) -> dict[str, tuple[float, float]]:
        """Return seconds (median of interleaved rounds) and MB of a step of each estimator."""
        seconds: dict[str, list[float]] = {name: [] for name in estimators}
        for _ in range(TIMED):
            for name, estimator in estimators.items():
                start = time.perf_counter()
                self.gradient(estimator)  # .item() inside waits for the device
                seconds[name].append(time.perf_counter() - start)
        return {name: (statistics.median(seconds[name]), self._memory(e)) for name, e in estimators.items()}

    def _memory(self, estimator: Differentiable) -> float:
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


def _reference(estimator: Differentiable, group: Group) -> Estimator | None:
    if isinstance(estimator, PYROS):
        return SampledKL(estimator.num_particles, vectorize_particles=estimator.vectorize_particles)
    if not isinstance(estimator, Estimator):
        got = f"{type(estimator).__name__}, which defines none"
        raise InputError("an estimator that defines its reference, or one of Pyro's for the ELBO", got, "iwae or renyi")
    reference = estimator.reference(group)
    if reference is estimator:  # any bias would read as 0
        raise InputError("a reference other than itself", estimator, "the plain estimator, or ByAutograd(self)")
    return reference if reference is None or estimator.vectorized else replace(reference, vectorize_particles=False)


def _gradient_report(name: str, group: Group, reference: Estimator | None, sample: GradientSample) -> GradientReport:
    figures = gradient_figures(sample)
    of_reference = {
        "bias²": "" if reference is None else figures.bias_squared,
        "DSNR": figures.dsnr,
        "cosine": figures.cosine,
    }
    bias, dsnr, cosine = (None if isinstance(figure, str) else figure for figure in of_reference.values())
    return GradientReport(
        name,
        group,
        None if reference is None else str(reference),
        sample.moments.count,
        figures.norm,
        figures.variance,
        figures.snr,
        None if reference is None else figures.distance_squared,
        bias,
        dsnr,
        cosine,
        tuple(f"{of}: {why}" for of, why in of_reference.items() if isinstance(why, str) and why),
    )


def _vectorized(estimator: Differentiable) -> bool:
    return estimator.vectorized if isinstance(estimator, Estimator) else estimator.vectorize_particles


def effective_sample_size(
    program: Program, x: Batch, num_particles: int, repeats: int = 20, *, vectorize_particles: bool = True
) -> Estimate:
    r"""Return :math:`1 / (K \sum_k \tilde w_k^2)`, between 1/K and 1, averaged over examples and repeats."""
    drawn = [draw_terms(program, x, num_particles, vectorize_particles=vectorize_particles) for _ in range(repeats)]
    weights = [terms.log_weight.softmax(0) for terms in drawn]
    sizes = torch.stack([1 / weight.square().sum(0) / num_particles for weight in weights])
    return Estimate(sizes.mean().item(), estimate(sizes.mean(0)).standard_error)
