"""Whole training steps on the device: gather, binarization, gradients, optimiser and metrics, several per CUDA graph.

No step synchronises with the host: the learning rate and the KL weight are read from tables on the device, at the
number of the batch, which the step increments.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.base.batch import Batch
from pyro_vae.data import Data
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.compiled.step import Step
from pyro_vae.engines.compiled.trace import TracedStep

WARM_UP = 3  # ordinary steps before the first recording: they create the optimiser's state and load every kernel
STEPS = 10  # per CUDA graph
READ = 50  # steps between two transfers of the metrics to the host


class Recording:
    """The steps of one engine on one data set, on the device.

    On CUDA, after a few ordinary steps, one graph of :data:`STEPS` steps and one of a single step are recorded and
    replayed; a smaller last batch is an ordinary step. Binarization samples from the device's default generator, as all
    other noise does: its state is part of every checkpoint. On the CPU the same steps run without recording.

    From a non-finite loss or gradient on, no step changes the parameters or the estimator's state. (The optimiser's
    state and running statistics may change: the run ends with an error.)

    Args:
        function: the step; its tensors are read and updated.
        graph_for: returns the traced step for a batch and a KL weight.
        optimizer: with ``capturable`` state.
        data: the data, on the device.
        size: examples per batch.
    """

    def __init__(
        self,
        function: Step,
        graph_for: Callable[[Batch, Tensor], TracedStep],
        optimizer: Optimizer,
        data: Data,
        size: int,
    ) -> None:
        self._function, self._graph_for, self._optimizer = function, graph_for, optimizer
        self._data, self._size = data, size
        device, count = data.device, -(-len(data) // size)
        self._order = torch.zeros(len(data), dtype=torch.int64, device=device)
        self._within = torch.arange(size, device=device)
        self._rates = torch.zeros(count, dtype=torch.float32, device=device)  # the type that fused kernels read
        self._weights = torch.zeros(count, dtype=torch.float64, device=device)
        self._batch = torch.zeros(1, dtype=torch.int64, device=device)  # number of the next batch
        self._metrics = torch.zeros(
            count, 2, len(function.programs), dtype=torch.float64, device=device
        )  # loss, gradient's norm
        self._alive = torch.ones((), dtype=torch.bool, device=device)
        self._state = [state.clone() for state in function.state.values()]
        self._lr = [torch.zeros((), dtype=torch.float32, device=device) for _ in optimizer.param_groups]
        self._warm = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def epoch(self, batches: Batches) -> Iterator[tuple[int, list[tuple[list[float], list[float]]]]]:
        """Take the steps of an epoch; yield the number of a block's first batch, and a row (losses, norms) per step."""
        self._begin(batches)
        whole, end = len(batches.order) // self._size, len(batches)
        at = batches.start
        while at < end:
            stop = min(at + READ, end)
            self.advance(min(stop, whole) - at, self._size)
            if stop > whole:
                self.advance(1, len(batches.order) - whole * self._size)
            yield at, [tuple(row) for row in self._metrics[at:stop].tolist()]
            at = stop

    def fits(self, batches: Batches) -> bool:
        """Whether the recording is of steps on these data."""
        return batches.data is self._data and batches.size == self._size

    @torch.no_grad()
    def advance(self, count: int, size: int) -> None:
        """Take ``count`` steps on batches of ``size`` examples, without synchronising."""
        on_cuda = self._data.device.type == "cuda"
        with torch.cuda.device(self._data.device) if on_cuda else nullcontext():  # graphs record the current device
            self._advance(count, size)

    def _advance(self, count: int, size: int) -> None:
        while count > 0:
            taken = self._replay(count) if size == self._size and self._recordable else 0
            if not taken:
                self._step(size)
                self._warm += size == self._size
                taken = 1
            count -= taken

    @property
    def _recordable(self) -> bool:
        return self._data.device.type == "cuda" and self._warm >= WARM_UP

    def _replay(self, count: int) -> int:
        """Replay a graph, recorded on first use; return the number of its steps."""
        steps = STEPS if count >= STEPS else 1
        key = steps
        if key not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(steps):
                    self._step(self._size)
            self._graphs[key] = graph
        self._graphs[key].replay()
        return steps

    @torch.no_grad()
    def _begin(self, batches: Batches) -> None:
        self._order[: len(batches.order)].copy_(batches.order)  # an epoch may end early
        self._rates.copy_(torch.tensor(batches.learning_rates))
        self._weights.copy_(torch.tensor(batches.kl_weights, dtype=torch.float64))
        self._batch.fill_(batches.start)
        for group, rate in zip(self._optimizer.param_groups, self._lr, strict=True):
            group["lr"] = rate  # a single step in between has set a number
        for tensor, value in zip(self._state, self._function.state.values(), strict=True):
            tensor.copy_(value)
        self._function.advance(self._state)

    def _step(self, size: int) -> None:
        """Take one step without synchronising."""
        function, optimizer = self._function, self._optimizer
        x = self._data.batch(self._order[self._batch * self._size + self._within[:size]])
        weight = self._weights[self._batch].reshape(())
        for rate, factor in zip(self._lr, function.rates, strict=True):
            rate.copy_(self._rates[self._batch].reshape(()) * factor)
        tensors = [*function.tensors(), *self._state]
        result = self._graph_for(x, weight)(x, weight, *tensors)
        self._alive.logical_and_((result.loss.isfinite() & result.norm.isfinite()).all())
        function.set_grads(result)
        parameters = [function.parameters[name] for name in result.gradients]
        before = [p.clone() for p in parameters]
        optimizer.step()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(self._alive, parameter, value))
        for tensor, value in zip(self._state, result.state, strict=True):
            tensor.copy_(torch.where(self._alive, value, tensor))
        row = torch.stack([result.loss.double(), result.norm.double()]).reshape(2, -1)
        self._metrics.index_copy_(0, self._batch, row[None])
        self._batch.add_(1)
