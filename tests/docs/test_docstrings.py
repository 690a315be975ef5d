"""Docstring examples import what they use: copied into a session, they run."""

import ast
import builtins
import doctest
import importlib
import pkgutil

import pytest

import pyro_vae

PACKAGES = ["base", "data", "models", "program"]
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages([f"{pyro_vae.__path__[0]}/{package}"], f"pyro_vae.{package}.")
]


def missing_names(source, own):
    """Return the names that an example uses and neither defines nor imports, ``own`` aside."""
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    made |= {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
    return used - made - set(dir(builtins)) - {own}


def examples(module):
    """Return every docstring example of a module, with the name of the class or function that it documents."""
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [(test.name, "".join(example.source for example in test.examples)) for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_import_what_they_use(name):
    for title, source in examples(importlib.import_module(name)):
        own = title.removeprefix(f"{name}.").partition(".")[0]
        assert missing_names(source, own) == set(), title


def test_examples_are_found():
    assert len(MODULES) > 30
    assert sum(len(examples(importlib.import_module(name))) for name in MODULES) > 40


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("Images(torch.ones(1, 2))", {"torch"}),
        ("import torch\nImages(torch.ones(1, 2))", set()),
        ("from torch import nn\ndef model(x):\n    return nn.Linear(x, size)", {"size"}),
        ("[len(part) for part in parts]", {"parts"}),
    ],
)
def test_planted_names_are_found(source, missing):
    assert missing_names(source, "Images") == missing
