"""Programs: what every estimator, engine, evaluation and plot asks of a model and a guide.

A program is a pair of Pyro functions ``model(x)`` and ``guide(x)`` and the parameters they use, with one
batch plate, ``pyro.plate("data", len(x), dim=-1)``, and everything else in event dimensions (``to_event``).
:class:`pyro_vae.VAE` is one; any ``nn.Module`` with the two methods is one; :class:`FunctionProgram` makes one
of two functions.
"""

import functools
import inspect
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vae.devices import isolated_rng
from pyro_vae.errors import InputError

ProgramFunction = Callable[[Tensor], Any]
Trace = poutine.Trace
PARTICLES = "num_particles_vectorized"  # Pyro's own name for the plate over particles
MODULE_DIVIDER = "$$$"  # what pyro.module puts between a module's name and its parameter's


@runtime_checkable
class Program(Protocol):
    """A model, a guide and their parameters; an ``nn.Module`` with two methods satisfies it."""

    def model(self, x: Tensor) -> Any:
        """p(x, z) for a batch x of shape (B, *event_shape), x observed."""

    def guide(self, x: Tensor) -> Any:
        """q(z|x) for the same batch; samples every latent of the model."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trainable tensor."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trainable tensor with its name."""

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by name."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Copy parameters and buffers by name."""

    def to(self, device: torch.device) -> Any:
        """Move parameters and buffers, keeping their identity."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode (dropout, batch normalisation)."""


class FunctionProgram(nn.Module):
    """The program of any two Pyro functions, however they hold their parameters.

    The functions run once on ``example``, in a parameter store of their own, to find their parameters.
    Modules registered with ``pyro.module`` (or that are a ``PyroModule``) and reachable from the functions
    become submodules, so that buffers travel too; every ``pyro.param`` becomes a parameter of this module.

    Args:
        model: p(x, z) with x observed.
        guide: q(z|x).
        example: a few data, (B, *event_shape).
        modules: modules that the search of globals, closures and attributes cannot see.

    Raises:
        InputError: a registered module that cannot be found (its buffers would be lost at a checkpoint).

    Example:
        >>> import pyro.distributions as dist
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
        model: ProgramFunction,
        guide: ProgramFunction,
        example: Tensor,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self._functions = (model, guide)
        with isolated_rng(example.device), pyro.get_param_store().scope() as found, explained():
            samples = poutine.trace(guide).get_trace(example)
            poutine.replay(model, trace=samples)(example)
        reachable = {id(m): m for f in (*self._functions, *modules) for m in _modules_of(f)}
        self.submodules = nn.ModuleList(reachable.values())
        owned = {id(p) for p in self.submodules.parameters()}
        self.free = nn.Module()
        self._names: dict[str, str] = {}  # name in the store -> attribute of self.free
        for name, tensor in found["params"].items():
            if id(tensor) not in owned:
                _refuse_lost_module(name)
                attribute = name.replace(".", "/")  # module attributes must not hold a dot
                self.free.register_parameter(attribute, nn.Parameter(tensor.detach()))
                self._names[name] = attribute
        self._constraints = {name: found["constraints"][name] for name in self._names}

    def model(self, x: Tensor) -> Any:
        """Run the model given at construction."""
        return self._functions[0](x)

    def guide(self, x: Tensor) -> Any:
        """Run the guide given at construction."""
        return self._functions[1](x)

    def store_state(self) -> dict[str, dict[str, Any]]:
        """Return the free parameters as a state for Pyro's parameter store; tensors are shared, not copied."""
        params = {name: getattr(self.free, attribute) for name, attribute in self._names.items()}
        return {"params": params, "constraints": dict(self._constraints)}


def as_program(thing: object, example: Tensor) -> Program:
    """Return ``thing`` as a program: an ``nn.Module`` as it is, functions through :class:`FunctionProgram`.

    Args:
        thing: an ``nn.Module`` with ``model`` and ``guide``; any object or module with these two functions;
            or a pair ``(model, guide)``.
        example: a few data, (B, *event_shape).

    Raises:
        InputError: none of these.
    """
    if isinstance(thing, nn.Module) and _has_both(thing):
        return cast(Program, thing)
    if isinstance(thing, tuple) and len(thing) == 2 and all(map(callable, thing)):
        return cast(Program, FunctionProgram(*thing, example))
    if _has_both(thing) and not inspect.isclass(thing):
        functions = cast(Any, thing)
        return cast(Program, FunctionProgram(functions.model, functions.guide, example))
    raise InputError(
        "a program: an nn.Module with model(x) and guide(x), or a pair of functions",
        f"{thing!r:.80}",
        "fit((model, guide), data)",
    )


