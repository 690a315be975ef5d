"""Programs by name: an object from a Python file or from an installed module."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pyro_vae.base.errors import InputError


def locate(name: str) -> object:
    """Return what ``FILE.py``, ``FILE.py:NAME``, ``package.module`` or ``package.module.NAME`` names.

    Raises:
        InputError: no such file, module or name, or the file does not run.

    Example:
        >>> locate("math.floor")(2.5)
        2
    """
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        module = _from_file(Path(path).expanduser())
        return _attribute(module, attribute, name) if attribute else module
    return _from_import(name.replace(":", "."))


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("a Python file", f"{str(path)!r}, which does not exist", "a path that does")
    spec = importlib.util.spec_from_file_location(f"pyro_vae_user_{path.stem}", path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"a file that runs, {path}", f"{type(error).__name__}: {error}", f"python {path}") from error
    return module


def _from_import(name: str) -> object:
    head, _, tail = name.rpartition(".")
    sys.path.insert(0, "")  # a module beside the user, as with python -m
    try:
        for module, attribute in ((name, ""), (head, tail)):
            found = _import_or_none(module)
            if found is not None:
                return _attribute(found, attribute, name) if attribute else found
    finally:
        sys.path.remove("")
    raise InputError(
        "a program: 'vae', FILE.py, FILE.py:NAME or an import path",
        repr(name),
        "pyro_vae.VAE, or ./my_model.py",
    )


def _import_or_none(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name) if name else None
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name == missing or name.startswith(f"{missing}."):
            return None  # the name itself is not there; an import inside it that fails is another matter
        raise InputError(f"a module that imports, {name}", str(error), f"pip install {missing}") from error
    except (TypeError, ValueError) as error:
        raise InputError("an import path", repr(name), "package.module.NAME") from error


def _attribute(module: ModuleType, name: str, whole: str) -> object:
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise InputError(f"{part!r} in {module.__name__}", f"none, asked for as {whole!r}", "another name")
        value = getattr(value, part)
    return value
