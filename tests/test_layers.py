"""Folders are floors: each imports only from those before it in one list. Read with ``ast``; nothing is imported."""

from graphlib import CycleError, TopologicalSorter

import pytest
from architecture import FLOORS, PACKAGE, PICTURE, imports_of, inner_imports, svg


def violations(package, floors=tuple(FLOORS)):
    """Return what breaks the order: unknown folders, upward imports, cycles, misplaced matplotlib and loose modules."""
    wrong = []
    graph = inner_imports(package)
    for name, targets in graph.items():
        folder = name.partition(".")[0]
        if folder == "__main__":
            continue
        if folder not in floors:
            wrong.append(f"{name} is on no floor")
            continue
        for target in targets:
            other = target.partition(".")[0]
            if other != folder and (other not in floors or floors.index(other) > floors.index(folder)):
                wrong.append(f"{name} imports {target}, a floor above")
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        wrong.append(f"cycle {error.args[1]}")
    for file in package.rglob("*.py"):
        if file.parent.name != "figures" and any(i.partition(".")[0] == "matplotlib" for i in imports_of(file)):
            wrong.append(f"{file.name} imports matplotlib")
    return wrong


def test_every_folder_is_a_floor_and_imports_run_one_way():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FLOORS)
    assert len(inner_imports(PACKAGE)) > 100
    assert violations(PACKAGE) == []


def test_the_picture_shows_the_code_as_it_stands():
    assert PICTURE.read_text() == svg(), "Try python docs/architecture.py"


def test_a_picture_of_other_imports_is_another(tmp_path):
    """The picture is made of the imports: one that runs upwards is marked."""
    for folder in FLOORS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    assert 'class="wrong"' not in svg(tmp_path)
    (tmp_path / "base" / "errors.py").write_text("from pyro_vae.cli import main")
    assert svg(tmp_path).count('class="wrong"') == 1


def test_the_package_is_small_enough_to_take_in():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14
    assert [file for file in PACKAGE.rglob("*.py") if len(file.read_text().splitlines()) > 350] == []


def test_the_hand_written_elbo_is_an_independent_witness():
    roots = {name.partition(".")[0] for name in imports_of(PACKAGE / "elbo" / "analytic.py")}
    assert roots == {"math", "torch"}


PLANTED = {
    "upward": (
        {"models/vae.py": "from pyro_vae.training.fit import fit"},
        "models.vae imports training.fit, a floor above",
    ),
    "upward inside a function": (
        {"models/vae.py": "def f():\n    import pyro_vae.cli.main"},
        "models.vae imports cli.main, a floor above",
    ),
    "the folder itself": (
        {"data/images.py": "from pyro_vae import training"},
        "data.images imports training, a floor above",
    ),
    "cycle": (
        {
            "models/priors.py": "from pyro_vae.models.vae import a",
            "models/vae.py": "from pyro_vae.models.priors import b",
        },
        "cycle",
    ),
    "no floor": ({"misc/a.py": ""}, "misc.a is on no floor"),
    "a loose module": ({"misc.py": ""}, "misc is on no floor"),
    "matplotlib": ({"cli/tables.py": "import matplotlib.pyplot"}, "tables.py imports matplotlib"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_disorder_is_found(name, tmp_path):
    files, message = PLANTED[name]
    for module in ("training/__init__", "training/fit", "cli/__init__", "cli/main"):
        files = {**{f"{module}.py": ""}, **files}
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert any(message in found for found in violations(tmp_path))