@contextmanager
def own_store(program: Program) -> Iterator[None]:
    """Run a block in a parameter store that holds this program's parameters and no other's."""
    state = program.store_state() if isinstance(program, FunctionProgram) else None
    with pyro.get_param_store().scope(cast(Any, state)):
        yield


def trace_program(program: Program, x: Tensor, num_particles: int | None = None) -> tuple[Trace, Trace]:
    """Trace the guide, then the model replayed on its samples; returns (guide trace, model trace).

    Args:
        program: the program; its store must be active (:func:`own_store`).
        x: a batch, (B, *event_shape).
        num_particles: K, an outermost plate in dimension -2; None traces without that plate.
    """
    model, guide = program.model, program.guide
    if num_particles is not None:
        model = pyro.plate(PARTICLES, num_particles, dim=-2)(model)
        guide = pyro.plate(PARTICLES, num_particles, dim=-2)(guide)
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    return prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)


@contextmanager
def explained(what: str = "that runs on a batch, all but the batch in event dimensions by .to_event") -> Iterator[None]:
    """Turn an error of the user's own code into one line that says where it happened; the cause stays chained."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise program_error(error, what) from error


def program_error(
    error: Exception, what: str, hint: str = "running model and guide on a small batch by hand"
) -> InputError:
    """Return the refusal of a program whose code raised an error: what was expected of it, and the line that raised."""
    foreign = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(folder in Path(frame.filename).parents for folder in foreign)]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return InputError(f"a program {what}", f"{type(error).__name__}{place}: {first}", hint)


def load_parameters(program: Program, state: dict[str, Any]) -> None:
    """Copy parameters and buffers by name.

    Raises:
        InputError: the state is of another program.
    """
    try:
        program.load_state_dict(state)
    except RuntimeError as error:
        got = str(error).splitlines()[-1].strip().rstrip(".")
        raise InputError("a state of this program", got, "the program that it was saved from") from None


def observed_site(trace: Trace, x: Tensor) -> str:
    """Return the name of the one observed site whose value has the shape of the data.

    Raises:
        InputError: there is none, or more than one.
    """
    names = [n for n, s in sample_sites(trace) if s["is_observed"] and s["value"].shape == x.shape]
    if len(names) != 1:
        raise InputError(f"one observed site of shape {tuple(x.shape)}", names, "pyro.sample('x', ..., obs=x)")
    return names[0]


def latent_sites(trace: Trace) -> dict[str, torch.Size]:
    """Return the event shape of every latent site, in the order of sampling."""
    return {name: site["fn"].event_shape for name, site in sample_sites(trace) if not site["is_observed"]}


def check_latents(guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a guide that does not draw just the model's latents, in their shapes, or a model that observes nothing.

    Raises:
        InputError: as said.
    """
    guide = {n: s for n, s in sample_sites(guide_trace) if not s["infer"].get("is_auxiliary") and not s["is_observed"]}
    model = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    if len(model) == len(sample_sites(model_trace)):
        raise InputError("an observed site in the model", "none", "pyro.sample('x', ..., obs=x)")
    if guide.keys() != model.keys():
        got = f"model {sorted(model)}, guide {sorted(guide)}"
        raise InputError("the same latent sites in model and guide", got, "one pyro.sample name for both")
    for name, site in guide.items():
        shapes = tuple(model[name]["fn"].event_shape), tuple(site["fn"].event_shape)
        if shapes[0] != shapes[1]:  # broadcasting would count log p(z) more than once
            got = f"{shapes[1]} in the guide, {shapes[0]} in the model"
            raise InputError(
                f"one event shape of latent {name!r} in model and guide", got, "the same .to_event in both"
            )


def sample_sites(trace: Trace) -> list[tuple[str, Any]]:
    """Return the name and the record of every sample site, in the order of sampling; not of ``pyro.deterministic``."""
    sites: list[tuple[str, Any]] = list(trace.nodes.items())
    return [(n, s) for n, s in sites if s["type"] == "sample" and not s["infer"].get("_deterministic")]


def _has_both(thing: object) -> bool:
    return callable(getattr(thing, "model", None)) and callable(getattr(thing, "guide", None))


def _refuse_lost_module(name: str) -> None:
    module, divider, _ = name.partition(MODULE_DIVIDER)
    if divider:
        raise InputError(
            f"pyro.module({module!r}, ...) on a module that is a global, a closure variable or an attribute",
            "one made elsewhere, whose buffers no checkpoint could hold",
            "FunctionProgram(model, guide, example, modules=[...])",
        )


def _modules_of(thing: object, depth: int = 3) -> list[nn.Module]:
    """Return the nn.Modules that a function can see: itself, its object's, globals and closures, helpers'."""
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
    return [module for item in seen for module in _modules_of(item, depth - 1)] if depth else []
