"""Imports run downwards only: read with ``ast``, no module is imported for it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_vae"
LAYERS = [
    ["_version", "errors", "specs", "imports", "numerics", "devices", "networks", "data", "information"],
    [
        *("likelihoods", "priors", "posteriors", "vae", "program", "checking", "predictive"),
        *("joint", "oracles", "replicates"),
    ],
    ["elbo"],
    [
        *("engines", "evaluation", "loop", "training", "config", "run", "recording"),
        *("crosscheck", "comparison", "race", "benchmark"),
    ],
    ["plots", "gallery", "report", "commands", "comparing", "evaluating", "benchmarking", "cli", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path):
    """Return every dotted name that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def inner_imports(package):
    """Return {module: modules of the package that it imports}, modules by their dotted path in the package."""
    files = {".".join(f.relative_to(package).with_suffix("").parts): f for f in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): f for name, f in files.items() if name != "__init__"}
    graph = {}
    for name, file in modules.items():
        targets = set()
        for dotted in imports_of(file):
            if dotted.startswith("pyro_vae."):
                inner = dotted.removeprefix("pyro_vae.")
                candidates = [inner, inner.rpartition(".")[0], inner.rpartition(".")[0].rpartition(".")[0]]
                targets.add(next((c for c in candidates if c in modules), inner))
        graph[name] = targets - {name}
    return graph


def violations(package):
    """Return what breaks the order: unknown rooms, upward imports, cycles, misplaced matplotlib."""
    wrong = []
    graph = inner_imports(package)
    for name, targets in graph.items():
        room = name.partition(".")[0]
        if room not in LEVEL:
            wrong.append(f"{name} has no layer")
            continue
        for target in targets:
            if LEVEL.get(target.partition(".")[0], 99) > LEVEL[room]:
                wrong.append(f"{name} imports {target}, a layer above")
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        wrong.append(f"cycle {error.args[1]}")
    for file in package.rglob("*.py"):
        if file.name != "plots.py" and any(i.partition(".")[0] == "matplotlib" for i in imports_of(file)):
            wrong.append(f"{file.name} imports matplotlib")
    return wrong


def test_imports_run_downwards():
    assert len(inner_imports(PACKAGE)) > 30
    assert violations(PACKAGE) == []


def test_the_hand_written_elbo_is_an_independent_witness():
    roots = {name.partition(".")[0] for name in imports_of(PACKAGE / "elbo" / "analytic.py")}
    assert roots == {"math", "torch"}


PLANTED = {
    "upward": ({"networks.py": "from pyro_vae.training import fit"}, "networks imports training, a layer above"),
    "upward inside a function": ({"vae.py": "def f():\n    import pyro_vae.cli"}, "vae imports cli, a layer above"),
    "cycle": (
        {"priors.py": "from pyro_vae.posteriors import a", "posteriors.py": "from pyro_vae.priors import b"},
        "cycle",
    ),
    "no room": ({"misc.py": ""}, "misc has no layer"),
    "matplotlib": ({"report.py": "import matplotlib.pyplot"}, "report.py imports matplotlib"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_disorder_is_found(name, tmp_path):
    files, message = PLANTED[name]
    for room in ("training", "cli"):
        (tmp_path / f"{room}.py").write_text("")
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert any(message in found for found in violations(tmp_path))
