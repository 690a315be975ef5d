"""Programs by name: an object from a Python file or from an installed module."""

import importlib.util
import pkgutil
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from pyro_vae.base.errors import InputError


def locate(name: str) -> object:
    """Return what ``FILE.py``, ``FILE.py:NAME``, ``package.module`` or ``package.module.NAME`` names.

    Raises:
        InputError: no such file, module or name, or the file does not run.

    Example:
        >>> locate("math.tau") > 6
        True
    """
    path, _, attribute = name.partition(":")
    if not path.endswith(".py"):
        return _from_import(name.replace(":", "."))
    module = _from_file(Path(path).expanduser())
    try:
        return attrgetter(attribute)(module) if attribute else module
    except AttributeError as error:
        raise _missing(error, name) from None


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
    module, _, attribute = name.rpartition(".")
    sys.path.insert(0, "")  # a module beside the user, as with python -m
    try:
        if _imports(name):
            return pkgutil.resolve_name(f"{name}:")
        if _imports(module):
            return pkgutil.resolve_name(f"{module}:{attribute}")
    except AttributeError as error:
        raise _missing(error, name) from None
    finally:
        sys.path.remove("")
    what = "a program: 'vae', FILE.py, FILE.py:NAME or an import path"
    raise InputError(what, repr(name), "pyro_vae.VAE, or ./my_model.py")


def _imports(module: str) -> bool:
    """Import a module; return whether there is one of that name."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        pkgutil.resolve_name(f"{module}:")
    except ModuleNotFoundError as error:
        if module == error.name or module.startswith(f"{error.name}."):
            return False
        raise InputError(f"a module that imports, {module}", str(error), f"pip install {error.name}") from error
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError(f"a module that imports, {module}", got, f"python -c 'import {module}'") from error
    return True


def _missing(error: AttributeError, name: str) -> InputError:
    owner = getattr(error.obj, "__name__", type(error.obj).__name__)
    return InputError(f"{error.name!r} in {owner}", f"none, asked for as {name!r}", "another name")
