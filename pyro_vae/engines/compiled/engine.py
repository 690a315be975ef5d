"""Engine ``compiled``: the program traced once to a static graph, compiled by Inductor, one fused optimiser."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Self

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.base.batch import Arguments, Batch, layout, tensors_of
from pyro_vae.base.errors import InputError, NonFiniteError, lookup
from pyro_vae.base.random import noise_state
from pyro_vae.base.registry import from_spec
from pyro_vae.base.types import State
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.compiled.cuda_graphs import Recording
from pyro_vae.engines.compiled.inductor import compile_graph
from pyro_vae.engines.compiled.recheck import Baseline, Tensors
from pyro_vae.engines.compiled.replicated import step_function, trace_step
from pyro_vae.engines.compiled.step import Step, equal_estimator
from pyro_vae.engines.compiled.trace import TracedStep, check_compiled
from pyro_vae.engines.nonfinite import offending
from pyro_vae.engines.optimizers import OPTIMIZERS, check_named
from pyro_vae.engines.protocol import StepInfo, check_kl_weight, one_by_one
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program

IMPLEMENTATION = {"fused", "foreach", "differentiable", "capturable"}  # arguments that choose an optimiser's kernels
Key = tuple[object, ...]  # shapes and types of the batch, and the mode


class CompiledEngine:
    """Steps of a program traced once: equal to engine ``svi`` on the same noise, without Pyro's overhead per step.

    The shape of the first batch is compiled. A batch of another shape (a smaller last one) is traced when it is first
    met and runs uncompiled: compilation does not amortise over one step per epoch. Every graph is compared with the
    eager program before it is used, and by :meth:`run` again every epoch: what is meant to change between steps is a
    registered buffer, changed in place. On CUDA, :meth:`run` records whole steps in CUDA graphs.

    Args:
        program: the program or :class:`~pyro_vae.Replicates`, on its device; do not move it afterwards.
        estimator: one of :data:`~pyro_vae.elbo.ESTIMATORS`, or Pyro's ``Trace_ELBO`` or ``TraceMeanField_ELBO``.
        optimizer: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments.
        clip_norm: largest Euclidean norm of the gradient of the loss (summed over the batch); None: no clipping.
        inductor: False runs the traced graph uncompiled, to locate the cause of a difference.
        kl_weighted: whether steps may weight the KL (:meth:`step`).

    Raises:
        InputError: an unknown optimiser or argument, an estimator that cannot be traced; in the first step, a program
            that cannot be traced, a trace that differs from the program, or a machine without a C++ compiler.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> from pyro_vae.elbo import DReG
        >>> with CompiledEngine(VAE((4,), latent_dim=2), DReG(5), "adam", inductor=False) as engine:
        ...     engine.step(torch.ones(10, 4), learning_rate=1e-3).kl_weight
        1.0
    """

    def __init__(
        self,
        program: Program | Replicates,
        estimator: ELBO,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        inductor: bool = True,
        kl_weighted: bool = False,
    ) -> None:
        self._program, self._estimator, self._inductor = program, equal_estimator(estimator), inductor
        limit = math.inf if clip_norm is None else clip_norm
        self._tracer = step_function(program, self._estimator, limit, kl_weighted=kl_weighted)
        self._function: Step = self._tracer
        self._beta = float(self._estimator.beta) if isinstance(self._estimator, Weighted) else 1.0
        self._optimizer = build_optimizer(optimizer, self._function.groups)
        self._tensors = Tensors(self._function.programs)
        self._baselines: dict[bool, Baseline] = {}  # by mode: of the first shape that is traced
        self._traced: dict[Key, TracedStep] = {}
        self._graphs: dict[Key, TracedStep] = {}  # compiled where that amortises
        self._shape: list[int] | list[list[int]] | None = None  # of the batches that are compiled
        self._steps = 0
        self._recording: Recording | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(own_store(self._function.programs[0]))
        return self

    def __exit__(self, *exc: object) -> None:
        self._recording = None  # frees the CUDA graphs and their memory pool
        self._function.zero_grad()
        self._stack.close()

    def prepare(self, x: Batch, kl_weight: float = 1.0) -> None:
        """Trace, compile and check the graph for batches of the shape of x."""
        check_kl_weight(kl_weight, self._function.kl_weighted)
        self.graph(x, torch.tensor(kl_weight, dtype=torch.float64, device=x.device))

    @torch.no_grad()
    def step(self, x: Batch, learning_rate: float, kl_weight: float = 1.0) -> StepInfo:
        """Take one gradient step on a batch (B, *event_shape), or on the arguments of a call.

        Raises:
            InputError: a KL weight other than 1 on an engine that was not started for it.
            NonFiniteError: names the step and the non-finite sites; the parameters are unchanged.
        """
        check_kl_weight(kl_weight, self._function.kl_weighted)
        self._steps += 1
        weight = torch.tensor(kl_weight, dtype=torch.float64, device=x.device)
        graph = self.graph(x, weight)
        noise = noise_state(x.device)
        result = graph(x, weight, *self._function.inputs())
        losses, norms = torch.stack([result.loss.double(), result.norm.double()]).reshape(2, -1).tolist()
        self._function.set_grads(result)
        self._check_finite(losses, norms, x, noise)
        for group, factor in zip(self._optimizer.param_groups, self._function.rates, strict=True):
            group["lr"] = learning_rate * factor
        self._optimizer.step()
        self._function.zero_grad()
        self._function.advance(result.state)
        return self._info(losses, norms, len(x), learning_rate, kl_weight)

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch: one by one on the CPU, several per replay on CUDA.

        Before the first, the trace is checked against the program again, on the data and the noise of the first check;
        after the last, where a value that the program holds has changed.

        Raises:
            InputError: names what was changed since the trace.
        """
        recorded, mode = batches.data.device.type == "cuda" and self._recordable, self._mode
        self._tensors.check()
        if mode in self._baselines:
            self._baselines[mode].check()
        yield from self._recorded(batches) if recorded else one_by_one(self, batches)
        self._tensors.check()
        mode = mode if recorded else self._mode  # single steps are traced again in another mode
        if mode in self._baselines:
            self._baselines[mode].check_where_changed()

    def state_dict(self) -> State:
        """Return the optimiser's state, the estimator's, the number of steps, and the compiled shape."""
        return {
            "steps": self._steps,
            "optimizer": self._optimizer.state_dict(),
            "estimator": self._function.estimator_state(),
            "shape": self._shape,
            "trained": list(self._function.parameters),
        }

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            InputError: other parameters were trained: some were frozen or unfrozen since.
        """
        self._check_trained(state.get("trained"))
        self._steps, self._shape = state["steps"], state["shape"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._function.load_estimator_state(state["estimator"])
        self._recording = None  # its graphs use the memory of the former state

    def _check_trained(self, began: list[str] | None) -> None:
        trained = list(self._function.parameters)
        if began is None or began == trained:
            return
        found = [f"{name} frozen since" for name in began if name not in trained]
        found += [f"{name} unfrozen since" for name in trained if name not in began]
        hint = "fit(program, ...) without resume, which trains on from the program as it is"
        raise InputError("the trained parameters with which training began", ", ".join(found), hint)

    def trace(self, x: Batch, weight: Tensor) -> TracedStep:
        """Return the traced step for batches of the shape of x, checked and not compiled."""
        key = self._key(x)
        if key not in self._traced:
            baseline = Baseline(self._tracer.singles, x, weight)
            self._traced[key] = trace_step(self._tracer, x, weight, baseline.reference)
            self._baselines.setdefault(self._mode, baseline)
        return self._traced[key]

    def graph(self, x: Batch, weight: Tensor) -> TracedStep:
        """Return the checked graph for batches of the shape of x: compiled for the first shape asked for."""
        key = self._key(x)
        if self._shape is None:
            self._shape = _shape(x)
        if key not in self._graphs:
            step = self.trace(x, weight)
            if self._inductor and _shape(x) == self._shape:
                flat = compile_graph(step.graph, [*tensors_of(x), weight, *self._function.inputs()])
                check_compiled(step.by(flat), step, self._tracer, x, weight)
                step = step.by(flat)
            self._graphs[key] = step
        return self._graphs[key]

    def _key(self, x: Batch) -> Key:
        return *layout(x), self._mode

    @property
    def _mode(self) -> bool:
        """Whether the program is in training mode."""
        return bool(getattr(self._function.programs[0], "training", True))

    @property
    def _recordable(self) -> bool:
        """Whether the optimiser can step inside a CUDA graph: its state and its learning rate are on the device."""
        return all(group.get("capturable") for group in self._optimizer.param_groups)

    def _recorded(self, batches: Batches) -> Iterator[list[StepInfo]]:
        for kl_weight in batches.kl_weights:
            check_kl_weight(kl_weight, self._function.kl_weighted)
        if self._recording is None or not self._recording.fits(batches):
            self._recording = Recording(self._function, self.graph, self._optimizer, batches.data, batches.size)
        size, count = batches.size, len(batches.order)
        for first, rows in self._recording.epoch(batches):
            infos = []
            for number, (losses, norms) in enumerate(rows, first):
                self._steps += 1
                self._check_finite(losses, norms, partial(batches.batch, number))
                examples = min(size, count - number * size)
                rates, weights = batches.learning_rates, batches.kl_weights
                infos.append(self._info(losses, norms, examples, rates[number], weights[number]))
            yield infos

    def _check_finite(
        self, losses: list[float], norms: list[float], x: Batch | Callable[[], Batch], noise: Tensor | None = None
    ) -> None:
        """Raise for a non-finite step; without its noise, name the sites that are non-finite on the current noise."""
        bad = [i for i, pair in enumerate(zip(losses, norms, strict=True)) if not all(map(math.isfinite, pair))]
        if not bad:
            return
        program = self._function.programs[bad[0]]
        batch = x if isinstance(x, Tensor | Arguments) else x()
        replicate = f" of replicate {bad[0]}" if self._function.replicated else ""
        with own_store(program):
            where = offending(program, batch, noise_state(batch.device) if noise is None else noise)
        raise NonFiniteError(self._steps, losses[bad[0]], f"{where or 'no site on the same or other noise'}{replicate}")

    def _info(
        self, losses: list[float], norms: list[float], examples: int, learning_rate: float, kl_weight: float
    ) -> StepInfo:
        objectives = tuple(-loss / examples for loss in losses)
        mean = sum(objectives) / len(objectives)
        weight = kl_weight * self._beta * self._function.least_kl_weight
        return StepInfo(mean, weight, learning_rate, max(norms), objectives if self._function.replicated else ())


def _shape(x: Batch) -> list[int] | list[list[int]]:
    """Return the shape of a batch as a checkpoint holds it."""
    return list(x.shape) if isinstance(x, Tensor) else [list(tensor.shape) for tensor in x.tensors]


def build_optimizer(spec: str, groups: list[dict[str, list[Tensor]]]) -> Optimizer:
    """Return one optimiser over all groups, fused where torch supports it; rates are set before every step."""
    check_named(spec)
    name, _, arguments = spec.partition(":")
    takes = inspect.signature(lookup(OPTIMIZERS, name.strip(), "optimizer")).parameters
    on_cuda = groups[0]["params"][0].device.type == "cuda"
    wanted = {"fused": True, **({"capturable": True} if on_cuda else {})}
    given = {part.partition("=")[0].strip() for part in arguments.split(",")}
    more = {} if given & IMPLEMENTATION else {key: value for key, value in wanted.items() if key in takes}
    return from_spec(OPTIMIZERS, spec, "optimizer", params=groups, lr=1e-3, **more)
