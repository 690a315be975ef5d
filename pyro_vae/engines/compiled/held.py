"""What a program reads besides its parameters and buffers, by name: attributes, closures, globals, submodules.

A trace keeps these as they were. Comparing them names a change; whether the change matters, the eager step tells
(:mod:`~pyro_vae.engines.compiled.recheck`).
"""

import functools
import itertools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, nn

from pyro_vae.program.protocol import Program

PLAIN = (bool, int, float, complex, str, bytes, type(None))
LIBRARIES = {"builtins", "collections", "numpy", "pyro", "pyro_vae", "torch", "typing"}  # not searched
REGISTERED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # compared as tensors and modules
DEPTH = 4  # of containers and objects in each other
MOST = 10_000  # values
LISTED = 100  # entries of a container
Found = dict[str, object]


@dataclass(frozen=True, eq=False)
class Same:
    """An object that is compared by identity, a tensor also by its version, which counts changes in place."""

    thing: object
    version: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing and self.version == other.version


def held_values(program: Program) -> Found:
    """Return by name what a program reads besides its registered tensors; other objects than numbers as :class:`Same`.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE((4,), latent_dim=2)
        >>> before = held_values(vae)
        >>> vae.encoder.temperature = 0.5
        >>> changes(before, held_values(vae))
        ['encoder.temperature set to 0.5']
    """
    search = _Search()
    for name, module in cast(nn.Module, program).named_modules():
        prefix = f"{name}." if name else ""
        if name:
            search.found[f"the module {name}"] = Same(module)
        for attribute, value in _attributes(module):
            search.visit(f"{prefix}{attribute}", value, DEPTH)
    return search.found


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Describe what differs: numbers and texts; where none does, other objects; else what is new or gone."""
    names = [name for name in {**before, **now} if differs(before, now, name)]
    both = [name for name in names if name in before and name in now]
    plain = [name for name in both if isinstance(before[name], PLAIN) and isinstance(now[name], PLAIN)]
    return [_described(name, before, now) for name in plain or both or names]


def differs(before: Mapping[str, object], now: Mapping[str, object], name: str) -> bool:
    """Whether a value differs; two NaN do not."""
    if name not in before or name not in now:
        return True
    one, other = before[name], now[name]
    return repr(one) != repr(other) if isinstance(one, PLAIN) and isinstance(other, PLAIN) else one != other


def numbers(values: Mapping[str, object]) -> Found:
    """Return the numbers and texts alone: what can be compared between two programs."""
    return {name: value for name, value in values.items() if isinstance(value, PLAIN)}


def _described(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> str:
    one, other = before.get(name), now.get(name)
    if isinstance(one, PLAIN) and name not in now:
        return f"{name} removed"
    if isinstance(other, PLAIN):
        return (
            f"{name} set to {other!r:.40}"
            if name not in before
            else f"{name} changed from {one!r:.40} to {other!r:.40}"
        )
    if isinstance(one, Same) and isinstance(other, Same) and one.thing is other.thing:
        return f"{name} changed in place, a tensor that is no registered buffer"
    return f"{name} {'replaced' if name in before and name in now else 'added' if name in now else 'removed'}"


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Return the attributes of a module and of its classes, those of libraries left out; the instance's come last."""
    found: dict[str, object] = {}
    for kind in reversed(type(module).__mro__):
        if not _of_library(kind):
            found.update({name: value for name, value in vars(kind).items() if not name.startswith("__")})
    found.update(vars(module))
    return ((name, value) for name, value in found.items() if name not in REGISTERED)


def _of_library(thing: object) -> bool:
    named = thing if isinstance(thing, type | types.FunctionType) else type(thing)
    return str(named.__module__).partition(".")[0] in LIBRARIES


class _Search:
    """Collects values by name, each object once."""

    def __init__(self) -> None:
        self.found: Found = {}
        self._seen: dict[int, object] = {}  # keeps the objects, so that no number is used again

    def visit(self, name: str, value: object, depth: int) -> None:
        """Note a value, and what it holds."""
        if len(self.found) >= MOST:
            return
        if isinstance(value, PLAIN):
            self.found[name] = value
        elif isinstance(value, np.ndarray):
            self.found[name] = value.tobytes()
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            self._object(name, value, depth)

    def _object(self, name: str, value: object, depth: int) -> None:
        if isinstance(value, Tensor):
            self.found[name] = Same(value, 0 if value.is_inference() else value._version)
        elif isinstance(value, dict | list | tuple | set | frozenset):
            self._container(name, value, depth)
        elif isinstance(value, types.MethodType):
            self.visit(name, value.__func__, depth)
            self.visit(type(value.__self__).__name__, value.__self__, depth)
        elif not isinstance(value, property | classmethod | staticmethod | types.ModuleType):
            self.found[name] = Same(value)
            self._inside(name, value, depth)

    def _container(self, name: str, value: object, depth: int) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(cast(list[object], value))
        if not depth:
            return
        for key, item in itertools.islice(items, LISTED):
            self.visit(f"{name}[{key!r:.40}]", item, depth - 1)

    def _inside(self, name: str, value: object, depth: int) -> None:
        """Visit what an object of the user's holds."""
        if not depth or isinstance(value, nn.Module):
            return
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.visit(name, part, depth - 1)
        elif _of_library(value):
            return
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        else:
            for attribute, item in list(getattr(value, "__dict__", {}).items()):
                if not attribute.startswith("__") and not (isinstance(value, type) and callable(item)):
                    self.visit(f"{name}.{attribute}", item, depth - 1)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        """Visit the variables and globals that a function reads."""
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.visit(f"the variable {variable} of {function.__name__}", cell.cell_contents, depth - 1)
            except ValueError:  # an empty cell
                continue
        names = list(_names(function.__code__))
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                for attribute in names:
                    if isinstance(vars(value).get(attribute), PLAIN) and attribute in vars(value):
                        self.found[f"{name}.{attribute}"] = vars(value)[attribute]
            elif name in function.__globals__:
                self.visit(f"the global {name}", value, depth - 1)


def _names(code: types.CodeType) -> Iterator[str]:
    """Return the names that code and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
