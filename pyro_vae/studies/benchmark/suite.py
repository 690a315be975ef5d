"""The benchmark: every variant on every size, checked, then timed round by round, in one process."""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError, NonFiniteError, lookup
from pyro_vae.base.random import isolated_rng, seed_noise
from pyro_vae.base.types import Progress, no_progress
from pyro_vae.data import as_images
from pyro_vae.evaluation.methods.bounds import importance_bounds
from pyro_vae.models.vae import VAE
from pyro_vae.studies.benchmark import floor
from pyro_vae.studies.benchmark.agreement import Agreement, Reference, compare, run_reference, trajectory
from pyro_vae.studies.benchmark.floor import Products
from pyro_vae.studies.benchmark.handwritten import ByHand, ByHandCompiled
from pyro_vae.studies.benchmark.pyro_variants import OnCompiled, OnELBOModule, OnEngine, Stock, StockUnvalidated
from pyro_vae.studies.benchmark.records import BoundSpeed, Point, Report, Row, SizeReport
from pyro_vae.studies.benchmark.sizes import SIZES, Size
from pyro_vae.studies.benchmark.variant import Unavailable, Variant

Build = Callable[[Size, VAE, Tensor], Variant]

WARM_UP = 100  # steps of the hand-written loop before any variant starts: at first the loss hardly depends on the noise
LEARNING_RATE = 1e-5  # of the timed steps: thousands of them on one batch
PEER = "pyro_vae.studies.benchmark.numpyro_peer"
COMPILES = ("compiled", "hand-compiled")


def _in_numpyro(size: Size, vae: VAE, x: Tensor) -> Variant:
    """Build NumPyro's variant; its module is imported late, because importing JAX takes a second."""
    peer: Variant = importlib.import_module(PEER).InNumPyro(size, vae, x)
    return peer


VARIANTS: dict[str, tuple[str, Build]] = {
    "stock": ("stock Pyro", Stock),
    "stock-unvalidated": ("stock Pyro, validation off", StockUnvalidated),
    "elbo-module": ("ELBOModule, one fused optimiser", OnELBOModule),
    "svi": ("engine svi", OnEngine),
    "compiled": ("engine compiled", OnCompiled),
    "hand": ("by hand in PyTorch", ByHand),
    "hand-compiled": ("by hand, torch.compile", ByHandCompiled),
    "numpyro": ("NumPyro, fori_loop under jit", _in_numpyro),
    "floor": ("floor: matrix products alone", Products),
}
"""Name -> (title, constructor); the constructor takes a size, a program and a batch."""

SCALED = ("svi", "compiled", "hand", "floor")
Change = Callable[[Size, int], Size]
SCALING: dict[str, tuple[Size, Change, tuple[int, ...], tuple[str, ...]]] = {
    "batch": (SIZES["mlp"], lambda size, value: replace(size, batch_size=value), (32, 128, 512, 2048), SCALED),
    "latent dimensions": (SIZES["mlp"], lambda size, value: replace(size, latent_dim=value), (2, 20, 200), SCALED),
    "particles": (SIZES["iwae-1"], lambda size, value: replace(size, num_particles=value), (1, 5, 50), SCALED),
    "replicates": (SIZES["mlp"], lambda size, value: replace(size, replicates=value), (1, 4, 16), ("compiled",)),
}
"""Scaling series: axis -> (size, how a value changes it, values, variants)."""

EVALUATORS: dict[str, Callable[..., Tensor]] = {
    "svi": partial(importance_bounds, compiled=False),
    "compiled": partial(importance_bounds, compiled=True),
}
"""Variant -> how it computes L_K; called with program, images, number of particles and seed."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how long.

    Args:
        device: where to run.
        sizes: names in :data:`~pyro_vae.studies.benchmark.SIZES`.
        variants: names in :data:`VARIANTS`.
        rounds: of timing; the order of the variants rotates by one from round to round.
        seconds: approximate duration of the hand-written loop in one round.
        num_losses: losses sampled to check a variant against the reference.
        scaling: axis -> values; empty for none.
        num_images: images for which L_K is timed; 0 for none.
        num_particles: K of L_K.

    Raises:
        InputError: an unknown name, a count that is too small.
    """

    device: torch.device
    sizes: Sequence[str]
    variants: Sequence[str]
    rounds: int = 15
    seconds: float = 0.15
    num_losses: int = 32
    scaling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_images: int = 0
    num_particles: int = 5000

    def __post_init__(self) -> None:
        for name in self.sizes:
            lookup(SIZES, name, "size")
        for name in self.variants:
            lookup(VARIANTS, name, "variant")
        if self.rounds < 2:
            raise InputError("rounds of at least 2", self.rounds, "rounds=15")


