"""Specifications: values written as text. ``dreg:num_particles=5`` names a row of a table and its arguments."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TypeVar

import yaml

from pyro_vae.base.errors import InputError, lookup

T = TypeVar("T")

COMMA = re.compile(r",(?![^{]*\})(?![^[]*\])")  # outside a mapping, {y: enumerate, z: score}, and a list, [400, 200]


def from_spec(table: Mapping[str, Callable[..., T]], text: str, what: str, **given: object) -> T:
    """Build the value that ``name:key=value,key=value`` specifies; arguments are YAML scalars, or mappings of them.

    Args:
        table: name -> constructor.
        text: the specification.
        what: the noun for error messages.
        given: further arguments, which the text must not repeat.

    Raises:
        InputError: an unknown name (the nearest is suggested), an unknown argument, or a value that the constructor
            rejects.

    Example:
        >>> from_spec({"point": complex}, "point:real=1,imag=2.5", "number")
        (1+2.5j)
    """
    if not isinstance(text, str):
        raise InputError(f"the name of {what} with arguments, as text", repr(text), repr(next(iter(table))))
    name, _, rest = text.partition(":")
    constructor = lookup(table, name.strip(), what)
    arguments = _arguments(rest, text)
    takes = [key for key in inspect.signature(constructor).parameters if key not in given]
    for key in arguments:
        if key not in takes:
            known = f"an argument of {what} {name}, one of {', '.join(takes)}" if takes else "no argument"
            elsewhere = f" ({key} is set separately)" if key in given else ""
            raise InputError(known, repr(key), f"{name} alone for its defaults{elsewhere}")
    try:
        return constructor(**given, **arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"arguments that {what} {name} takes", f"{text!r}: {error}", f"{name} alone") from None


def built(
    table: Mapping[str, Callable[..., T]],
    what: str | T,
    noun: str,
    given: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> T:
    """Return a value unchanged, and build the one that a text specifies.

    Args:
        table: name -> constructor.
        what: the value, or its specification.
        noun: what it is, for error messages.
        given: arguments that the text must not repeat; each is passed if the constructor takes it.
        defaults: likewise, which the text may replace.

    Raises:
        InputError: as :func:`from_spec`.

    Example:
        >>> built({"point": complex}, "point:imag=2", "number", {"real": 1, "colour": "red"})
        (1+2j)
    """
    if not isinstance(what, str):
        return what
    given = {name: value for name, value in given.items() if takes(table, what, name)}
    text = what.partition(":")[2]
    for name, value in (defaults or {}).items():
        if takes(table, what, name) and not re.search(rf"(^|,)\s*{name}\s*=", text):
            given[name] = value
    return from_spec(table, what, noun, **given)


def takes(table: Mapping[str, Callable[..., object]], what: object, argument: str) -> bool:
    """Whether the constructor that a text names has an argument of that name; False for an unknown name or a value."""
    if not isinstance(what, str) or what.partition(":")[0].strip() not in table:
        return False
    return argument in inspect.signature(table[what.partition(":")[0].strip()]).parameters


def to_spec(table: Mapping[str, Callable[..., object]], value: object) -> str:
    """Return the specification of a frozen dataclass: its name in the table and its non-default fields.

    Raises:
        InputError: no row of the table builds the type of the value.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Point:
        ...     real: float = 0.0
        ...     exact: bool = True
        >>> to_spec({"point": Point}, Point()), to_spec({"point": Point}, Point(2.5, exact=False))
        ('point', 'point:real=2.5,exact=false')
    """
    names = [name for name, kind in table.items() if kind is type(value)]
    if not names or not is_dataclass(value) or isinstance(value, type):
        raise InputError(f"a value of one of {', '.join(table)}", repr(value), "a name with arguments")
    given = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    words = {True: "true", False: "false"}
    arguments = [f"{key}={words[item] if isinstance(item, bool) else item}" for key, item in given.items()]
    return ":".join([names[0], *([",".join(arguments)] if arguments else [])])


def split_specs(text: str) -> list[str]:
    """Split ``name,name:key=value,key=value,name`` at each new name.

    Example:
        >>> split_specs("stl,ciwae:num_particles=5,beta=0.1,dreg")
        ['stl', 'ciwae:num_particles=5,beta=0.1', 'dreg']
        >>> split_specs("iwae:num_particles=2,strategies={y: enumerate, z: score},stl")
        ['iwae:num_particles=2,strategies={y: enumerate, z: score}', 'stl']
    """
    parts: list[str] = []
    for part in (part.strip() for part in COMMA.split(text)):
        if parts and "=" in part and ":" not in part.partition("=")[0]:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _arguments(rest: str, text: str) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for part in filter(None, COMMA.split(rest)):
        key, equals, value = part.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise InputError("name:key=value,key=value", repr(text), "a text such as 'adam:eps=1e-4'")
        arguments[key.strip()] = number(value)
    return arguments


def number(text: str) -> object:
    """Read a YAML scalar; 1e-4 is a number, too, which YAML 1.1 reads as text.

    Example:
        >>> number("1e-4"), number("5"), number("true"), number("sigmoid")
        (0.0001, 5, True, 'sigmoid')
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError("a number or a word", repr(text), "a text such as 1e-4 or sigmoid") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value.strip()
    return value
