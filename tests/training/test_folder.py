"""The run folder: what is in it, that it makes the run again, and that a failing run keeps its last good state."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
import yaml
from PIL import Image
from pyro.optim import PyroOptim
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_vae.base.errors import InputError
from pyro_vae.base.files import write_json
from pyro_vae.cli.main import main
from pyro_vae.training.config import RunConfig, fingerprint
from pyro_vae.training.folder import Run, check_new

FAILING = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Failing(nn.Module):
    def __init__(self, event_shape, value="nan", at=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(event_shape))
        self.value, self.at, self.steps = float(value), at, 0

    def model(self, x):
        pyro.module("failing", self)
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        bad = self.value if self.steps == self.at else 0.0
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, torch.ones(2)).to_event(1))
            loc = self.weight + z.sum(-1)[..., None, None]
            pyro.sample("x", dist.Normal(loc, 1.0 + bad).to_event(2), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, torch.ones(2)).to_event(1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "grey.npy", np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8))
    (folder / "failing.py").write_text(FAILING)
    return folder


def train(folder, out, *options):
    argv = ["train", "--data", str(folder / "grey.npy"), "--batch_size", "10", "--device", "cpu", "--epochs", "2"]
    return main([*argv, "--out", str(folder / out), *options])


@pytest.fixture(scope="module")
def run(folder):
    options = [
        "--latent_dim",
        "2",
        "--hidden",
        "[7]",
        "--seed",
        "4",
        "--optimizer",
        "adam:eps=1e-6",
        "--clip_norm",
        "9",
    ]
    assert train(folder, "run", *options) == 0
    return Run.open(folder / "run")


# ---- what is in the folder


def test_holds_what_was_promised_and_nothing_else(run):
    found = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents.")}
    pictures = {f"pictures/{name}.png" for name in ("reconstructions", "samples", "curves", "manifold", "latent")}
    files = {"config.yaml", "info.json", "metrics.jsonl", "result.json", "checkpoints/last.pt", "checkpoints/best.pt"}
    assert len(events) == 1
    assert found == events | pictures | files


def test_info_names_versions_and_data(run):
    info = json.loads((run.path / "info.json").read_text())
    assert info["packages"]["torch"] == version("torch")
    assert info["packages"]["pyro-ppl"] == version("pyro-ppl")
    assert info["data"]["sizes"] == {"train": 48, "validation": 6, "test": 6}
    assert info["data"]["split"] == "by seed 4"
    assert info["data"]["event_shape"] == [5, 4]
    assert "grey.npy" in info["data"]["source"]


def test_metrics_are_the_history(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    history = run.load_checkpoint()["history"]
    assert lines == [{"kind": "epoch", **record} for record in history]
    assert [line["step"] for line in lines] == [5, 10]
    assert all(math.isfinite(line["bound"]) and line["bound_standard_error"] > 0 for line in lines)


def test_tensorboard_holds_the_metrics(run):
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for name in ("objective", "bound", "bound_standard_error", "learning_rate", "kl_weight"):
        shown = [(event.step, event.value) for event in board.Scalars(f"epoch/{name}")]
        assert shown == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]


def test_checkpoints_hold_all_and_load_with_weights_only(run):
    state = torch.load(run.checkpoint(), weights_only=True)
    assert state.keys() == {
        *("format", "fingerprint", "program", "engine", "engine_name", "settings", "rng", "position", "history"),
    }
    assert state["rng"].keys() == {"torch", "python", "numpy"}
    assert state["position"] | {"seconds": 0} == state["position"] | {"seconds": 0, "epoch": 2, "batch": 0, "step": 10}
    names = {name.replace("$$$", ".") for name in state["engine"]["optimizer"]}
    assert names == set(state["program"])
    best = torch.load(run.checkpoint("best"), weights_only=True)
    bounds = [record["bound"] for record in state["history"]]
    assert best["position"]["best"] == max(bounds)
    assert best["position"]["epoch"] == 1 + bounds.index(max(bounds))


def test_result_is_the_test_bound(run):
    result = json.loads((run.path / "result.json").read_text())
    assert result["test_bound"]["count"] == 6
    assert result["test_bound"]["standard_error"] > 0
    assert (result["unit"], result["binarize"], result["epochs"], result["stopped"]) == (
        "nats per example",
        "dynamic",
        2,
        "",
    )


def test_configuration_holds_every_option(run):
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    assert values.keys() == RunConfig.__dataclass_fields__.keys()
    assert values["optimizer"] == "adam:eps=1e-6"
    assert RunConfig(**values) == run.config


def test_configuration_makes_the_run_again_to_the_last_bit(run, folder):
    assert main(["train", "--config", str(run.path / "config.yaml"), "--out", str(folder / "again")]) == 0
    first, again = (r.load_checkpoint() for r in (run, Run.open(folder / "again")))
    assert first["program"].keys() == again["program"].keys()
    assert all(torch.equal(first["program"][name], again["program"][name]) for name in first["program"])
    assert (folder / "again" / "result.json").read_text() == (run.path / "result.json").read_text()
    for picture in run.pictures.iterdir():
        with Image.open(picture) as ours, Image.open(folder / "again" / "pictures" / picture.name) as theirs:
            assert ours.tobytes() == theirs.tobytes()


def test_another_seed_makes_another_run(run, folder):
    options = ["--config", str(run.path / "config.yaml"), "--seed", "5", "--out", str(folder / "other")]
    assert main(["train", *options]) == 0
    first, other = (r.load_checkpoint()["program"] for r in (run, Run.open(folder / "other")))
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_overwrite_replaces_a_run_whole(folder, capsys):
    assert train(folder, "twice", "--latent_dim", "2", "--hidden", "[3]") == 0
    (folder / "twice" / "pictures" / "mine.png").write_text("old")
    assert train(folder, "twice", "--latent_dim", "3", "--hidden", "[3]") == 2
    assert (folder / "twice" / "pictures" / "mine.png").exists()
    assert train(folder, "twice", "--latent_dim", "3", "--hidden", "[3]", "--overwrite") == 0
    assert not (folder / "twice" / "pictures" / "mine.png").exists()
    assert not (folder / "twice" / "pictures" / "manifold.png").exists()
    assert Run.open(folder / "twice").config.latent_dim == 3


# ---- a run that fails


@pytest.mark.parametrize(("value", "at"), [("nan", 7), ("inf", 7), ("nan", 1), ("nan", 5)])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(folder, capsys, value, at):
    out = f"failing-{value}-{at}"
    arguments = f"{{value: {value}, at: {at}}}"
    options = ["--model", str(folder / "failing.py:Failing"), "--model_args", arguments, "--binarize", "none"]
    capsys.readouterr()
    assert train(folder, out, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pyro-vae: error: Expected a finite loss and gradient; got loss ")
    assert f"in step {at}, not finite: log p of site x" in line
    assert ". Try a smaller learning_rate, --clip_norm 100, or" in line
    state = Run.open(folder / out).load_checkpoint()
    assert state["position"]["step"] == 5 * ((at - 1) // 5)
    assert state["program"]["weight"].isfinite().all()
    assert not (folder / out / "result.json").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learning_rate_beyond_reason(folder, capsys, optimizer):
    options = ["--latent_dim", "2", "--hidden", "[7]", "--learning_rate", "1e30", "--optimizer", optimizer]
    assert train(folder, f"beyond-{optimizer}", *options) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "in step 2, not finite: value of site z" in err
    state = Run.open(folder / f"beyond-{optimizer}").load_checkpoint()
    assert all(value.isfinite().all() for value in state["program"].values())


def test_a_scale_of_infinity_in_the_likelihood(folder, capsys):
    options = ["--binarize", "none", "--likelihood", "gaussian:scale=1e-30", "--latent_dim", "2", "--hidden", "[7]"]
    assert train(folder, "scale", *options) == 1
    assert "in step 1, not finite: log p of site x" in capsys.readouterr().err


class Payload:
    """Run a command when unpickled, as a hostile file would."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loading_a_checkpoint_runs_nothing(tmp_path):
    """Pyro's ``ParamStore.load`` and ``PyroOptim.load`` unpickle whatever the file holds."""
    file, touched = tmp_path / "last.pt", tmp_path / "touched"
    torch.save({"params": Payload(touched), "constraints": {}}, file)
    with pyro.get_param_store().scope(), pytest.raises(AttributeError):  # too late
        pyro.get_param_store().load(str(file))
    assert touched.exists()
    touched.unlink()
    PyroOptim(torch.optim.Adam, {"lr": 0.1}).load(str(file))
    assert touched.exists()
    touched.unlink()
    run = Run(tmp_path, RunConfig())
    run.checkpoint().parent.mkdir()
    file.rename(run.checkpoint())
    with pytest.raises(InputError, match="a whole checkpoint"):
        run.load_checkpoint()
    assert not touched.exists()


