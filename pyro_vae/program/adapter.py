"""A pair of Pyro functions, or an object with both, as a program."""

import functools
import inspect
import types
from collections.abc import Iterable
from typing import TypedDict, cast

import pyro
from pyro import poutine
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.explain import explained
from pyro_vae.program.protocol import MODULE_DIVIDER, Program


class StoreState(TypedDict):
    """A state for Pyro's parameter store: unconstrained tensors and constraints by name."""

    params: dict[str, Tensor]
    constraints: dict[str, Constraint]


class FunctionProgram(nn.Module):
    """The program of two Pyro functions, however they hold their parameters.

    The functions run once on ``example``, in their own parameter store, to find their parameters. Modules that are
    registered with ``pyro.module`` (or are a ``PyroModule``) and reachable from the functions become submodules, so
    checkpoints include their buffers; every ``pyro.param`` becomes a parameter of this module.

    Both are trained in place. A ``pyro.param`` that the caller's store holds is that very parameter, from its value on,
    as ``pyro.param`` itself would have it; ``fresh`` names the others, which start from their initial value.

    Args:
        model: p(x, z) with x observed.
        guide: q(z|x).
        example: a few examples, (B, *event_shape), or the arguments of a call.
        modules: modules that the search of globals, closures and attributes does not find.

    Raises:
        InputError: a registered module that is not found (a checkpoint would lose its buffers); a ``pyro.param`` that
            the caller's store holds in another shape or under another constraint.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     weight = pyro.param("weight", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(weight * x[..., 0], 0.7))
        >>> program = FunctionProgram(model, guide, torch.zeros(4, 1))
        >>> [name for name, _ in program.named_parameters()]
        ['free.weight']
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        example: Batch,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.functions = (model, guide)
        reachable = {id(m): m for f in (*self.functions, *modules) for m in modules_of(f)}
        self.submodules = nn.ModuleList(reachable.values())
        held = next(self.submodules.parameters(), None)  # an earlier fit may have moved the modules
        example = example if held is None else example.to(held.device)
        args, kwargs = arguments(example)
        with isolated_rng(example.device), pyro.get_param_store().scope() as found, explained():
            samples = poutine.trace(guide).get_trace(*args, **kwargs)
            poutine.replay(model, trace=samples)(*args, **kwargs)
        owned = {id(p) for p in self.submodules.parameters()}
        self.free = nn.Module()
        self.fresh: list[str] = []  # names of which the caller's store has no value
        self._names: dict[str, str] = {}  # name in the store -> attribute of self.free
        callers: StoreState = pyro.get_param_store().get_state()
        for name, tensor in found["params"].items():
            if id(tensor) not in owned:
                _refuse_lost_module(name)
                attribute = name.replace(".", "/")  # module attributes must not hold a dot
                stored = _stored(name, tensor, found["constraints"][name], callers)
                self.fresh += [name] if stored is None else []
                self.free.register_parameter(attribute, nn.Parameter(tensor.detach()) if stored is None else stored)
                self._names[name] = attribute
        self._constraints = {name: found["constraints"][name] for name in self._names}

    def model(self, *args: object, **kwargs: object) -> object:
        """Run the model given at construction."""
        return self.functions[0](*args, **kwargs)

    def guide(self, *args: object, **kwargs: object) -> object:
        """Run the guide given at construction."""
        return self.functions[1](*args, **kwargs)

    def store_state(self) -> StoreState:
        """Return the free parameters as a state for Pyro's parameter store; tensors are shared, not copied."""
        params = {name: getattr(self.free, attribute) for name, attribute in self._names.items()}
        return {"params": params, "constraints": dict(self._constraints)}


def as_program(thing: object, example: Batch) -> Program:
    """Return ``thing`` as a program: an ``nn.Module`` as it is, functions through :class:`FunctionProgram`.

    Args:
        thing: an ``nn.Module`` with ``model`` and ``guide``; any object or module with these two functions;
            or a pair ``(model, guide)``. An object's ``simulate`` stays with it.
        example: a few examples, (B, *event_shape), or the arguments of a call.

    Raises:
        InputError: ``thing`` is none of these.
    """
    if isinstance(thing, nn.Module) and _has_both(thing):
        return cast(Program, thing)
    if isinstance(thing, tuple) and len(thing) == 2 and all(map(callable, thing)):
        return cast(Program, FunctionProgram(*thing, example))
    if _has_both(thing) and not inspect.isclass(thing):
        functions = cast(Program, thing)
        program = FunctionProgram(functions.model, functions.guide, example)
        if callable(simulate := getattr(thing, "simulate", None)):
            program.simulate = simulate
        return cast(Program, program)
    raise InputError(
        "a program: an nn.Module with model(x) and guide(x), or a pair of functions",
        f"{thing!r:.80}",
        "fit((model, guide), data)",
    )


def keep_in_store(program: FunctionProgram) -> None:
    """Put the free parameters of two functions into the active store, where ``pyro.param`` then finds them.

    The store holds the program's own parameters afterwards, not copies; other names stay as they are.
    """
    store, state = pyro.get_param_store(), program.store_state()
    for name in state["params"]:
        if name in store:
            del store[name]  # set_state would keep the former tensor's name
    store.set_state(state)


def _stored(name: str, tensor: Tensor, constraint: Constraint, callers: StoreState) -> nn.Parameter | None:
    """Return the caller's own parameter of that name, unconstrained, or None."""
    if name not in callers["params"]:
        return None
    theirs = callers["params"][name]
    expected = f"{tuple(tensor.shape)} under {constraint}"
    got = f"{tuple(theirs.shape)} under {callers['constraints'][name]}"
    if got != expected:
        raise InputError(
            f"pyro.param {name!r} of shape {expected}, as in the functions",
            f"{got} in Pyro's parameter store",
            f"del pyro.get_param_store()[{name!r}], or another name",
        )
    return theirs if isinstance(theirs, nn.Parameter) else nn.Parameter(theirs.detach())


def _has_both(thing: object) -> bool:
    return callable(getattr(thing, "model", None)) and callable(getattr(thing, "guide", None))


def _refuse_lost_module(name: str) -> None:
    module, divider, _ = name.partition(MODULE_DIVIDER)
    if divider:
        raise InputError(
            f"pyro.module({module!r}, ...) on a module that is a global, a closure variable or an attribute",
            "a module made elsewhere, whose buffers no checkpoint would contain",
            "FunctionProgram(model, guide, example, modules=[...])",
        )


def modules_of(thing: object, depth: int = 3) -> list[nn.Module]:
    """Return the modules that a function reaches: its own, its object's, in globals, closures and helper functions."""
    if isinstance(thing, nn.Module):
        return [thing]
    if isinstance(thing, functools.partial):
        seen: list[object] = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, types.MethodType):
        owner = thing.__self__
        seen = [owner] if isinstance(owner, nn.Module) else [*vars(owner).values(), thing.__func__]
    elif isinstance(thing, types.FunctionType):
        variables = inspect.getclosurevars(thing)
        seen = [*variables.nonlocals.values(), *variables.globals.values()]
    elif isinstance(thing, dict | list | tuple):
        seen = list(thing.values()) if isinstance(thing, dict) else list(thing)
    else:
        return []
    return [module for item in seen for module in modules_of(item, depth - 1)] if depth else []
