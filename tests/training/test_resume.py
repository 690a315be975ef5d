"""A run that was killed at any instant and resumed ends bit-identical to one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from resume_driver import PLANS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pyro_vae
from pyro_vae.training.folder import Run

KILLED, INTERRUPTED = -signal.SIGKILL, 130
STEPS, EPOCHS = 5, 3  # steps in an epoch (the last of which is a smaller batch), epochs

# Draws from every generator there is, in the guide's training mode alone, and holds a buffer (batch normalisation).
NOISY = """
import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Noisy(nn.Module):
    def __init__(self, event_shape, width=6):
        super().__init__()
        size = event_shape[0] * event_shape[1]
        layers = nn.Linear(size, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 4)
        self.encoder = nn.Sequential(*layers)
        self.decoder = nn.Linear(2, size)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, torch.ones(2)).to_event(1))
            logits = self.decoder(z).unflatten(-1, x.shape[1:])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        if self.training:
            loc = loc + float(np.random.normal()) + random.gauss(0.0, 1.0)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
"""
PROGRAMS = {
    "noisy": ["--model", "noisy.py:Noisy", "--optimizer", "adam:amsgrad=true", "--kl_warmup", "1.5"],
    "vae": ["--latent_dim", "2", "--hidden", "[6]", "--optimizer", "sgd:momentum=0.9", "--clip_norm", "3"],
}


class Driver:
    """The process of ``resume_driver.py``, and a folder with data and a program for it."""

    def __init__(self, folder):
        self.folder = folder
        path = Path(__file__).parents[1] / "resume_driver.py"
        package = str(Path(pyro_vae.__file__).parents[1])  # the one under test, wherever another is installed
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        grey = np.random.default_rng(0).integers(0, 256, (48, 4, 4), dtype=np.uint8)
        np.save(folder / "grey.npy", grey)
        (folder / "noisy.py").write_text(NOISY)

    def __call__(self, argv, plan="none", at=1, seconds=0.0):
        order = {"argv": argv, "log": str(self.folder / "log"), "plan": plan, "at": at, "seconds": seconds}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def train(self, program, out, *more, **plan):
        argv = ["train", "--data", "grey.npy", "--batch_size", "9", "--epochs", str(EPOCHS), "--device", "cpu"]
        argv += ["--schedule", "cosine:final=0.1", "--binarize", "dynamic", "--seed", "3", "--learning_rate", "0.01"]
        return self([*argv, *PROGRAMS[program], "--out", str(out), *more], **plan)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = Driver(tmp_path_factory.mktemp("resume"))
    yield driver
    driver.process.stdin.close()
    driver.process.stdout.close()
    driver.process.wait(timeout=60)


@pytest.fixture(scope="module")
def uninterrupted(driver):
    """One whole run of each program, with a checkpoint an epoch: when one is saved must not matter."""
    for program in PROGRAMS:
        assert driver.train(program, driver.folder / program, seconds=1e9) == 0, driver.log
    return {program: driver.folder / program for program in PROGRAMS}


def without_clock(value):
    """Drop what a wall clock says."""
    if isinstance(value, dict):
        return {key: without_clock(part) for key, part in value.items() if key != "seconds"}
    return [without_clock(part) for part in value] if isinstance(value, list) else value


def metrics(run):
    return [without_clock(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def differences(left, right, where="state"):
    """List where two nested states differ; tensors must be equal to the last bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        found = [f"{where}: keys {left.keys() ^ right.keys()}"] if left.keys() != right.keys() else []
        return found + [
            d for key in left.keys() & right.keys() for d in differences(left[key], right[key], f"{where}.{key}")
        ]
    if isinstance(left, list | tuple) and len(left) == len(right):
        return [d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in differences(a, b, f"{where}[{i}]")]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return [] if same else [where]