# ---- in Python


def test_a_run_is_made_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyro_vae.training.folder.run_info", broken)
    with pytest.raises(InputError, match=r"a folder that can be written; got .*: No space left on device"):
        Run(tmp_path / "new", run.config).create(run.config.load_data())
    assert not (tmp_path / "new").exists()


def test_fingerprint_tells_configurations_apart():
    base = RunConfig()
    assert fingerprint(base) == fingerprint(RunConfig(epochs=99, device="cpu", data_root="elsewhere"))
    changed = [RunConfig(seed=1), RunConfig(hidden=[3]), RunConfig(optimizer="sgd"), RunConfig(kl_warmup=1.0)]
    assert len({fingerprint(config) for config in [base, *changed]}) == 5


def test_paths_in_a_configuration_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig(data="grey.npy", model="sub/model.py:Mine", data_root="here").absolute()
    assert config.data == str(tmp_path / "grey.npy")
    assert config.model == f"{tmp_path / 'sub' / 'model.py'}:Mine"
    assert config.data_root == str(tmp_path / "here")
    assert RunConfig(data="mnist", model="vae").absolute() == RunConfig(data="mnist", model="vae")


def test_a_resumed_run_keeps_an_absolute_data_root(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.extended({"data_root": "here"}).config.data_root == str(tmp_path / "here")


def test_check_new_writes_nothing(tmp_path):
    check_new(tmp_path / "a" / "b" / "c", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_write_json_is_atomic(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {("no", "key"): 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_resuming_on_other_data_is_refused_and_on_moved_data_is_not(folder, tmp_path, capsys):
    pixels = np.load(folder / "grey.npy")
    np.save(tmp_path / "grey.npy", pixels)
    argv = ["train", "--data", str(tmp_path / "grey.npy"), "--batch_size", "10", "--device", "cpu", "--epochs", "1"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    resume = ["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    np.save(tmp_path / "grey.npy", 255 - pixels)
    assert main(resume) == 2
    assert "Expected the data that the run began with; got crc32" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    np.save(tmp_path / "grey.npy", pixels)
    assert main(resume) == 0