def benchmark(plan: Plan, progress: Progress = no_progress) -> Report:
    """Check and time every variant of a plan.

    Args:
        plan: what to measure.
        progress: called as ``progress(what, done, total)`` before each first step and each round.
    """
    device = plan.device
    rate, bandwidth = floor.measure_device(device) if device.type == "cuda" else (None, None)
    with isolated_rng(device, 0), _empty_caches() as empty_cache:
        setting = _Setting(plan, progress, empty_cache, _load(plan.variants, device))
        sizes = tuple(_measure(name, SIZES[name], plan.variants, setting) for name in plan.sizes)
        scaling = tuple(_scaling(setting))
        evaluations = tuple(_evaluations(setting))
    return Report(device.type, sizes, scaling, evaluations, rate, bandwidth)


@dataclass(frozen=True)
class _Setting:
    """What the measurements of all sizes share."""

    plan: Plan
    progress: Progress
    empty_cache: Callable[[], None]  # gives the compiler an empty cache
    loading: float  # seconds that torch's compiler took to load


def _measure(name: str, size: Size, variants: Sequence[str], setting: _Setting) -> SizeReport:
    """Check and time the variants on one size."""
    plan, progress = setting.plan, setting.progress
    torch.compiler.reset()  # the previous size's graphs count towards the compiler's limit of recompilations
    progress(f"{name}: the reference", 0, 1)
    subject = _Subject(size, plan)
    with ExitStack() as stack:
        rows, ready = [], {}
        for done, key in enumerate(variants):
            progress(f"{name}: first step of {key}", done, len(variants))
            setting.empty_cache()
            row, variant = subject.prepare(key, setting.loading if key in COMPILES else 0.0)
            rows.append(row)
            if variant is not None:
                ready[key] = stack.enter_context(closing(variant))
        timed = _rounds(ready, subject.steps, plan.rounds, partial(progress, f"{name}: rounds"))
    measured = tuple(replace(row, rounds=tuple(timed[row.variant])) if row.variant in timed else row for row in rows)
    return SizeReport(name, size.title, *floor.work(size, subject.build(), subject.x), subject.steps, measured)


def _load(variants: Sequence[str], device: torch.device) -> float:
    """Import NumPyro and load torch's compiler before any first step; return the seconds that the compiler took."""
    if "numpyro" in variants:
        importlib.import_module(PEER)
    if not set(variants) & set(COMPILES):
        return 0.0
    began = perf_counter()
    with suppress(RuntimeError):  # the rows of the variants that compile report the error
        torch.compile(torch.exp)(torch.ones(4, device=device))
    return perf_counter() - began


