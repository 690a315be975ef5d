"""Labels on the command line: given to programs whose model and guide ask for ``y``."""

import json

import numpy as np
import pytest

from pyro_vae.cli.main import main

PROGRAM = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Conditional(nn.Module):
    def __init__(self, event_shape):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2 + 10, 16), nn.Linear(16 + 10, 4)

    def model(self, x, y):
        pyro.module("decoder", self.decoder)
        hot = (y[:, None] == torch.arange(10, device=y.device)).float()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.decoder(torch.cat([z, hot.expand(*z.shape[:-1], 10)], -1)).unflatten(-1, (4, 4))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x, y):
        pyro.module("encoder", self.encoder)
        hot = (y[:, None] == torch.arange(10, device=y.device)).float()
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(torch.cat([x.flatten(1), hot], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    noise = np.random.default_rng(0)
    labels = noise.integers(0, 10, 60)
    pixels = noise.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "labelled.npz", images=pixels, labels=labels)
    np.savez(folder / "other.npz", images=pixels, labels=np.roll(labels, 1))
    np.save(folder / "bare.npy", pixels)
    (folder / "conditional.py").write_text(PROGRAM)
    return folder


def train(folder, data, out, *more):
    options = ["--model", str(folder / "conditional.py:Conditional"), "--batch_size", "16", "--device", "cpu"]
    return main(["train", "--data", str(folder / data), *options, "--epochs", "2", "--out", str(folder / out), *more])


def test_train_gives_labels_and_resumes(folder, capsys):
    assert train(folder, "labelled.npz", "run") == 0
    out = capsys.readouterr().out
    assert "no pictures: Expected a program and data of x alone" in " ".join(out.split())
    assert train(folder, "other.npz", "other") == 0
    bounds = [json.loads((folder / run / "result.json").read_text())["test_bound"]["value"] for run in ("run", "other")]
    assert bounds[0] != bounds[1]
    assert main(["train", "--resume", str(folder / "run"), "--epochs", "3"]) == 0


def test_other_labels_are_other_data(folder, capsys):
    """The pixels are the same; labels are trained on, so a resumed run needs its own."""
    (folder / "moved.npz").write_bytes((folder / "labelled.npz").read_bytes())
    assert train(folder, "moved.npz", "moved") == 0
    (folder / "moved.npz").write_bytes((folder / "other.npz").read_bytes())
    assert main(["train", "--resume", str(folder / "moved"), "--epochs", "3"]) == 2
    assert "the data that the run began with; got labels" in " ".join(capsys.readouterr().err.split())
    info = json.loads((folder / "moved" / "info.json").read_text())
    del info["data"]["labels"]  # as an older version wrote it
    (folder / "moved" / "info.json").write_text(json.dumps(info))
    assert main(["train", "--resume", str(folder / "moved"), "--epochs", "3"]) == 0


def test_replicates_train_with_labels(folder):
    assert train(folder, "labelled.npz", "two", "--replicates", "2", "--engine", "compiled:inductor=false") == 0
    assert len(json.loads((folder / "two" / "result.json").read_text())["replicates"]) == 2


def test_data_without_labels_are_refused(folder, capsys):
    assert train(folder, "bare.npy", "bare") == 2
    assert "labels, which the program asks for as y; got images without labels" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (folder / "bare").exists()


@pytest.mark.parametrize("command", ["sample", "reconstruct", "plot"])
def test_what_works_on_x_alone_says_so(folder, capsys, command):
    if not (folder / "run").exists():
        assert train(folder, "labelled.npz", "run") == 0
    assert main([command, str(folder / "run")]) == 2
    found = " ".join(capsys.readouterr().err.split())
    assert "Expected a program and data of x alone for pictures and files of draws; got Columns(" in found


def test_evaluate_and_compare_give_labels(folder, capsys):
    if not (folder / "run").exists():
        assert train(folder, "labelled.npz", "run") == 0
    few = ["--only", "bounds,importance,latents", "--num_particles", "30", "--device", "cpu"]
    assert main(["evaluate", str(folder / "run"), *few]) == 0
    assert "IWAE-50" in capsys.readouterr().out
    assert main(["evaluate", str(folder / "run"), "--only", "sandwich"]) == 2
    assert "data of x alone, for what simulates x" in " ".join(capsys.readouterr().err.split())
    model = ["--data", str(folder / "labelled.npz"), "--model", str(folder / "conditional.py:Conditional")]
    draws = ["--draws", "20", "--reference_draws", "20", "--batch", "4", "--steps", "2", "--judge_particles", "3"]
    assert main(["compare", "--estimators", "stl", *model, *draws, "--batch_size", "16", "--judge_examples", "4"]) == 0
    assert "L_3" in capsys.readouterr().out
