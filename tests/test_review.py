"""What a review found, once each: wrong programs that used to pass, and figures that used to be wrong."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, InputError, NonFiniteError, elbo, fit
from pyro_vae.base.files import finite, write_json
from pyro_vae.cli.main import main
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.models.priors import StandardNormal
from pyro_vae.program.predictive import sample_prior

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def bottom_up():
    """A model z2 → z1 → x with a guide that draws z1 first: an ordinary deep VAE."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(2 * z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1.expand(*z1.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(x[..., :1], 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(0.4 * z1, 0.5).to_event(1))

    return model, guide


def test_closed_kl_is_refused_where_the_guide_draws_in_another_order():
    """Each closed KL would be taken against a prior that depends on latents not yet drawn: another quantity."""
    with pytest.raises(InputError, match=r"latents in the model's order, .* got z1, z2 in place of z2, z1"):
        elbo.AnalyticKL(2).loss(*bottom_up(), X)
    assert math.isfinite(elbo.SampledKL(2).loss(*bottom_up(), X))


def shapes_differ():
    net = nn.Linear(3, 1)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if not n.startswith("trace_")])
def test_latents_of_different_shapes_are_refused_by_every_estimator(name):
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=r"\(1,\) in the guide, \(4,\) in the model"):
        ESTIMATORS[name]().loss_and_grads(*shapes_differ(), X)


def test_latents_of_different_shapes_are_refused_before_training():
    with pytest.raises(InputError, match="one event shape of latent 'z'"):
        fit(shapes_differ(), X, epochs=1, batch_size=4, device="cpu")
    with pytest.raises(InputError, match="one event shape of latent 'z'"):
        fit(VAE((3,), 2, (4,), "gaussian", prior=StandardNormal(3)), X, epochs=1, batch_size=4, device="cpu")


def test_parameters_ruined_by_the_last_step_of_an_epoch_are_named():
    """The held-out bound is the first to meet them; it used to end in a traceback."""
    settings = {"optimizer": "sgd", "learning_rate": 1e30, "batch_size": 12, "epochs": 1, "device": "cpu"}
    with pytest.raises(NonFiniteError, match=r"in step 1, .*(parameter|held-out)"):
        fit(VAE((3,), 2, (4,), "gaussian"), X, validation=X, **settings)


def test_estimator_that_refuses_the_program_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "discrete.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def model(x):\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        z = pyro.sample('z', dist.Bernoulli(0.5))\n"
        "        p = (0.2 + 0.5 * z)[..., None, None].expand(*z.shape, 8, 8)\n"
        "        pyro.sample('x', dist.Bernoulli(p).to_event(2), obs=x)\n"
        "def guide(x):\n"
        "    q = pyro.param('q', torch.tensor(0.5), constraint=dist.constraints.unit_interval)\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        pyro.sample('z', dist.Bernoulli(q))\n"
    )
    argv = ["train", "--model", str(tmp_path / "discrete.py"), "--epochs", "1", "--device", "cpu"]
    assert main([*argv, "--estimator", "dreg", "--out", str(tmp_path / "run")]) == 2
    assert "a reparameterized distribution at site 'z'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*argv, "--estimator", "vimco", "--out", str(tmp_path / "run")]) == 0


def with_deterministic():
    net, back = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(x):
        pyro.module("back", back)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", back(z), event_dim=1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
        pyro.deterministic("total", mean.sum())

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("estimator", ["trace_elbo", "iwae", "dreg", "wake_sleep", "analytic_kl"])
def test_deterministic_sites_are_no_sites(estimator):
    result = fit(with_deterministic(), X, validation=X, estimator=estimator, epochs=1, batch_size=4, device="cpu")
    assert math.isfinite(result.history[0].bound)
    assert sample_prior(result.program, X).mean.shape == X.shape


def test_sleep_is_refused_where_only_part_of_the_observations_would_be_sampled():
    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :1] + y[..., None], 1.0).to_event(1))

    for estimator in (elbo.WakeSleep(2), elbo.RWS(2, sleep_phi=1.0)):
        with pytest.raises(InputError, match="one observed site of them, for the sleep phase; got several"):
            estimator.loss_and_grads(model, guide, X, X[:, 0])
    assert math.isfinite(elbo.RWS(2).loss(model, guide, X, X[:, 0]))


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, -1e-9])
def test_renyi_near_one_is_the_elbo_in_single_precision(distance):
    noise = 30 * torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    single = elbo.Renyi(5, alpha=1 - distance).weighting(elbo.Terms(*noise)).value
    double = elbo.Renyi(5, alpha=1 - distance).weighting(elbo.Terms(*noise.double())).value
    assert (single - double).abs().max() < 1e-3
    mean = elbo.Terms(*noise.double()).log_weight.mean(0)
    assert (double - mean).abs().max() <= 2e4 * abs(distance)


def test_json_knows_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": None}}
    assert finite("nan") == "nan"


def test_images_that_cannot_be_drawn_train_all_the_same(tmp_path, capsys):
    pixels = np.random.default_rng(0).random((40, 4, 4, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", pixels)
    argv = ["train", "--data", str(tmp_path / "x.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main([*argv, "--hidden", "[4]", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "test bound" in printed
    assert "no pictures: Expected images (n, H, W) or (n, 1 or 3, H, W)" in printed


def test_reconstruct_takes_all_where_there_are_few(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8))
    argv = ["train", "--data", str(tmp_path / "x.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main([*argv, "--hidden", "[4]", "--out", str(tmp_path / "run")]) == 0
    assert main(["reconstruct", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("command", ["check", "compare --estimators stl"])
def test_output_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu", "--json", "."]) == 2
    assert "Expected a file that can be written; got '.', which cannot" in capsys.readouterr().err
