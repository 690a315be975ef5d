"""Objects by name: what is found, and every way in which a name can lead nowhere."""

import math
import re
import sys

import pytest

from pyro_vae.base.errors import InputError
from pyro_vae.base.imports import locate

FILES = {
    "lab/__init__.py": "",
    "lab/good.py": "class A:\n    class B:\n        number = 3\nnothing = None\n",
    "lab/needs.py": "import no_such_module\n",
    "lab/value.py": "raise ValueError('by itself')\n",
    "lab/attribute.py": "import math\nmath.flor(2)\n",
    "my-file.py": "class A:\n    number = 4\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lab", "pyro_vae_user_my-file")]:
        del sys.modules[name]


def test_names_that_lead_somewhere(here):
    path = list(sys.path)
    good = locate("lab.good")
    assert locate("math.floor") is locate("math:floor") is math.floor
    assert locate("lab.good.A") is locate("lab.good:A") is good.A
    assert locate("lab.good.nothing") is None
    assert locate("my-file.py").A.number == locate("./my-file.py:A").number == locate("my-file.py:A.number") == 4
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "a program: 'vae', FILE.py, FILE.py:NAME or an import path; got 'nothing'"),
        ("nothing.at.all", "or an import path; got 'nothing.at.all'"),
        ("my-file", "or an import path; got 'my-file'. Try pyro_vae.VAE, or ./my_model.py"),
        ("..x", "or an import path; got '..x'"),
        ("", "or an import path; got ''"),
        ("lab.god", "'god' in lab; got none, asked for as 'lab.god'"),
        ("lab.good.C", "'C' in lab.good; got none, asked for as 'lab.good.C'"),
        (
            "lab.needs",
            "a module that imports, lab.needs; got No module named 'no_such_module'. Try pip",
        ),
        (
            "lab.needs.A",
            "a module that imports, lab.needs.A; got No module named 'no_such_module'. Try pip",
        ),
        ("lab.value", "a module that imports, lab.value; got ValueError: by itself. Try python -c 'import lab.value'"),
        ("lab.attribute.flor", "a module that imports, lab.attribute.flor; got AttributeError: module 'math' has no"),
        ("my-file.py:C", "'C' in pyro_vae_user_my-file; got none, asked for as 'my-file.py:C'"),
        ("my-file.py:A.C", "'C' in A; got none, asked for as 'my-file.py:A.C'"),
    ],
)
def test_names_that_lead_nowhere(name, message, here):
    path = list(sys.path)
    with pytest.raises(InputError, match=re.escape(message)):
        locate(name)
    assert sys.path == path
