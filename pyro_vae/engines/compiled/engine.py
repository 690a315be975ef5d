"""Engine ``compiled``: the program traced once to a static graph, compiled by Inductor, one fused optimiser."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
import torch._inductor
from torch import Tensor
from torch.fx import GraphModule
from torch.optim import Optimizer

from pyro_vae.base.errors import NonFiniteError, lookup
from pyro_vae.base.random import noise_state
from pyro_vae.base.registry import from_spec
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.compiled.compare import check_trace
from pyro_vae.engines.compiled.cuda_graphs import Recording
from pyro_vae.engines.compiled.inductor import Graph, compiled
from pyro_vae.engines.compiled.replicated import ReplicatedFunction, batched
from pyro_vae.engines.compiled.step import StepFunction, equal_estimator
from pyro_vae.engines.compiled.trace import traced
from pyro_vae.engines.nonfinite import offending
from pyro_vae.engines.optimizers import OPTIMIZERS
from pyro_vae.engines.protocol import StepInfo, one_by_one
from pyro_vae.models.replicates import Replicates, members
from pyro_vae.program.contexts import own_store
from pyro_vae.program.protocol import Program

HOW = {"fused", "foreach", "differentiable", "capturable"}  # arguments that say how an optimiser computes


class CompiledEngine:
    """Steps of a program traced once: the numbers of engine ``svi`` on the same noise, without Pyro's cost a step.

    The first batch's shape is compiled. A batch of another shape (the last of an epoch) runs its traced graph as it
    is: one step an epoch does not pay for a compilation. Every graph is compared with the eager program before it is
    used. On CUDA :meth:`run` records whole steps in CUDA graphs.

    Args:
        program: the program or :class:`~pyro_vae.Replicates`, on its device; moved later, it would not be followed.
        estimator: one of :data:`~pyro_vae.elbo.ESTIMATORS`, or Pyro's ``Trace_ELBO`` or ``TraceMeanField_ELBO``.
        optimizer: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments.
        clip_norm: largest Euclidean norm of the gradient of the loss (summed over the batch); None: no limit.
        inductor: False runs the traced graph without compiling it: to look for the cause of a difference.

    Raises:
        InputError: an unknown optimiser or argument, an estimator that cannot be traced; in the first step, a program
            that cannot be traced, a trace that differs from the program, or a machine without a C++ compiler.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.elbo import DReG
        >>> with CompiledEngine(VAE((4,), latent_dim=2), DReG(5), "adam", inductor=False) as engine:
        ...     engine.step(torch.ones(10, 4), learning_rate=1e-3, kl_weight=1.0).kl_weight
        1.0
    """

    def __init__(
        self,
        program: Program,
        estimator: Any,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        inductor: bool = True,
    ) -> None:
        self._program, self._estimator, self._inductor = program, equal_estimator(estimator), inductor
        limit = math.inf if clip_norm is None else clip_norm
        self._function: StepFunction | ReplicatedFunction
        if isinstance(program, Replicates):
            self._function = ReplicatedFunction(program, self._estimator, limit)
        else:
            self._function = StepFunction(program, self._estimator, limit)
        self._beta = float(self._estimator.beta) if isinstance(self._estimator, Weighted) else 1.0
        self._optimizer = build_optimizer(optimizer, self._function.groups)
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._shape: list[int] | None = None  # of the batch that is compiled
        self._steps = 0
        self._recording: Recording | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(own_store(self._program))
        return self

    def __exit__(self, *exc: object) -> None:
        self._recording = None  # lets go of the CUDA graphs and their memory
        self._function.let_go()
        self._stack.close()

    def prepare(self, x: Tensor, kl_weight: float = 1.0) -> None:
        """Trace, compile and check for batches of the shape of x."""
        self._function.weighted |= kl_weight != 1
        self.graph(x, torch.tensor(kl_weight, dtype=torch.float64, device=x.device))

    @torch.no_grad()
    def step(self, x: Tensor, learning_rate: float, kl_weight: float = 1.0) -> StepInfo:
        """Take one gradient step on a batch (B, *event_shape).

        Raises:
            NonFiniteError: with the step and the offending sites; the parameters are unchanged.
        """
        self._steps += 1
        weight = torch.tensor(kl_weight, dtype=torch.float64, device=x.device)
        self._function.weighted |= kl_weight != 1
        graph = self.graph(x, weight)
        noise = noise_state(x.device)
        result = self._function.result(graph(x, weight, *self._function.inputs()))
        losses, norms = torch.stack([result.loss.double(), result.norm.double()]).reshape(2, -1).tolist()
        self._function.hand_over(result)
        self._check_finite(losses, norms, x, noise)
        for group, factor in zip(self._optimizer.param_groups, self._function.rates, strict=True):
            group["lr"] = learning_rate * factor
        self._optimizer.step()
        self._function.let_go()
        self._function.remember(result)
        return self._info(losses, norms, len(x), learning_rate, kl_weight)

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch: one by one on the CPU, many to a replay on CUDA."""
        if batches.images.device.type != "cuda" or not self._recordable:
            return one_by_one(self, batches)
        return self._recorded(batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, what the estimator remembers, the number of steps, and what is compiled."""
        return {
            "steps": self._steps,
            "optimizer": self._optimizer.state_dict(),
            "estimator": self._estimator.state_dict(),
            "memory": dict(
                self._function.memory
            ),  # of each replicate; of a single program, the same as the estimator's
            "weighted": self._function.weighted,
            "shape": self._shape,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._steps, self._shape = state["steps"], state["shape"]
        self._function.weighted = state["weighted"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._estimator.load_state_dict(state["estimator"])
        if isinstance(self._function, ReplicatedFunction):
            self._function.recall(state["memory"])
        self._recording = None  # its graphs hold the former state's memory

    def graph(self, x: Tensor, weight: Tensor) -> Graph:
        """Return the checked graph for batches of the shape of x: compiled for the first shape asked for."""
        training = getattr(self._program, "training", True)
        key = (x.shape, x.dtype, training, self._function.weighted)
        if self._shape is None:
            self._shape = list(x.shape)
        if key not in self._graphs:
            graph = trace_checked(self._function, x, weight)
            if self._inductor and list(x.shape) == self._shape:
                self._graphs[key] = compiled(graph, [x, weight, *self._function.inputs()])
                check_trace(self._graphs[key], self._function, x, weight, reference=graph)
            else:
                self._graphs[key] = graph
        return self._graphs[key]

    @property
    def _recordable(self) -> bool:
        """Whether the optimiser can step inside a CUDA graph: its state and its learning rate live on the device."""
        return all(group.get("capturable") for group in self._optimizer.param_groups)

    def _recorded(self, batches: Batches) -> Iterator[list[StepInfo]]:
        self._function.weighted |= any(weight != 1 for weight in batches.kl_weights)
        if self._recording is None or not self._recording.fits(batches):
            self._recording = Recording(self._function, self.graph, self._optimizer, batches.images, batches.size)
        size, count = batches.size, len(batches.order)
        for first, rows in self._recording.epoch(batches):
            infos = []
            for number, (losses, norms) in enumerate(rows, first):
                self._steps += 1
                self._check_finite(losses, norms, partial(batches.batch, number))
                data = min(size, count - number * size)
                rates, weights = batches.learning_rates, batches.kl_weights
                infos.append(self._info(losses, norms, data, rates[number], weights[number]))
            yield infos

    def _check_finite(
        self, losses: list[float], norms: list[float], x: Tensor | Callable[[], Tensor], noise: Tensor | None = None
    ) -> None:
        """Refuse a step that is not finite; without its noise, name what is not finite on other noise."""
        bad = [i for i, pair in enumerate(zip(losses, norms, strict=True)) if not all(map(math.isfinite, pair))]
        if not bad:
            return
        program = members(self._program)[bad[0]]
        batch = x if isinstance(x, Tensor) else x()
        replicate = f" of replicate {bad[0]}" if isinstance(self._program, Replicates) else ""
        with own_store(program):
            where = offending(program, batch, noise_state(batch.device) if noise is None else noise)
        raise NonFiniteError(self._steps, losses[bad[0]], f"{where or 'no site on the same or other noise'}{replicate}")

    def _info(
        self, losses: list[float], norms: list[float], data: int, learning_rate: float, kl_weight: float
    ) -> StepInfo:
        objectives = tuple(-loss / data for loss in losses)
        mean = sum(objectives) / len(objectives)
        replicates = objectives if isinstance(self._program, Replicates) else ()
        least = min(self._program.kl_weights) if isinstance(self._program, Replicates) else 1.0
        return StepInfo(mean, kl_weight * self._beta * least, learning_rate, max(norms), replicates)


def trace_checked(function: StepFunction | ReplicatedFunction, x: Tensor, weight: Tensor) -> GraphModule:
    """Trace a step and compare the trace with the eager program; of replicates, the first, and all with it."""
    if isinstance(function, ReplicatedFunction):
        return batched(function, x, weight)
    graph = traced(function, x, weight)
    check_trace(graph, function, x, weight)
    return graph


def build_optimizer(spec: str, groups: list[dict[str, Any]]) -> Optimizer:
    """Return one optimiser over all groups of parameters, fused where torch can; rates are set before every step."""
    name, _, arguments = spec.partition(":")
    takes = inspect.signature(lookup(OPTIMIZERS, name.strip(), "optimizer")).parameters
    on_cuda = groups[0]["params"][0].device.type == "cuda"
    wanted: dict[str, Any] = {"fused": True, **({"capturable": True} if on_cuda else {})}
    said = {part.partition("=")[0].strip() for part in arguments.split(",")}
    more = {} if said & HOW else {key: value for key, value in wanted.items() if key in takes}
    return from_spec(OPTIMIZERS, spec, "optimizer", params=groups, lr=1e-3, **more)
