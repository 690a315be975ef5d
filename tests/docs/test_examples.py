"""What the documentation shows: the two example programs, and every block of Python that stands by itself."""

import re
import runpy
from pathlib import Path

import pyro
import pytest
import torch

from pyro_vae.base.registry import from_spec
from pyro_vae.cli.main import main
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.evaluation.methods.bounds import held_out_elbo
from pyro_vae.program.adapter import as_program
from pyro_vae.training.folder import Run, load_program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", ROOT / "docs" / "estimators.md", ROOT / "docs" / "evaluation.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Python blocks that stand by themselves, by page and line: those that begin with an import."""
    text = page.read_text()
    found = [(text[: match.start(1)].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]
    return {f"{page.name}:{line}": code for line, code in found if re.match(r"(import|from) ", code)}


ALONE = {place: code for page in PAGES for place, code in blocks(page).items()}


@pytest.mark.parametrize("place", ALONE)
def test_block_of_a_page_runs(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pyro.get_param_store().scope():
        exec(compile(ALONE[place], place, "exec"), {"__name__": "__main__"})
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_found_on_every_page(tmp_path):
    assert {place.partition(":")[0] for place in ALONE} == {page.name for page in PAGES}
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nimport math\n\nmath.tau\n```\n")
    assert blocks(page) == {"page.md:8": "import math\n\nmath.tau\n"}


def test_estimators_page_names_every_estimator_and_its_specifications_build():
    specs = re.findall(r"`--estimator ([^`]+)`", (ROOT / "docs" / "estimators.md").read_text())
    assert [spec.partition(":")[0] for spec in specs] == list(ESTIMATORS)
    for spec in specs:
        from_spec(ESTIMATORS, spec, "estimator")


def test_dreg_trains_in_stock_svi(capsys):
    """The loss falls, and is on average not below the exact −log p(x) of the trained model, one-sidedly."""
    with pyro.get_param_store().scope():
        script = runpy.run_path(str(EXAMPLES / "dreg_in_stock_svi.py"))
    losses, x, decoder = torch.tensor(script["losses"]), script["x"], script["decoder"]
    assert capsys.readouterr().out == f"{losses[-1]:.3f} nats per example\n"
    assert losses[-1] < losses[0]
    covariance = decoder.weight @ decoder.weight.T + 0.25 * torch.eye(8)
    exact = -torch.distributions.MultivariateNormal(decoder.bias, covariance).log_prob(x).mean().item()
    gap = losses[-100:] - exact
    assert gap.mean() > -5 * gap.std() / len(gap) ** 0.5


def test_dreg_script_knows_nothing_else_of_this_package():
    imports = re.findall(r".*\bpyro_vae\b.*", (EXAMPLES / "dreg_in_stock_svi.py").read_text().partition('"""\n')[2])
    assert imports == ["from pyro_vae.elbo import DReG"]


def test_my_program_trains(tmp_path):
    """Two epochs raise the held-out bound, datum by datum on the same noise, by more than five standard errors."""
    file, out = EXAMPLES / "my_program.py", tmp_path / "run"
    assert len(file.read_text().splitlines()) <= 30
    options = ["--data", "digits", "--model", str(file), "--epochs", "2", "--device", "cpu"]
    assert main(["train", *options, "--out", str(out)]) == 0
    run = Run.open(out)
    data = run.config.load_data()
    trained = load_program(run, data, torch.device("cpu"))
    after = held_out_elbo(trained, data.validation)
    fresh = as_program(run.config.build_program(data.train), data.train.binarized(0)[:10])
    gain = after - held_out_elbo(fresh, data.validation)
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5
