"""The cross-check passes, and every planted error makes it fail."""

import importlib
import json

import pytest
import torch
from pyro import poutine

from pyro_vae.cli.main import main
from pyro_vae.elbo import analytic
from pyro_vae.models.vae import VAE

crosscheck = importlib.import_module("pyro_vae.studies.crosscheck")  # the package exports a function of this name
REAL = {name: getattr(analytic, name) for name in dir(analytic) if name.startswith(("log_", "kl_", "elbo_", "grad_"))}


class DetachedMean(VAE):
    """A guide whose location is detached."""

    def encode(self, x):
        loc, log_scale = self.encoder(x).unbind(-2)
        return self.posterior(loc.detach(), log_scale)


class ScaledGuide(VAE):
    """A program whose latent site is scaled only in the guide."""

    def guide(self, x):
        with poutine.scale(scale=0.5):
            super().guide(x)


class ScaledModel(VAE):
    """A program whose sites are scaled only in the model."""

    def model(self, x):
        with poutine.scale(scale=0.5):
            super().model(x)


class LogVariance(VAE):
    """A guide that reads the log-scale as a log-variance."""

    def encode(self, x):
        loc, log_scale = self.encoder(x).unbind(-2)
        return self.posterior(loc, 0.5 * log_scale)


def in_analytic(name, function):
    return lambda patch: patch.setattr(analytic, name, function)


def in_program(kind):
    def build(likelihood):
        vae = kind((8, 8), crosscheck.LATENT_DIM, (crosscheck.HIDDEN,), crosscheck.LIKELIHOODS[likelihood], "tanh")
        for parameter in vae.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return vae

    return lambda patch: patch.setattr(crosscheck, "build_program", build)


def no_log_2pi(x, mean, log_scale):
    return REAL["log_gaussian"](x, mean, log_scale) + analytic.HALF_LOG_2PI * x.shape[-1]


PLANTED = {
    "KL without its half": in_analytic(
        "kl_to_standard_normal", lambda loc, s: (loc**2 + (2 * s).exp() - 1 - 2 * s).sum(-1)
    ),
    "KL of the wrong sign": in_analytic("kl_to_standard_normal", lambda loc, s: -REAL["kl_to_standard_normal"](loc, s)),
    "scale for variance in the KL": in_analytic(
        "kl_to_standard_normal", lambda loc, s: 0.5 * (loc**2 + s.exp() - 1 - 2 * s).sum(-1)
    ),
    "log-scale read as log-variance in the program": in_program(LogVariance),
    "sum for mean over particles, closed": in_analytic(
        "elbo_closed", lambda log_px_z, loc, s: log_px_z.sum(0) - REAL["kl_to_standard_normal"](loc, s)
    ),
    "sum for mean over particles, sampled": in_analytic(
        "elbo_sampled",
        lambda log_px_z, z, loc, s: (log_px_z + REAL["log_standard_normal"](z) - REAL["log_gaussian"](z, loc, s)).sum(
            0
        ),
    ),
    "no log 2 pi in the likelihood": in_analytic("log_gaussian", no_log_2pi),
    "no log 2 pi in the prior": in_analytic("log_standard_normal", lambda z: -0.5 * (z**2).sum(-1)),
    "a detached mean": in_program(DetachedMean),
    "the likelihood averaged over the batch": in_analytic(
        "elbo_closed", lambda log_px_z, loc, s: log_px_z.mean() - REAL["kl_to_standard_normal"](loc, s)
    ),
    "the wrong axis averaged": in_analytic(
        "elbo_closed",
        lambda log_px_z, loc, s: log_px_z.mean(1).sum() / len(loc) - REAL["kl_to_standard_normal"](loc, s),
    ),
    "the wrong axis summed": in_analytic(
        "log_bernoulli", lambda x, logits: (x * logits - torch.nn.functional.softplus(logits)).mean(-1)
    ),
    "a scale on the guide's site only": in_program(ScaledGuide),
    "a scale on the model's sites only": in_program(ScaledModel),
    "hand gradient: no pathwise term": in_analytic(
        "grad_elbo_closed",
        lambda loc, s, noise, grad_z: REAL["grad_elbo_closed"](loc, s, noise, torch.zeros_like(grad_z)),
    ),
    "hand gradient: scale for variance": in_analytic(
        "grad_log_gaussian", lambda x, mean, s: ((x - mean) * (-s).exp(), REAL["grad_log_gaussian"](x, mean, s)[1])
    ),
    "hand gradient: sign of the logits": in_analytic("grad_log_bernoulli", lambda x, logits: torch.sigmoid(logits) - x),
    "hand gradient: no entropy term": in_analytic(
        "grad_elbo_sampled",
        lambda loc, s, noise, grad_z: (
            REAL["grad_elbo_sampled"](loc, s, noise, grad_z)[0],
            REAL["grad_elbo_sampled"](loc, s, noise, grad_z)[1] - 1,
        ),
    ),
}


