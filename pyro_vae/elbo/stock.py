"""Pyro's own estimators in training: which are taken, what they return, and what they keep between steps."""

import math
from collections.abc import Mapping
from typing import Protocol, cast

import pyro
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.tracetmc_elbo import TraceTMC_ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction

TRACED_BY_PYRO = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)
SUMMING = (TraceEnum_ELBO, TraceTMC_ELBO)  # over the values of enumerated sites
WEIGHTABLE = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, RenyiELBO)  # by a scale on the latents
BASELINE = "__baseline_avg_downstream_cost_"  # the names under which TraceGraph_ELBO keeps its running means
COMMON = {"max_plate_nesting", "vectorize_particles", "retain_graph", "ignore_jit_warnings", "jit_options"}
COMMON |= {"strict_enumeration_warning", "tail_adaptive_beta"}  # arguments that all have, and that change no objective


def check_stock(estimator: ELBO, *, kl_weighted: bool = False) -> None:
    """Refuse an estimator of Pyro with which training would not resume bit for bit, or would print no value.

    Args:
        estimator: a ``pyro.infer.ELBO`` that is none of ours.
        kl_weighted: whether steps may weight the KL.

    Raises:
        InputError: it samples to find its plate nesting in its first step, which a resumed run would do again; Pyro's
            ``Jit`` forms, which run the program to trace it, and take the size of that batch for that of every other;
            ``TraceTailAdaptive_ELBO``, whose loss is infinite; a weighted KL of an estimator that has no such term.

    Example:
        >>> check_stock(TraceEnum_ELBO(max_plate_nesting=1))
        >>> check_stock(TraceTailAdaptive_ELBO())
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected an estimator with a value to print; got TraceTailAdaptive_ELBO, \
whose loss is inf whatever the parameters. Try RenyiELBO, or pyro.infer.SVI by itself.
    """
    kind = type(estimator).__name__
    if isinstance(estimator, TRACED_BY_PYRO):
        raise InputError(
            "an estimator that runs the program in every step",
            f"{kind}, which samples to trace it and keeps the size of the first batch",
            f"{kind.removeprefix('Jit')}, or one of ours with engine='compiled'",
        )
    if isinstance(estimator, TraceTailAdaptive_ELBO):
        got = f"{kind}, whose loss is inf whatever the parameters"
        raise InputError("an estimator with a value to print", got, "RenyiELBO, or pyro.infer.SVI by itself")
    samples = estimator.vectorize_particles or isinstance(estimator, SUMMING)
    if samples and math.isinf(estimator.max_plate_nesting):
        more = "vectorize_particles=True, " if not isinstance(estimator, SUMMING) else ""
        raise InputError(
            "an estimator that states its plate nesting",
            f"{kind}, which would sample to find it in its first step, and again where training resumes",
            f"{kind}({more}max_plate_nesting=1), the number of dimensions that plates take up",
        )
    if kl_weighted and not isinstance(estimator, WEIGHTABLE):
        hint = "kl_warmup=0, or Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO or RenyiELBO"
        raise InputError("an estimator whose KL can be weighted", kind, hint)


class Losses(Protocol):
    """What ``SVI`` needs of a ``pyro.infer.ELBO``, whose base class declares neither."""

    def loss(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> object:
        """Return the loss: a number, or one for each objective."""

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *args: object, **kwargs: object) -> object:
        """Return the loss, and add its gradient to ``.grad`` of every parameter."""


def losses_of(estimator: ELBO) -> Losses:
    """Return an estimator as what has losses."""
    return cast(Losses, estimator)


def sums_sites(estimator: ELBO) -> bool:
    """Whether an estimator of Pyro sums over the values of enumerated sites, which the guide may then leave out."""
    return isinstance(estimator, SUMMING)


def described(estimator: ELBO) -> str:
    """Return the name of an estimator of Pyro with the arguments that make its objective.

    Example:
        >>> described(RenyiELBO(alpha=0.5, num_particles=3))
        'RenyiELBO(num_particles=3, alpha=0.5)'
    """
    given = {name: value for name, value in vars(estimator).items() if isinstance(value, bool | int | float | str)}
    given = {n: v for n, v in given.items() if n[0] != "_" and n not in COMMON}
    shown = {"num_particles": getattr(estimator, "num_particles", None)} | given
    return f"{type(estimator).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def printed_loss(estimator: ELBO, loss: object) -> float:
    """Return the loss to print, of what ``loss_and_grads`` returns.

    ``ReweightedWakeSleep`` returns θ's and φ's. θ's is minus a bound; φ's is printed where the other is not computed.

    Example:
        >>> printed_loss(ReweightedWakeSleep(insomnia=0.5), (3.0, 1.0)), printed_loss(Trace_ELBO(), 2.0)
        (3.0, 2.0)
    """
    if isinstance(estimator, ReweightedWakeSleep) and isinstance(loss, tuple):
        wakes = estimator.model_has_params or estimator.insomnia > 0
        return float(loss[0 if wakes else 1])
    return float(loss)  # type: ignore[arg-type]  # a number, or a tensor of one


def running_means() -> dict[str, Tensor]:
    """Return the running means that ``TraceGraph_ELBO`` keeps in the active parameter store."""
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store if name.startswith(BASELINE)}


def restore_running_means(state: Mapping[str, object]) -> None:
    """Put running means, which a checkpoint holds, back into the active parameter store."""
    for name, value in state.items():
        if name.startswith(BASELINE) and isinstance(value, Tensor):
            pyro.param(name, value)
