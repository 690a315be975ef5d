"""How deep the code is: from the command to a step, a reader passes few functions of this package."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae import VAE, Hook, fit
from pyro_vae.cli.main import main
from pyro_vae.engines.svi import SVIEngine

PACKAGE = Path(pyro_vae.__file__).parent


def own_frames():
    """The functions of the package that are running, outermost first, without what is part of Python or a test."""
    frames = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
    return [(Path(frame.filename).stem, frame.name) for frame in frames]


@pytest.fixture
def stacks(tmp_path, monkeypatch):
    """The frames of every step of a tiny run of the command ``train``; the last is ``step`` itself."""
    found, step = [], SVIEngine.step

    def observed(self, *args, **kwargs):
        found.append([*own_frames(), ("svi", "step")])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SVIEngine, "step", observed)
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8))
    argv = ["train", "--data", str(tmp_path / "grey.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    argv += ["--latent_dim", "2", "--hidden", "[4]", "--engine", "svi", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    return found


def test_a_step_is_three_functions_below_fit(stacks):
    assert len(stacks) >= 3
    for frames in stacks:
        below = frames[frames.index(("fit", "fit")) :]
        assert [name for _, name in below] == ["fit", "one_by_one", "step"]


def test_a_step_is_five_functions_below_the_command(stacks):
    """They are main, train, fit, the engine's run, and step."""
    assert max(map(len, stacks)) <= 5, stacks[0]


def test_a_function_more_is_counted():
    """Hooks are called one function below fit: the count says so."""

    class Watch(Hook):
        def stepped(self, loop, info):
            self.frames = own_frames()

    watch = Watch()
    fit(VAE((4,), 2, (3,)), torch.ones(10, 4), epochs=1, batch_size=5, device="cpu", hooks=[watch])
    assert watch.frames == [("fit", "fit"), ("loop", "count")]
