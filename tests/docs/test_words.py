"""Words: the sources and the documentation use the terms of docs/words.md, and none that they replaced."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = {  # pattern -> what to write
    r"\bdatum\b": "example",
    r"\bper datum\b": "per example",
    r"\bhow many data\b": "how many examples",
    r"\bnumber of data\b": "number of examples",
    r"\b(few|[0-9][\d,]*|each of|B|N) data\b": "examples",
    r"\bgo(es|ing)? on (where|from|as|to train|with the same)\b": "resumes",
    r"\bwent on\b": "continued",
    r"\b(can|could|cannot|to) be had\b": "is available",
    r"\b(was|were) had\b": "was computed",
    r"\bcut off\b": "detached",
    r"\balong every way\b": "the total derivative",
    r"\bno way through\b": "no pathwise term",
    r"\bdream(s|t|ed)?\b": "sleep-phase sample",
    r"\basleep\b": "sleep phase",
    r"\b(remember|recall)(s|ed)?\b": "state, load_state",
    r"\bhand(s|ed)?[ _]over\b": "set_grads",
    r"\blet(s)?[ _]go\b": "zero_grad",
    r"\bpays (from|off|after)\b|\bpays_(from|after)\b": "amortises",
    r"\btrust(s|ed)?\b": "caveat",
    r"\bfamily cannot do\b": "the limit of the variational family",
    r"\bencoder does not do\b": "the suboptimality of the amortised encoder",
    r"\bcures?\b": "a suggested fix",
    r"\b(house|rooms?|doors?)\b": "package, module, public interface",
}
FILES = [
    *ROOT.glob("pyro_vae/**/*.py"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("docs/**/*.py"),
    *ROOT.glob("experiments/*.*"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]


def retired_words(text):
    """Return (line number, word, what to write) for every retired word of a text."""
    return [
        (number, match[0], RETIRED[pattern])
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in RETIRED
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]


@pytest.mark.parametrize("file", [f for f in FILES if "_build" not in f.parts], ids=lambda f: str(f.relative_to(ROOT)))
def test_no_retired_word(file):
    assert retired_words(file.read_text()) == []


def test_files_are_found():
    assert len(FILES) > 150


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("nats per datum", 2),
        ("on 20 data", 1),
        ("it goes on where it stood", 1),
        ("the mean, as far as it can be had", 1),
        ("what it is to remember", 1),
        ("the data set, its data and 20 examples", 0),
        ("resumes where it stopped", 0),
    ],
)
def test_planted_words_are_found(line, count):
    assert len(retired_words(line)) == count
