"""Extending: a package of a user's own adds one of each kind, by one class and one row, and the batteries take it.

The batteries are those of this repository, copied with one row more and run on the user's package; each family is
also planted with an error, which they find.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

MINE = '''
"""A user's package: an estimator, a likelihood, a prior, a posterior, a figure of the evaluation and a command."""

from dataclasses import dataclass

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.cli.main import COMMANDS
from pyro_vae.cli.parser import Command
from pyro_vae.elbo import ESTIMATORS, IWAE
from pyro_vae.elbo.estimator import Estimator, at_least_one
from pyro_vae.elbo.weighting import TotalDerivative
from pyro_vae.evaluation.card import PARTS, Part
from pyro_vae.evaluation.card.entry import NATS, mean_entry
from pyro_vae.models import LIKELIHOODS, Likelihood, Posterior
from pyro_vae.program.tracing import trace_program


@dataclass(frozen=True)
class VRMax(Estimator):
    """log max w, with the gradient of the heaviest particle (Li and Turner, Variational Renyi bound, 2016)."""

    num_particles: int = 5

    def __post_init__(self):
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms):
        log_weight = terms.log_weight
        particle = torch.arange(len(log_weight), device=log_weight.device)[:, None]
        heaviest = particle == log_weight.argmax(0)
        return TotalDerivative.of(log_weight.amax(0), heaviest.to(log_weight))

    def reference(self, group):
        return None  # no other estimator here has its expectation


ESTIMATORS["vr_max"] = VRMax


class Logistic(Likelihood):
    """Pixels with a logistic density of a fixed scale."""

    heads = 1

    def forward(self, *heads):
        return dist.Logistic(heads[0], 0.5)


LIKELIHOODS["logistic"] = Logistic


