"""How model and guide are called: with the tensors of a batch, labels as ``y`` where both ask for them."""

import inspect

from torch import nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.data import Columns, Data, Images
from pyro_vae.program.adapter import FunctionProgram

LABELS = "y"  # the parameter of model and guide that gets them


def data_for(thing: object, data: Data) -> Data:
    """Return data as model and guide take them: labels are given as ``y=`` where the signatures ask for them.

    A function asks for labels by a parameter named ``y``, without a default or with default None; one that takes any
    keyword (``**kwargs``) takes them, too. They are given if one of the two asks for them and the other takes them.

    Args:
        thing: what :func:`~pyro_vae.program.as_program` takes.
        data: images, or the columns of a call, which are checked against both signatures.

    Raises:
        InputError: labels that are asked for and missing, or that one of the two cannot take; columns that do not fit a
            signature.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Images
        >>> images = Images(torch.rand(4, 2), torch.arange(4))
        >>> data_for((lambda x, y: None, lambda x, y: None), images)
        Columns(4 of 0 (2,), y (), cpu)
        >>> data_for((lambda x: None, lambda x: None), images)
        Images(4 of 2, torch.float32, binarize='none', labels, cpu)
    """
    signatures = {name: _signature(function) for name, function in _functions(thing).items()}
    if isinstance(data, Columns):
        for name, signature in signatures.items():
            _check_call(name, signature, data)
        return data
    asking = [name for name, s in signatures.items() if _asks(s)]
    needing = [name for name in asking if _needs(signatures[name])]
    taking = [name for name, s in signatures.items() if _asks(s) or _takes_any(s)]
    if needing and data.labels is None:
        raise InputError("labels, which the program asks for as y", "images without labels", "fit(program, (x, y))")
    if needing and len(taking) < len(signatures):
        other = next(name for name in signatures if name not in taking)
        raise InputError("y as a parameter of model and guide", f"none in {other}", f"def {other}(x, y)")
    if not asking or data.labels is None or len(taking) < len(signatures):
        return data
    return Columns((data,), {LABELS: data.labels})


def x_alone(thing: object, data: Data) -> Images:
    """Return the images of a program that takes nothing else, for pictures and files of draws.

    Raises:
        InputError: several tensors, or a program that gets labels, too.
    """
    found = data_for(thing, data)
    if isinstance(found, Columns):
        got = f"{found}, all arguments of model and guide"
        hint = "evaluate(program, data), which takes several tensors"
        raise InputError("a program and data of x alone for pictures and files of draws", got, hint)
    return found


def _functions(thing: object) -> dict[str, PyroFunction]:
    """Return model and guide of whatever can be a program; nothing of what cannot."""
    if isinstance(thing, FunctionProgram):
        return dict(zip(("model", "guide"), thing.functions, strict=True))
    pair = thing if isinstance(thing, tuple) else (getattr(thing, "model", None), getattr(thing, "guide", None))
    found = dict(zip(("model", "guide"), pair, strict=False))
    return {name: function for name, function in found.items() if callable(function)}


def _signature(function: PyroFunction) -> inspect.Signature | None:
    """Return how a function is called, None if Python does not know; a module is called by its ``forward``."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def _asks(signature: inspect.Signature | None) -> bool:
    parameter = signature.parameters.get(LABELS) if signature else None
    if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return False
    return parameter.default is None or parameter.default is parameter.empty


def _needs(signature: inspect.Signature | None) -> bool:
    return signature is not None and signature.parameters[LABELS].default is inspect.Parameter.empty


def _takes_any(signature: inspect.Signature | None) -> bool:
    return signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _check_call(name: str, signature: inspect.Signature | None, data: Columns) -> None:
    if signature is None:
        return
    try:
        signature.bind(*data.args, **data.kwargs)
    except TypeError as error:
        raise InputError(
            f"a tensor for every argument of {name}{signature}",
            f"{_call(data)}: {error}",
            "a tuple in the order of the arguments, a mapping by their names, or x alone",
        ) from None


def _call(data: Columns) -> str:
    return f"{len(data.args)} positional" + "".join(f", {name}=" for name in data.kwargs)
