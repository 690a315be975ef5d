"""Errors for users: what was expected, what was got, what to try."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """An input cannot be used; the message is one line: what was expected, what was got, and a suggested fix.

    Hints are written in Python, ``name=value``; the command line translates them to its options, prints the message
    alone, without a traceback, and exits with status 2.

    Example:
        >>> raise InputError("a positive batch size", "-3", "batch_size=128")
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected a positive batch size; got -3. Try batch_size=128.
    """

    def __init__(self, expected: str, got: object = None, hint: str | None = None) -> None:
        if hint is None:  # a whole message: Pyro raises an error again with the shapes of its trace below
            super().__init__(expected.partition("\n")[0])
        else:
            super().__init__(" ".join(f"Expected {expected}; got {got}. Try {hint}.".split()))


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return ``table[name]``; an unknown name is an :class:`InputError` that suggests the nearest one.

    Example:
        >>> lookup({"adam": 1, "sgd": 2}, "adma", "optimizer")
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected an optimizer, one of adam, sgd; got 'adma'. Try 'adam'.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    article = "an" if what[0] in "aeiou" else "a"
    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.5)
    hint = repr(near[0]) if near else f"one of the {len(table)} names above"
    raise InputError(f"{article} {what}, one of {', '.join(sorted(table))}", repr(name), hint)


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or NaN; the parameters are those before the step."""

    def __init__(self, step: int, loss: float, where: str) -> None:
        self.step = step
        super().__init__(
            f"Expected a finite loss and gradient; got loss {loss:g} in step {step}, not finite: {where}. "
            "Try a smaller learning_rate, clip_norm=100, or a likelihood with a larger scale."
        )
