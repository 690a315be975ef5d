"""The architecture as a picture, drawn from the code's own imports: ``python docs/architecture.py``.

Writes ``docs/architecture.svg``: the packages of ``pyro_vae`` as floors, each with its modules, beside the matrix of
how many imports run from one package (row) to another (column). A mark above the diagonal is an import upwards.
``tests/test_layers.py`` reads the same list and the same imports, and holds the picture to the code.
"""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pyro_vae"
PICTURE = Path(__file__).with_name("architecture.svg")
FLOORS = {  # each package imports only from those before it
    "base": "errors, types, statistics, random streams, files",
    "data": "data sets by name and by path; batches on the device",
    "program": "a Pyro model and guide: protocol, traces, handlers, validation",
    "models": "the VAE and its parts, replicates, oracles",
    "elbo": "estimators of the bound and of its gradient",
    "engines": "how a step is executed: svi, compiled",
    "evaluation": "figures on held-out data: methods, and the card made of them",
    "training": "fit, settings, hooks, the run folder",
    "studies": "cross-check, estimators side by side, benchmark",
    "figures": "pictures; the only package that imports matplotlib",
    "cli": "the command line: one module a command",
}
WIDTH, LEFT, MATRIX, CELL = 1180, 16, 800, 33


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
    """Return {module: the modules of the package that it imports}, by their dotted paths in the package."""
    files = {".".join(f.relative_to(package).with_suffix("").parts): f for f in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): f for name, f in files.items() if name != "__init__"}
    graph = {}
    for name, file in modules.items():
        targets = set()
        for dotted in imports_of(file):
            if dotted.startswith("pyro_vae."):
                parts = dotted.split(".")[1:]
                candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
                targets.add(next((c for c in candidates if c in modules), ".".join(parts)))
        graph[name] = targets - {name}
    return graph


def between_packages(graph):
    """Return how many imports run from one package to another."""
    edges = Counter()
    for name, targets in graph.items():
        for target in targets:
            edges[name.partition(".")[0], target.partition(".")[0]] += 1
    return edges


def modules_of(package, folder):
    """Return the modules of a package, those of a package inside it in brackets."""
    inside = [path for path in sorted((package / folder).iterdir()) if path.name not in ("__init__.py", "__pycache__")]
    plain = [path.stem for path in inside if path.suffix == ".py"]
    nested = [f"{path.name} ({', '.join(modules_of(package, path))})" for path in inside if path.is_dir()]
    return plain + nested


def wrapped(words, length):
    """Return the words in lines of at most so many characters."""
    lines = [""]
    for word in ", ".join(words).split(" "):
        if len(lines[-1]) + len(word) > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def svg(package=PACKAGE):
    """Return the picture as text."""
    graph, names = inner_imports(package), list(FLOORS)
    edges, parts = between_packages(graph), []

    def text(x, y, content, size=12, more=""):
        content = content.replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<text x="{x}" y="{y}" font-size="{size}" {more}>{content}</text>')

    text(LEFT, 24, "pyro_vae: each package imports only from those below it", 16, 'font-weight="bold"')
    text(MATRIX, 24, "imports from (row) to (column)", 12)
    for column, name in enumerate(names):
        x = MATRIX + column * CELL + CELL // 2
        text(x, 96, name, 11, f'transform="rotate(-60 {x} 96)"')
    y = 104
    for floor in reversed(range(len(names))):
        name = names[floor]
        lines = wrapped(modules_of(package, name), 112)
        height = max(CELL, 30 + 13 * len(lines))
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{MATRIX - LEFT - 96}" height="{height - 4}" rx="4" class="floor"/>'
        )
        text(LEFT + 8, y + 17, name, 13, 'font-weight="bold"')
        text(LEFT + 96, y + 17, FLOORS[name], 12)
        for number, line in enumerate(lines):
            text(LEFT + 8, y + 33 + 13 * number, line, 10, 'class="modules"')
        text(MATRIX - 8, y + height // 2 + 3, name, 11, 'text-anchor="end"')
        for column, other in enumerate(names):
            count, x = edges[name, other] if other != name else 0, MATRIX + column * CELL
            kind = "wrong" if count and column > floor else "own" if column == floor else "some" if count else "none"
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="{height - 4}" class="{kind}"/>')
            if count:
                text(x + (CELL - 3) // 2, y + height // 2 + 3, str(count), 11, 'text-anchor="middle"')
        y += height
    style = (
        "text{font-family:sans-serif;fill:#222}.modules{fill:#555}.floor{fill:#eef3fa;stroke:#9db4d3}"
        ".own{fill:#9db4d3}.some{fill:#dbe6f4}.none{fill:#f7f7f7}.wrong{fill:#e66}"
    )
    size = f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(svg())