def assert_same_end(resumed, whole):
    """Compare parameters, buffers, optimiser, random states, position, history, metrics and result."""
    for name in ("last", "best"):
        states = [without_clock(Run.open(path).load_checkpoint(name)) for path in (resumed, whole)]
        assert differences(*states) == []
    assert metrics(resumed) == metrics(whole)
    assert (resumed / "result.json").read_text() == (whole / "result.json").read_text()
    assert sorted(p.name for p in (resumed / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


def test_a_difference_of_one_bit_is_found(uninterrupted):
    state = Run.open(uninterrupted["vae"]).load_checkpoint()
    other = Run.open(uninterrupted["vae"]).load_checkpoint()
    assert differences(state, other) == []
    tensor = other["program"]["decoder.layers.0.bias"]
    tensor.view(torch.int32)[0] ^= 1
    other["rng"]["python"][1][17] ^= 1
    found = differences(state, other)
    assert sorted(found) == ["state.program.decoder.layers.0.bias", "state.rng.python[1][17]"]


def test_uninterrupted_runs_did_what_the_tests_suppose(uninterrupted):
    for run in uninterrupted.values():
        lines = metrics(run)
        assert [line["step"] for line in lines if line["kind"] == "epoch"] == [5, 10, 15]
        assert [line["step"] for line in lines if line["kind"] == "step"] == [2, 4, 6, 8, 10, 12, 14]
        assert lines[6]["improved"], "no second best.pt: the plan 'after the best' would not kill"
    best = [Run.open(run).load_checkpoint("best")["position"]["epoch"] for run in uninterrupted.values()]
    assert best == [3, 2], "a best.pt lost between its epoch and the last checkpoint would go unseen"
    weights = [line["kl_weight"] for line in metrics(uninterrupted["noisy"]) if line["kind"] == "step"]
    np.testing.assert_allclose(weights, [2 / 7.5, 4 / 7.5, 6 / 7.5, 1, 1, 1, 1])


KILLS = [
    # program, plan, at, seconds between checkpoints
    ("noisy", "checkpoint", 8, 0.0),  # just after the checkpoint of step 7, mid-epoch
    ("noisy", "step", 9, 1e9),  # mid-epoch, the last checkpoint four steps before
    ("noisy", "step", 1, 1e9),  # in the first step of all
    ("noisy", "inside a checkpoint", 9, 0.0),
    ("noisy", "inside a checkpoint", 1, 0.0),
    ("noisy", "after the best", 2, 0.0),
    ("noisy", "checkpoint", 4, 1e9),  # the last epoch is saved; best.pt must have been before
    ("vae", "checkpoint", 3, 1e9),
    ("noisy", "metrics", 2, 1e9),  # an epoch's line is written, its checkpoint is not
    ("noisy", "inside a line", 6, 1e9),
    ("noisy", "trained", 1, 1e9),
    ("noisy", "result", 1, 1e9),
    ("vae", "checkpoint", 14, 0.0),
    ("vae", "step", 13, 1e9),
    ("vae", "inside a checkpoint", 13, 0.0),
    ("vae", "after the best", 1, 0.0),
    ("vae", "metrics", 1, 0.0),
]


@pytest.mark.parametrize(("program", "plan", "at", "seconds"), KILLS)
def test_killed_and_resumed_ends_the_same(driver, uninterrupted, tmp_path, program, plan, at, seconds):
    run = tmp_path / "run"
    assert driver.train(program, run, plan=plan, at=at, seconds=seconds) == KILLED, driver.log
    if (plan, at) == ("inside a checkpoint", 1):  # there is nothing to continue from
        assert driver(["train", "--resume", str(run)]) == 2
        assert "none: the run was stopped before its first. Try" in driver.log
        assert driver.train(program, run, "--overwrite") == 0, driver.log
    else:
        assert driver(["train", "--resume", str(run)]) == 0, driver.log
    assert_same_end(run, uninterrupted[program])


def test_killed_at_any_time_from_outside(driver, tmp_path):
    more = ["--epochs", "40"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert driver.train("noisy", whole, *more, seconds=1e9) == 0, driver.log
    assert driver.train("noisy", run, *more, plan="outside", at=137) == KILLED, driver.log
    assert driver(["train", "--resume", str(run)], seconds=1e9) == 0, driver.log
    assert_same_end(run, whole)


def test_killed_again_and_again_while_resuming(driver, uninterrupted, tmp_path):
    run = tmp_path / "run"
    assert driver.train("noisy", run, plan="step", at=8, seconds=1e9) == KILLED, driver.log
    for plan, at in (("resuming", 1), ("dropping lines", 1), ("inside a checkpoint", 1), ("step", 2), ("metrics", 1)):
        assert driver(["train", "--resume", str(run)], plan=plan, at=at) == KILLED, f"{plan}: {driver.log}"
    assert driver(["train", "--resume", str(run)]) == 0, driver.log
    assert_same_end(run, uninterrupted["noisy"])


def test_killed_while_the_folder_is_made_leaves_none(driver, uninterrupted, tmp_path):
    run = tmp_path / "run"
    assert driver.train("vae", run, plan="inside create") == KILLED, driver.log
    assert not run.exists()
    assert driver.train("vae", run) == 0, driver.log
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same_end(run, uninterrupted["vae"])


def test_killed_before_its_first_checkpoint_says_so(driver, tmp_path):
    run = tmp_path / "run"
    assert driver.train("vae", run, plan="created") == KILLED, driver.log
    assert driver(["train", "--resume", str(run)]) == 2
    assert driver.log.splitlines()[-1].endswith("none: the run was stopped before its first. Try a new run.")


@pytest.mark.parametrize("at", [3, STEPS, 8, STEPS * EPOCHS])
def test_interrupted_saves_and_says_how_to_resume(driver, uninterrupted, tmp_path, at):
    run = tmp_path / "run"
    assert driver.train("noisy", run, plan="interrupt", at=at, seconds=1e9) == INTERRUPTED, driver.log
    assert driver.log.rstrip().endswith(f"Stopped, and saved. Resume with: pyro-vae train --resume {run}")
    assert Run.open(run).load_checkpoint()["position"]["step"] == at  # the current step was finished and kept
    assert not (run / "result.json").exists()
    assert driver(["train", "--resume", str(run)]) == 0, driver.log
    assert_same_end(run, uninterrupted["noisy"])


def test_interrupted_twice_ends_at_once_and_can_still_be_resumed(driver, uninterrupted, tmp_path):
    run = tmp_path / "run"
    assert driver.train("noisy", run, plan="interrupt twice", at=8, seconds=1e9) == INTERRUPTED, driver.log
    assert driver.log.rstrip().endswith("pyro-vae: interrupted")
    assert Run.open(run).load_checkpoint()["position"]["step"] == STEPS
    assert driver(["train", "--resume", str(run)]) == 0, driver.log
    assert_same_end(run, uninterrupted["noisy"])


def test_a_finished_run_can_be_resumed_and_extended(driver, uninterrupted, tmp_path):
    """With a constant schedule more epochs are the same as having asked for them at once."""
    short, whole = tmp_path / "short", tmp_path / "whole"
    constant = ["--schedule", "constant"]
    assert driver.train("noisy", whole, *constant) == 0, driver.log
    assert driver.train("noisy", short, *constant, "--epochs", "2") == 0, driver.log
    assert driver(["train", "--resume", str(short)]) == 0, driver.log
    assert len([line for line in metrics(short) if line["kind"] == "epoch"]) == 2
    assert driver(["train", "--resume", str(short), "--epochs", str(EPOCHS)]) == 0, driver.log
    assert_same_end(short, whole)
    assert Run.open(short).config == Run.open(whole).config


@pytest.mark.parametrize("at", [2, 3])
def test_tensorboard_shows_what_the_metrics_say_after_a_kill(driver, tmp_path, at):
    run = tmp_path / "run"
    assert driver.train("noisy", run, plan="metrics", at=at, seconds=1e9) == KILLED, driver.log
    assert driver(["train", "--resume", str(run)]) == 0, driver.log
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    for kind, name in (("epoch", "bound"), ("step", "objective"), ("step", "grad_norm")):
        shown = [(event.step, event.value) for event in board.Scalars(f"{kind}/{name}")]
        written = [(line["step"], line[name]) for line in metrics(run) if line["kind"] == kind]
        assert [step for step, _ in shown] == [step for step, _ in written]
        np.testing.assert_allclose([value for _, value in shown], [value for _, value in written], rtol=1e-6)


def test_every_plan_is_used():
    used = {plan for _, plan, *_ in KILLS}
    named = {
        "none",
        "outside",
        "inside create",
        "created",
        "resuming",
        "dropping lines",
        "interrupt",
        "interrupt twice",
    }
    assert used | named == PLANS.keys()
