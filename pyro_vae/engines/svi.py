"""Engine ``svi``: Pyro's own :class:`pyro.infer.SVI`, in a separate parameter store."""

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Self

import pyro
import torch
from pyro.infer import ELBO, SVI, TraceGraph_ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.base.batch import Arguments, Batch, arguments
from pyro_vae.base.errors import NonFiniteError
from pyro_vae.base.random import noise_state
from pyro_vae.base.registry import from_spec
from pyro_vae.base.types import PyroFunction, State
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.stock import (
    BASELINE,
    check_stock,
    losses_of,
    printed_loss,
    restore_running_means,
    running_means,
)
from pyro_vae.elbo.weighted import Weighted
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.nonfinite import offending
from pyro_vae.engines.optimizers import OPTIMIZERS, check_named
from pyro_vae.engines.protocol import StepInfo, check_kl_weight, one_by_one
from pyro_vae.program.contexts import own_store
from pyro_vae.program.handlers import WeightLatents
from pyro_vae.program.protocol import Program


class SVIEngine:
    """Steps of Pyro's ``SVI`` on one program.

    Gradients are clipped by their global norm. A non-finite loss or gradient raises before the optimiser steps.

    Args:
        program: the program, on its device.
        estimator: a ``pyro.infer.ELBO``.
        optimizer: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments, ``"adam:eps=1e-4"``.
        clip_norm: largest Euclidean norm of the gradient of the loss (summed over the batch); None: no clipping.
        kl_weighted: whether steps may weight the KL (:meth:`step`).

    Raises:
        InputError: an unknown optimiser or argument; an estimator of Pyro with which training would not resume bit for
            bit (:func:`~pyro_vae.elbo.stock.check_stock`).

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> from pyro_vae.elbo import trace_elbo
        >>> with SVIEngine(VAE((4,), latent_dim=2), trace_elbo(), "adam") as engine:
        ...     engine.step(torch.ones(10, 4), learning_rate=1e-3, kl_weight=1.0).kl_weight
        1.0
    """

    def __init__(
        self,
        program: Program,
        estimator: ELBO,
        optimizer: str = "adam",
        clip_norm: float | None = None,
        *,
        kl_weighted: bool = False,
    ) -> None:
        if not isinstance(estimator, Estimator):
            check_stock(estimator, kl_weighted=kl_weighted)
        self._program, self._estimator = program, estimator
        self._clip_norm = math.inf if clip_norm is None else clip_norm
        self._kl_weighted, self._kl_weight = kl_weighted, 1.0
        self._steps = 0
        self._names: dict[Tensor, str | None] = {}  # recorded in each step: the store is gone after the block
        self._running_means: dict[str, Tensor] = {}  # of TraceGraph_ELBO, likewise
        self._arguments = {"lr": 0.0}  # replaced before every step
        check_named(optimizer)
        # built once on a dummy tensor, so that a wrong argument raises here, not in the first step
        from_spec(OPTIMIZERS, optimizer, "optimizer", params=[torch.zeros(1, requires_grad=True)], lr=1e-3)
        self._optim = PyroOptim(partial(_build_optimizer, optimizer), self._arguments)
        self._svi = SVI(
            self._model, self._guide, self._optim, loss=losses_of(estimator).loss, loss_and_grads=self._loss_and_grads
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(own_store(self._program))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def prepare(self, x: Batch, kl_weight: float = 1.0) -> None:
        """Check the KL weight; Pyro traces the program in every step."""
        check_kl_weight(kl_weight, self._kl_weighted)

    def step(self, x: Batch, learning_rate: float, kl_weight: float = 1.0) -> StepInfo:
        """Take one step of Pyro's SVI on a batch (B, *event_shape), or on the arguments of a call.

        Raises:
            InputError: a KL weight other than 1 on an engine that was not started for it.
            NonFiniteError: names the step and the non-finite sites; the parameters are unchanged.
        """
        check_kl_weight(kl_weight, self._kl_weighted)
        self._steps += 1
        self._kl_weight = kl_weight
        self._set_learning_rate(learning_rate)
        args, kwargs = arguments(x)
        loss = self._svi.step(*args, **kwargs)
        self._record_names()
        beta = float(self._estimator.beta) if isinstance(self._estimator, Weighted) else 1.0
        return StepInfo(-loss / len(x), kl_weight * beta, learning_rate, self._grad_norm)

    def run(self, batches: Batches) -> Iterator[list[StepInfo]]:
        """Take the steps of an epoch one by one."""
        return one_by_one(self, batches)

    def state_dict(self) -> State:
        """Return the optimisers' states by parameter name, and the number of steps."""
        waiting = self._optim._state_waiting_to_be_consumed  # a loaded state, until the first step
        taken = {self._names[p]: optimizer.state_dict() for p, optimizer in self._optim.optim_objs.items()}
        ours = self._estimator.state_dict() if isinstance(self._estimator, Estimator) else {}
        estimator = {**self._running_means, **ours}
        return {"steps": self._steps, "optimizer": {**waiting, **taken}, "estimator": estimator}

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`."""
        self._steps = state["steps"]
        self._optim.set_state(state["optimizer"])
        if isinstance(self._estimator, Estimator):
            self._estimator.load_state_dict(state["estimator"])
        else:
            restore_running_means(state["estimator"])

    def _record_names(self) -> None:
        """Note the names of parameters met for the first time; running means, which no optimiser moves, are kept."""
        for parameter in self._optim.optim_objs.keys() - self._names.keys():
            name = pyro.get_param_store().param_name(parameter)
            if name and name.startswith(BASELINE):  # Pyro puts another tensor in its place in every step
                del self._optim.optim_objs[parameter]
            else:
                self._names[parameter] = name
        if isinstance(self._estimator, TraceGraph_ELBO):
            self._running_means = running_means()

    def _model(self, *args: object, **kwargs: object) -> object:
        with self._weighted():
            return self._program.model(*args, **kwargs)

    def _guide(self, *args: object, **kwargs: object) -> object:
        with self._weighted():
            return self._program.guide(*args, **kwargs)

    def _weighted(self) -> AbstractContextManager[object]:
        """Weight the KL inside Pyro's own estimators; :class:`Weighted` does it for ours, on the terms."""
        plain = self._kl_weight == 1 or isinstance(self._estimator, Estimator)
        return nullcontext() if plain else WeightLatents(self._kl_weight)

    def _estimator_now(self) -> ELBO:
        """Return the estimator, with its KL weighted for this step."""
        if self._kl_weight != 1 and isinstance(self._estimator, Estimator):
            return Weighted(self._estimator, self._kl_weight)
        return self._estimator

    def _set_learning_rate(self, value: float) -> None:
        self._arguments["lr"] = value
        groups = [g for o in self._optim.optim_objs.values() for g in o.param_groups]
        for state in self._optim._state_waiting_to_be_consumed.values():
            groups += state["param_groups"]
        for group in groups:
            group["lr"] = value

    def _loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *args: Tensor, **kwargs: Tensor) -> float:
        x = Arguments(args, kwargs)
        before = noise_state(x.device)
        try:
            with warnings.catch_warnings():  # a NaN is an error below, not a warning
                warnings.filterwarnings("ignore", message="Encountered NaN")
                estimator = self._estimator_now()
                found = losses_of(estimator).loss_and_grads(model, guide, *args, **kwargs)
                loss = printed_loss(estimator, found)
        except ValueError as error:  # Pyro's validation raises first for a NaN parameter of a distribution
            where = offending(self._program, x, before)
            if where:
                raise NonFiniteError(self._steps, math.nan, where) from error
            raise
        gradients = [p for p in self._program.parameters() if p.grad is not None]
        self._grad_norm = torch.nn.utils.clip_grad_norm_(gradients, self._clip_norm).item()
        if not (math.isfinite(loss) and math.isfinite(self._grad_norm)):
            where = offending(self._program, x, before) or "no site when traced again on the same noise"
            raise NonFiniteError(self._steps, loss, where)
        return loss


def _build_optimizer(spec: str, params: list[Tensor], lr: float) -> Optimizer:
    return from_spec(OPTIMIZERS, spec, "optimizer", params=params, lr=lr)