class WidePrior(nn.Module):
    """A Student's t over each latent dimension, of a scale that is learned."""

    def __init__(self, latent_dim):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self):
        return dist.StudentT(5.0, torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class LaplacePosterior(Posterior):
    """A Laplace density over each latent dimension."""

    heads = 2

    def forward(self, *heads):
        location, log_scale = heads
        return dist.Laplace(location, log_scale.exp()).to_event(1)


@dataclass(frozen=True, eq=False)
class Entropy:
    entropy_of_q: Tensor  # (B,)


def entropy(subject, where, seed):
    guide, _ = trace_program(subject.program, subject.x[where])
    with torch.no_grad():
        return Entropy(guide.nodes["z"]["fn"].entropy())


PARTS["exact_entropy"] = Part(
    what="the entropy of q in closed form",
    result=Entropy,
    count=len,
    chunk=lambda subject: 7,
    work=entropy,
    entries=lambda subject, found: [
        mean_entry("exact_entropy", "entropy of q, closed form", found.entropy_of_q, NATS, "closed form")
    ],
    per_example=lambda found: {"exact_entropy": found.entropy_of_q},
)


@dataclass(frozen=True)
class GreetOptions:
    """Print a greeting.

    Args:
        name: whom to greet.
    """

    name: str


def greet(options, console):
    console.print(f"Hello, {options.name}.")
    return 0


COMMANDS["greet"] = Command(GreetOptions, greet, "print a greeting")
'''

ROWS = {  # file of a battery -> what is added to it, as (before, after)
    "elbo/test_estimators.py": [
        ("OURS = {\n", 'OURS = {\n    "vr_max": elbo.ESTIMATORS["vr_max"](2),\n'),
        (
            '        "sampled_kl": (even',
            '        "vr_max": tuple(s * (log_w == log_w.max(0)) for s in (1, 1, -1)),\n'
            + '        "sampled_kl": (even',
        ),
        ("    special = {", '    special = {"vr_max": log_w.max(0), '),
    ],
    "models/test_likelihoods.py": [
        ("LIKELIHOOD_ROWS = {\n", 'LIKELIHOOD_ROWS = {\n    "logistic": LIKELIHOODS["logistic"](),\n'),
    ],
    "models/test_priors.py": [("PRIOR_ROWS = {\n", 'PRIOR_ROWS = {\n    "wide": mine.WidePrior,\n')],
    "models/test_posteriors.py": [
        ("POSTERIOR_ROWS = {\n", 'POSTERIOR_ROWS = {\n    "laplace_q": lambda size: mine.LaplacePosterior(),\n'),
    ],
}
SELECTED = "vr_max or logistic or wide or laplace_q or of_the_table"

USE = """
import torch
import mine
from pyro_vae import VAE, evaluate, fit
from pyro_vae.cli.main import main

torch.manual_seed(0)
x = torch.randn(40, 6)
vae = VAE((6,), 2, (5,), "logistic", prior=mine.WidePrior(2), posterior=mine.LaplacePosterior())
for engine in ("svi", "compiled:inductor=false"):
    result = fit(vae, x, estimator="vr_max:num_particles=3", engine=engine, epochs=2, batch_size=10, device="cpu")
    assert len(result.history) == 2, result.history
card = evaluate(vae, x, only=["exact_entropy", "bounds"], iwae=[1, 2000], device="cpu")
closed, sampled = card["exact_entropy"], card["entropy"]
assert len(card.per_example["exact_entropy"]) == 40
assert abs(closed.value - sampled.value) < 0.05, (closed, sampled)  # 2000 particles: s.e. below 0.01
assert "entropy of q, closed form" in str(card)
assert main(["greet", "reader"]) == 0
"""


def package(folder, text=MINE):
    """Write the user's package, and the batteries with its rows."""
    (folder / "mine.py").write_text(text)
    (folder / "setup.cfg").write_text("[tool:pytest]\n")
    for name, changes in ROWS.items():
        battery = (TESTS / name).read_text()
        for before, after in changes:
            assert battery.count(before) == 1, before
            battery = battery.replace(before, after)
        head, docstring, body = battery.split('"""', 2)
        (folder / Path(name).name).write_text(f'{head}"""{docstring}"""\nimport mine  # noqa\n{body}')
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())


def run(folder, *words):
    path = os.pathsep.join(map(str, [folder, ROOT, TESTS, TESTS / "models"]))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def run_batteries(folder, selected=SELECTED):
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "-c",
        "setup.cfg",
        "-k",
        selected,
    ]
    return run(folder, *words, *(Path(name).name for name in ROWS))


def test_one_class_and_one_row_each_pass_the_batteries(tmp_path):
    package(tmp_path)
    done = run_batteries(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) >= 25


def test_they_train_evaluate_and_print(tmp_path):
    package(tmp_path)
    done = run(tmp_path, "-c", USE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Hello, reader." in done.stdout


PLANTED = {
    "estimator: another particle": ("log_weight.argmax(0)", "log_weight.argmin(0)", "vr_max"),
    "estimator: another value": ("log_weight.amax(0), heaviest", "log_weight.amin(0), heaviest", "vr_max"),
    "likelihood: not normalised": ("return dist.Logistic(heads[0], 0.5)", "return Half(heads[0], 0.5)", "logistic"),
    "prior: not on its device and dtype": (
        "torch.zeros_like(self.log_scale), self.log_scale.exp()", "torch.zeros(len(self.log_scale)), 1.0", "wide"
    ),
    "posterior: detached": ("dist.Laplace(location, log", "dist.Laplace(location.detach(), log", "laplace_q"),
}  # fmt: skip
HALF = """

class Half(dist.Logistic):
    def log_prob(self, value):
        return super().log_prob(value) + 0.5
"""


@pytest.mark.parametrize("name", PLANTED)
def test_the_batteries_find_a_planted_error(name, tmp_path):
    before, after, selected = PLANTED[name]
    assert MINE.count(before) == 1
    package(tmp_path, MINE.replace(before, after) + HALF)
    done = run_batteries(tmp_path, selected)
    assert done.returncode == 1, done.stdout[-4000:]
    assert " failed" in done.stdout
