"""The table of objectives and strategies in ``docs/estimators.md``, from the tests' grid: ``python docs/gradients.py``.

``tests/elbo/test_mixed_latents.py`` runs every cell, and holds the page to this table.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "estimators.md"
GRID = ROOT / "tests" / "elbo" / "test_mixed_latents.py"
BEGIN, END = "<!-- from docs/gradients.py -->\n\n", "\n<!-- end of docs/gradients.py -->"


def table(objectives, strategies, outcome):
    """Return the table in Markdown: a row per objective, a column per strategy, the outcomes inside."""
    head = ["objective", *strategies]
    rows = [
        [f"`{name}`", *(outcome(name, each) for each in strategies)] for name in objectives if name != "by_autograd"
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(page):
    """Return the table of a page."""
    begin = page.index(BEGIN) + len(BEGIN)
    return page[begin : page.index(END, begin)]


def written(page, new):
    """Return a page with another table."""
    begin = page.index(BEGIN) + len(BEGIN)
    return page[:begin] + new + page[page.index(END, begin) :]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    grid = runpy.run_path(str(GRID))
    PAGE.write_text(
        written(PAGE.read_text(), table(list(grid["OBJECTIVES"]), list(grid["STRATEGIES"]), grid["outcome"]))
    )
