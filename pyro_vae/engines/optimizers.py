"""The table of optimisers, and what to write in place of an optimiser given as an object."""

import inspect
from collections.abc import Callable, Mapping

import torch
from pyro.optim import PyroOptim
from torch.optim import Optimizer

from pyro_vae.base.errors import InputError

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
}


def check_named(optimizer: object) -> None:
    """Check that an optimiser is given by name: an engine builds its own, whose state a checkpoint keeps.

    Raises:
        InputError: a class or an object of torch or Pyro; the message has its name and its learning rate.

    Example:
        >>> check_named(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected an optimizer by name, as text; got an object of class SGD. Try optimizer="sgd", learning_rate=0.1.
    """  # noqa: E501 - a message is one line
    if isinstance(optimizer, str):
        return
    is_object = not (inspect.isclass(optimizer) or inspect.isroutine(optimizer))
    kind = type(optimizer).__name__ if is_object else getattr(optimizer, "__name__", "")
    name, rate = _as_named(optimizer, kind)
    got = f"an object of class {kind}" if is_object else f"{kind} itself"
    raise InputError("an optimizer by name, as text", got, f'optimizer="{name}"{rate}')


def _as_named(optimizer: object, kind: str) -> tuple[str, str]:
    """Return the name of an optimiser in the table, adam for one that it lacks, and the argument learning_rate."""
    arguments: object = getattr(optimizer, "defaults", None)  # of torch's
    if isinstance(optimizer, PyroOptim):
        arguments, kind = optimizer.pt_optim_args, getattr(optimizer.pt_optim_constructor, "__name__", kind)
    rate = arguments.get("lr") if isinstance(arguments, Mapping) else None
    name = kind.lower() if kind.lower() in OPTIMIZERS else "adam"
    return name, f", learning_rate={rate:g}" if isinstance(rate, int | float) else ""