class _Subject:
    """One size: its batch, the parameters from which every variant starts, and the reference."""

    def __init__(self, size: Size, plan: Plan) -> None:
        self.size, self.device, self.num_losses = size, plan.device, plan.num_losses
        self.x = size.images(size.batch_size, self.device)
        start = ByHand(size, size.build(self.device), self.x)
        seed_noise(0, self.device)
        start.run(WARM_UP, 1e-3)
        self.start = {name: tensor.clone() for name, tensor in start.vae.state_dict().items()}
        self.reference: Reference = run_reference(self._make_reference, self.num_losses)
        self.steps = self._steps(start, plan.seconds)

    def build(self) -> VAE:
        """Return a new program with the common parameters."""
        vae = self.size.build(self.device)
        vae.load_state_dict(self.start)
        return vae

    def prepare(self, key: str, loading: float) -> tuple[Row, Variant | None]:
        """Build a variant, time its first step and check it; return its row, and the variant if it can be timed."""
        title, build = VARIANTS[key]
        vae = self.build()
        try:
            began = perf_counter()
            variant = build(self.size, vae, self.x)
            with variant.active():
                variant.seed(0)
                variant.run(1, 0.0)
                first = loading + perf_counter() - began
                agreement = self._agreement(variant)
                memory = variant.memory()
        except Unavailable as error:
            return Row(key, title, "absent", str(error)), None
        except (InputError, NonFiniteError, RuntimeError) as error:  # from the compiler, the tracer or a step
            return Row(key, title, "failed", f"{type(error).__name__}: {_first_line(error)}"), None
        if agreement is not None and not agreement.passed:
            variant.close()
            return Row(key, title, "disagrees", str(agreement), agreement=agreement), None
        return Row(key, title, "measured", first_step=first, memory=memory, agreement=agreement), variant

    def _make_reference(self) -> Variant:
        """Return a new reference after the one step that every variant takes before its check."""
        variant = ByHand(self.size, self.build(), self.x)
        variant.seed(0)
        variant.run(1, 0.0)
        return variant

    def _agreement(self, variant: Variant) -> Agreement | None:
        if isinstance(variant, Products):
            return None
        return compare(trajectory(variant, self.num_losses), self.reference)

    def _steps(self, variant: Variant, seconds: float) -> int:
        began = perf_counter()
        variant.run(5, LEARNING_RATE)
        return max(2, round(5 * seconds / (perf_counter() - began)))


def _rounds(
    variants: dict[str, Variant], steps: int, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """Return the seconds per step of every variant in every round, in the orders A B C, B C A, C A B, ..."""
    found: dict[str, list[float]] = {key: [] for key in variants}
    for number in range(rounds):
        progress(number, rounds)
        turn = number % max(1, len(variants))
        for key in [*variants][turn:] + [*variants][:turn]:
            variant = variants[key]
            with variant.active():
                variant.run(1, LEARNING_RATE)
                began = perf_counter()
                variant.run(steps, LEARNING_RATE)
                found[key].append((perf_counter() - began) / steps)
    return found


def _scaling(setting: _Setting) -> Iterator[Point]:
    plan = setting.plan
    for axis, values in plan.scaling.items():
        size, change, _, scaled = SCALING[axis]
        variants = [key for key in scaled if key in plan.variants]
        for value in values if variants else ():
            yield Point(axis, value, _measure(f"{axis} {value}", change(size, value), variants, setting))


def _evaluations(setting: _Setting) -> Iterator[BoundSpeed]:
    plan, progress = setting.plan, setting.progress
    wanted = {variant: evaluate for variant, evaluate in EVALUATORS.items() if variant in plan.variants}
    if not (plan.num_images and wanted):
        return
    size = SIZES["iwae-1"]
    images = as_images(size.images(plan.num_images, plan.device))
    program = size.build(plan.device)
    setting.empty_cache()
    seconds: dict[str, list[float]] = {variant: [] for variant in wanted}
    for number in range(3):
        for variant, evaluate in wanted.items():
            progress(f"L_{plan.num_particles} of {len(images)} images, {variant}: rounds", number, 3)
            began = perf_counter()
            evaluate(program, images, plan.num_particles, 0).sum().item()
            seconds[variant].append(perf_counter() - began)
    for variant, rounds in seconds.items():
        yield BoundSpeed(variant, len(images), plan.num_particles, tuple(rounds))


@contextmanager
def _empty_caches() -> Iterator[Callable[[], None]]:
    """Yield a function that gives torch's compiler a new, empty cache, so that every first step compiles."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    # the compiler's worker processes may still be writing at the end
    with tempfile.TemporaryDirectory(prefix="pyro-vae-bench-", ignore_cleanup_errors=True) as folder:

        def empty() -> None:
            for name in names:
                os.environ[name] = tempfile.mkdtemp(dir=folder)

        try:
            yield empty
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