@pytest.fixture
def few_draws(monkeypatch):
    """Make the statistical comparison fast, where only the exact ones matter."""
    monkeypatch.setattr(crosscheck, "NUM_DRAWS", 50)


@pytest.mark.slow
def test_check_passes_and_writes_every_row(device, tmp_path, capsys):
    file = tmp_path / "check.json"
    assert main(["check", "--device", device.type, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["passed"] is True
    rows = record["rows"]
    assert {row["likelihood"] for row in rows} == {"bernoulli", "gaussian", "learned_gaussian"}
    assert {row["dtype"] for row in rows} == {"float32", "float64"}
    assert {row["num_particles"] for row in rows} == {1, crosscheck.NUM_PARTICLES}
    assert {row["quantity"] for row in rows} == {"per example", "value", "gradients", "head gradients", "z-score"}
    assert {row["limit"] for row in rows if row["quantity"] != "z-score"} == {1e-10, 1e-4}
    assert all(row["error"] <= row["limit"] for row in rows)
    assert "agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_planted_error_is_caught(name, monkeypatch):
    PLANTED[name](monkeypatch)
    exact = (row for row in crosscheck._comparisons([torch.device("cpu")]) if row.quantity != "z-score")
    caught = next(row for row in exact if not row.passed and row.dtype == "float64")  # StopIteration: not caught
    assert caught.error > 1e-3


def test_mismatch_gives_exit_status_one_and_names_the_tensor(monkeypatch, few_draws, capsys, tmp_path):
    PLANTED["a detached mean"](monkeypatch)
    file = tmp_path / "check.json"
    assert main(["check", "--device", "cpu", "--json", str(file)]) == 1
    assert json.loads(file.read_text())["passed"] is False
    assert "encoder" in capsys.readouterr().out


def test_fresh_noise_alone_catches_a_wrong_kl(monkeypatch):
    """The z-score alone finds a KL that is 5 % too large."""
    monkeypatch.setattr(analytic, "kl_to_standard_normal", lambda loc, s: 1.05 * REAL["kl_to_standard_normal"](loc, s))
    case = crosscheck.Case("bernoulli", 1, torch.float64, torch.device("cpu"))
    (row,) = crosscheck._isolated(crosscheck._fresh_noise, case)
    assert row.quantity == "z-score"
    assert not row.passed


def test_given_noise_replaces_the_guides_own():
    """The handler behind CPU = CUDA: given the noise that Pyro would sample, loss and gradients are the same."""
    case = crosscheck.Case("gaussian", crosscheck.NUM_PARTICLES, torch.float64, torch.device("cpu"))
    with torch.random.fork_rng():
        vae, x = crosscheck._program_and_data(case)
        estimator = crosscheck._estimator(crosscheck.Trace_ELBO, case.num_particles)
        own = crosscheck._pyro(vae, x, estimator, seed=1)
        with crosscheck.GivenNoise(crosscheck._noise(case, seed=1)):
            given = crosscheck._pyro(vae, x, estimator, seed=2)
        with crosscheck.GivenNoise(crosscheck._noise(case, seed=3)):
            other = crosscheck._pyro(vae, x, estimator, seed=1)
    assert given[0] == pytest.approx(own[0], rel=1e-12)
    assert crosscheck._worst(given[1], own[1])[0] < 1e-10
    assert other[0] != pytest.approx(own[0], rel=1e-6)


def test_comparison_across_devices_runs_and_sees_a_difference(monkeypatch):
    """The comparison of devices, with the CPU as both: equal on the same noise, and not on other noise."""
    case = crosscheck.Case("bernoulli", crosscheck.NUM_PARTICLES, torch.float64, torch.device("cpu"))
    rows = crosscheck._isolated(crosscheck._across_devices, case)
    assert [row.error for row in rows] == [0.0, 0.0]
    handed = iter([1.0, 1.001])
    given = crosscheck.GivenNoise
    monkeypatch.setattr(crosscheck, "GivenNoise", lambda noise: given(noise * next(handed)))
    rows = crosscheck._isolated(crosscheck._across_devices, case)
    assert not any(row.passed for row in rows)


def test_nan_never_passes():
    assert not crosscheck.Row("a", "value", "bernoulli", 1, "float64", "cpu", float("nan"), 1e-10, "").passed
    assert crosscheck._worst({"w": torch.tensor([1.0, torch.nan])}, {"w": torch.ones(2)})[0] != 0
