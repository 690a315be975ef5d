"""The command line: commands on a finished run, the forms of options, and what is printed."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse.typing import PositiveInt
from PIL import Image
from rich.console import Console

import pyro_vae
from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import Estimate
from pyro_vae.cli import check
from pyro_vae.cli import train as commands
from pyro_vae.cli.hints import on_the_command_line
from pyro_vae.cli.main import COMMANDS, main
from pyro_vae.cli.parser import Command, parse
from pyro_vae.cli.progress import is_reported
from pyro_vae.cli.train import TrainOptions, train
from pyro_vae.data import load
from pyro_vae.elbo.draw import draw_particles
from pyro_vae.evaluation import inference_data
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.training.config import RunConfig
from pyro_vae.training.folder import Run, load_program

PACKAGE = Path(pyro_vae.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    np.save(folder / "grey.npy", np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8))
    options = ["--latent_dim", "2", "--hidden", "[7]", "--batch_size", "16", "--device", "cpu", "--epochs", "3"]
    data = ["--data", str(folder / "grey.npy")]
    assert main(["train", *data, *options, "--out", str(folder / "run"), "--seed", "1", "--learning-rate", "0.01"]) == 0
    return folder


def arrays(folder, command, *options):
    file = folder / f"{command}.npz"
    assert main([command, str(folder / "run"), "--arrays", str(file), *options]) == 0
    with np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


# ---- sample, reconstruct, plot


@pytest.mark.parametrize("count", [1, 7, 64])
def test_sample_gives_exactly_the_count(folder, count, capsys):
    found = arrays(folder, "sample", "--count", str(count))
    assert {name: value.shape for name, value in found.items()} == {
        "mean": (count, 5, 4),
        "draw": (count, 5, 4),
        "latent_z": (count, 2),
    }
    assert ((found["mean"] > 0) & (found["mean"] < 1)).all()
    assert set(np.unique(found["draw"])) <= {0.0, 1.0}
    out = capsys.readouterr().out
    assert f"arrays    {folder / 'sample.npz'}" in out
    assert f"picture   {folder / 'run' / 'pictures' / 'samples.png'}" in out


def test_samples_are_the_decoder_at_draws_of_the_prior(folder):
    found = arrays(folder, "sample", "--count", "400", "--seed", "3")
    vae = load_program(run := Run.open(folder / "run"), run.config.load_data(), torch.device("cpu"))
    with torch.no_grad():
        means = vae.decode(torch.from_numpy(found["latent_z"])).mean
    np.testing.assert_allclose(found["mean"], means.numpy(), rtol=1e-6)
    error = 5 / np.sqrt(400)
    assert (np.abs(found["latent_z"].mean(0)) < error).all()
    assert (np.abs(found["latent_z"].var(0) - 1) < error * np.sqrt(2)).all()


def test_sample_follows_its_seed(folder):
    first, again, other = (arrays(folder, "sample", "--count", "5", "--seed", seed) for seed in ("8", "8", "9"))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["latent_z"] != other["latent_z"]).all()


def test_the_best_checkpoint_is_another_program_than_the_last(folder):
    run = Run.open(folder / "run")
    best = run.load_checkpoint("best")
    original = run.checkpoint("best").read_bytes()
    best["program"]["decoder.layers.0.bias"] += 1.0
    try:
        run.save_checkpoint({k: v for k, v in best.items() if k not in ("format", "fingerprint")}, "best")
        last, changed = (arrays(folder, "sample", "--count", "5", "--checkpoint", name) for name in ("last", "best"))
    finally:
        run.checkpoint("best").write_bytes(original)
    assert (last["latent_z"] == changed["latent_z"]).all()
    assert (last["mean"] != changed["mean"]).any()


@pytest.mark.parametrize("count", [1, 6])
def test_reconstruct_gives_the_first_test_images(folder, count):
    found = arrays(folder, "reconstruct", "--count", str(count), "--seed", "2")
    assert {name: value.shape for name, value in found.items()} == {
        "mean": (count, 5, 4),
        "draw": (count, 5, 4),
        "latent_z": (count, 2),
        "x": (count, 5, 4),
    }
    test = load(folder / "grey.npy", seed=1).test
    assert (found["x"] == test.binarized(2)[:count].numpy()).all()
    vae = load_program(run := Run.open(folder / "run"), run.config.load_data(), torch.device("cpu"))
    with torch.no_grad():
        np.testing.assert_allclose(found["mean"], vae.decode(torch.from_numpy(found["latent_z"])).mean, rtol=1e-6)
        q = vae.encode(torch.from_numpy(found["x"]))
    assert (np.abs(found["latent_z"] - q.mean.numpy()) < 6 * q.variance.sqrt().numpy()).all()


def test_reconstruct_takes_all_where_there_are_few(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8))
    argv = ["train", "--data", str(tmp_path / "x.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main([*argv, "--hidden", "[4]", "--out", str(tmp_path / "run")]) == 0
    assert main(["reconstruct", str(tmp_path / "run")]) == 0


def test_plot_draws_every_picture_again(folder, capsys):
    pictures = folder / "run" / "pictures"
    before = {path.name: Image.open(path).tobytes() for path in pictures.iterdir() if path.name != "samples.png"}
    for path in pictures.iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(["plot", str(folder / "run"), "--seed", "1"]) == 0
    said = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(said) == sorted(str(path) for path in pictures.iterdir())
    names = {"reconstructions.png", "samples.png", "curves.png", "manifold.png", "latent.png"}
    assert {path.name for path in pictures.iterdir()} == names
    assert before.keys() | {"samples.png"} == names
    for name in before.keys() - {"reconstructions.png"}:  # may have been drawn anew by another test
        with Image.open(pictures / name) as picture:
            assert picture.tobytes() == before[name]


@pytest.mark.parametrize("command", ["sample --count 4", "reconstruct --count 2", "plot"])
def test_looking_at_a_run_changes_nothing_but_its_pictures(folder, command):
    def kept():
        files = (path for path in (folder / "run").rglob("*") if path.is_file() and path.suffix != ".png")
        return {str(path): path.read_bytes() for path in files}

    before = kept()
    assert main([*command.split(), str(folder / "run")]) == 0
    assert kept() == before


def test_data_that_moved(folder, tmp_path, capsys):
    """A data root given later is used; here the run's data are a path, which has none."""
    assert main(["sample", str(folder / "run"), "--count", "2", "--data-root", str(tmp_path)]) == 0
    assert Run.open(folder / "run").config.data_root is None


# ---- the forms of options


def test_print_config_is_a_configuration(folder, capsys, tmp_path):
    options = ["--latent_dim", "3", "--hidden", "[5, 4]", "--epochs", "1", "--kl-warmup", "0.5", "--patience", "2"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *options, "--print_config"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["hidden"] == [5, 4]
    (tmp_path / "mine.yaml").write_text(text)
    given = ["--config", str(tmp_path / "mine.yaml"), "--data", str(folder / "grey.npy"), "--batch-size", "9"]
    assert main(["train", *given, "--out", str(tmp_path / "run")]) == 0
    config = Run.open(tmp_path / "run").config
    assert (config.latent_dim, config.hidden, config.epochs, config.kl_warmup, config.patience) == (
        3,
        [5, 4],
        1,
        0.5,
        2,
    )
    assert config.batch_size == 9


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 7\nbatch_size: 5\n")
    _, options = parse(["train", "--config", str(tmp_path / "mine.yaml"), "--epochs", "2"], COMMANDS)
    assert options == TrainOptions(epochs=2, batch_size=5)


@pytest.mark.parametrize(
    "words", [["--data-root", "a-b"], ["--data_root", "a-b"], ["--data-root=a-b"], ["--data_root=a-b"]]
)
def test_options_take_dashes_and_underscores_and_values_keep_theirs(words, monkeypatch):
    (options,) = received("train", [*words, "--batch-size", "4"], monkeypatch)
    assert (options.data_root, options.batch_size) == ("a-b", 4)
    assert options == TrainOptions(data_root="a-b", batch_size=4)


def received(name, words, monkeypatch):
    """What the function of a command is called with."""
    seen = []
    row = replace(COMMANDS[name], run=lambda options, console: seen.append(options) or 0)
    monkeypatch.setitem(COMMANDS, name, row)
    assert main([name, *words]) == 0
    return seen


@pytest.mark.parametrize(("words", "epochs"), [([], 3), (["--epochs", "3"], 3), (["--epochs", "20"], 20)])
def test_a_resumed_run_has_its_own_configuration_as_defaults(folder, words, epochs, monkeypatch):
    """20 is the default of a new run: given, it counts, and otherwise the run's 3 stay."""
    (options,) = received("train", ["--resume", str(folder / "run"), *words], monkeypatch)
    ran = Run.open(folder / "run").config
    assert options == TrainOptions(**{**asdict(ran), "epochs": epochs}, resume=str(folder / "run"))
    assert (ran.seed, ran.latent_dim, ran.learning_rate) == (1, 2, 0.01)


def test_an_equal_value_is_no_change_on_resume(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    same = ["--latent_dim", "2", "--hidden", "[7]", "--learning_rate", "0.01", "--data", str(folder / "grey.npy")]
    assert main(["train", "--resume", str(tmp_path / "run"), *same, "--epochs", "4"]) == 0
    assert Run.open(tmp_path / "run").config.epochs == 4


def test_fewer_epochs_are_refused_on_resume(folder, capsys):
    assert main(["train", "--resume", str(folder / "run"), "--epochs", "2"]) == 2
    assert "Expected at least 3 epochs; got 2. Try --epochs 3." in capsys.readouterr().err


def test_a_file_of_options_counts_on_resume(folder, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("epochs: 7\nlatent_dim: 5\n")
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--resume", str(folder / "run")]) == 2
    assert "got latent_dim 5 instead of 2" in capsys.readouterr().err


def test_a_comparison_on_a_run_has_its_configuration_as_defaults(folder, monkeypatch):
    words = ["--estimators", "stl", "--run", str(folder / "run")]
    (options,) = received("compare", [*words, "--learning_rate", "0.5"], monkeypatch)
    assert (options.latent_dim, options.hidden, options.seed, options.batch_size) == (2, [7], 1, 16)
    assert (options.learning_rate, options.epochs) == (0.5, RunConfig().epochs)
    assert options.device == "auto"  # where a run was trained is not where it is compared


def test_a_comparison_on_a_run_refuses_another_program(folder, capsys):
    words = ["--estimators", "stl", "--run", str(folder / "run"), "--device", "cpu"]
    assert main(["compare", *words, "--latent_dim", "4"]) == 2
    expected = "the program and the data of the run; got latent_dim 4 instead of 2. Try leaving out --latent_dim."
    assert expected in capsys.readouterr().err


def test_words_name_the_fields_of_one_dataclass_per_command():
    """No default is typed twice: what a bare command parses to is its dataclass with its own defaults."""
    required = {"compare": ["--estimators", "stl"], "evaluate": ["x"], "sample": ["x"], "reconstruct": ["x"]}
    for name, command in COMMANDS.items():
        words = required.get(name, ["x"] if name == "plot" else [])
        found, options = parse([name, *words], COMMANDS)
        assert found is command
        expected = command.options(**{"estimators": "stl"} if name == "compare" else {"run": "x"} if words else {})
        assert options == expected


@dataclass(frozen=True)
class CountOptions:
    """Count up.

    Args:
        start: the first number.
        steps: how many numbers.
        backwards: count down.
    """

    start: int
    steps: PositiveInt = 3
    backwards: bool = False


def count(options, console):
    console.print(*range(options.start, options.start + options.steps)[:: -1 if options.backwards else 1])
    return 0


def test_a_new_command_is_a_dataclass_a_function_and_a_row(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "count", Command(CountOptions, count, "count up"))
    assert main(["count", "5", "--steps", "2"]) == 0
    assert main(["count", "5", "--backwards"]) == 0
    assert main(["count", "5", "--backwards", "false", "--steps=1"]) == 0
    assert capsys.readouterr().out == "5 6\n7 6 5\n5\n"
    assert main(["count", "5", "--steps", "0"]) == 2
    assert "Expected steps of at least 1; got 0. Try --steps 1\n" in capsys.readouterr().err
    assert main(["cuont"]) == 2
    assert "Try count\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["count", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Count up." in shown
    assert "how many numbers. (type: PositiveInt, default: 3)" in shown


def test_help_of_evaluate_names_every_part(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    assert all(part in shown for part in PARTS)


def test_a_class_by_its_import_path(folder, tmp_path):
    options = ["--model", "pyro_vae.VAE", "--model_args", "{latent_dim: 4, hidden: [3]}", "--epochs", "1"]
    data = ["--data", str(folder / "grey.npy"), "--batch_size", "16", "--device", "cpu"]
    assert main(["train", *data, *options, "--out", str(tmp_path / "run")]) == 0
    assert Run.open(tmp_path / "run").load_checkpoint()["program"]["decoder.layers.0.weight"].shape == (3, 4)


def test_the_default_folder_is_named_after_the_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--latent_dim", "3", "--hidden", "[3]", "--epochs", "1", "--batch_size", "16"]
    assert main(["train", "--data", str(folder / "grey.npy"), *options]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("grey-20")
    assert (run / "result.json").exists()


def test_from_the_command_to_fit_there_are_two_frames_of_ours(folder, tmp_path, monkeypatch):
    seen = []

    def stopped(*arguments, **keywords):
        own = [frame for frame in traceback.extract_stack() if str(PACKAGE) in frame.filename]
        seen.append([frame.name for frame in own])
        raise InputError("far enough")

    monkeypatch.setattr(commands, "fit", stopped)
    assert main(["train", "--data", str(folder / "grey.npy"), "--out", str(tmp_path / "run")]) == 2
    assert seen == [["main", "train"]]


# ---- what is printed


def test_training_says_what_it_does_and_how_good_it_is(folder, capsys, tmp_path):
    options = ["--latent_dim", "3", "--hidden", "[3]", "--epochs", "2", "--batch_size", "16", "--kl_warmup", "1"]
    assert main(["train", "--data", str(folder / "grey.npy"), *options, "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())["test_bound"]
    assert "48 train, 6 validation, 6 test images of 5x4, split by seed 0, binarize dynamic" in out
    assert "epoch   1   objective -" in out
    assert "epoch   2   objective -" in out
    bound = Estimate(result["value"], result["standard_error"])
    assert f"test bound {bound} nats per image (6 images" in out
    assert err == ""


def test_images_that_cannot_be_drawn_train_all_the_same(tmp_path, capsys):
    pixels = np.random.default_rng(0).random((40, 4, 4, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", pixels)
    argv = ["train", "--data", str(tmp_path / "x.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main([*argv, "--hidden", "[4]", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "test bound" in printed
    assert "left out  samples.png: Expected images (n, H, W) or (n, 1 or 3, H, W)" in printed


@pytest.mark.parametrize(("epochs", "lines"), [(5, 5), (20, 20), (200, 21)])
def test_a_training_off_a_terminal_prints_about_twenty_lines(epochs, lines, folder, capsys, tmp_path):
    options = ["--latent_dim", "2", "--hidden", "[3]", "--epochs", str(epochs), "--batch_size", "48"]
    argv = ["train", "--data", str(folder / "grey.npy"), *options, "--engine", "svi", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out.splitlines()
    shown = [int(line.split()[1]) for line in out if line.startswith("epoch ")]
    assert len(shown) == lines
    assert (shown[0], shown[-1]) == (1, epochs)
    assert len(out) <= lines + 12
    assert len(Run.open(tmp_path / "run").load_checkpoint()["history"]) == epochs


def test_epochs_without_a_terminal_are_never_many():
    for epochs in range(1, 500):
        shown = [epoch for epoch in range(1, epochs + 1) if is_reported(epoch, epochs)]
        assert min(epochs, 10) <= len(shown) <= 22
        assert {1, epochs} <= set(shown)


def test_on_a_terminal_there_is_a_line_per_epoch(folder, tmp_path):
    options = {"latent_dim": 2, "hidden": [3], "epochs": 60, "batch_size": 48, "engine": "svi", "device": "cpu"}
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    assert train(TrainOptions(data=str(folder / "grey.npy"), **options, out=str(tmp_path / "run")), console) == 0
    shown = re.findall(r"epoch +(\d+) +objective", console.file.getvalue())
    assert set(map(int, shown)) == set(range(1, 61))


@pytest.mark.parametrize("most", [2000, 120])
def test_draws_at_once_bounds_the_file_of_draws_too(most, folder, tmp_path, monkeypatch):
    scored = []

    def counted(program, x, num_particles, **how):
        scored.append(num_particles * len(x))
        return draw_particles(program, x, num_particles, **how)

    monkeypatch.setattr(inference_data, "draw_particles", counted)
    options = ["--only", "bounds", "--iwae", "[2]", "--device", "cpu", "--draws_at_once", str(most)]
    assert main(["evaluate", str(folder / "run"), *options, "--netcdf", str(tmp_path / "x.nc")]) == 0
    assert max(scored) == 6 * (most // 6)
    assert sum(scored) == 6 * 1000


# ---- hints


NAMES = {"hidden", "epochs", "engine", "likelihood", "model_args", "out", "seed", "num_particles", "data"}


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("epochs=1", "--epochs 1"),
        ("hidden=(400,)", "--hidden '[400]'"),
        ("hidden=[400, 200]", "--hidden '[400, 200]'"),
        ("engine='svi'", "--engine svi"),
        ('engine="compiled:inductor=False"', "--engine compiled:inductor=False"),
        ("out='a b'", "--out 'a b'"),
        ("likelihood='gaussian:scale=0.1', or epochs=3", "--likelihood gaussian:scale=0.1, or --epochs 3"),
        ("model_args={'depth': 2}", """--model_args '{"depth": 2}'"""),
        ("seed=None", "--seed null"),
        ("model_args={...}", "--model_args {...}"),
        ("hidden=(...)", "--hidden (...)"),
        ("hidden=[400, ...]", "--hidden [400, ...]"),
        ("seed=b'1'", "--seed b'1'"),
        ("epochs=1e400", "--epochs 1e400"),
        ("epochs=", "epochs="),
        ("hidden=(400", "--hidden (400"),
        ("a text such as 'adam:epochs=3'", "a text such as 'adam:epochs=3'"),
        ("iwae:num_particles=5", "iwae:num_particles=5"),
        ("a smaller epochs", "a smaller epochs"),
        ("draws=30", "draws=30"),  # no option of this command
        ("my_epochs=30", "my_epochs=30"),
        ("more epochs", "more epochs"),
    ],
)
def test_hints_in_python_become_options(python, words):
    error = InputError("seed=1 and epochs=2", "hidden=(3,). Try data=4", python)
    expected = f"Expected seed=1 and epochs=2; got hidden=(3,). Try data=4. Try {words}."
    assert on_the_command_line(str(error), NAMES) == expected
    assert on_the_command_line(str(error), set()) == str(error)


def test_a_message_without_a_hint_stays():
    assert on_the_command_line(str(InputError("epochs=3 and seed=4")), NAMES) == "epochs=3 and seed=4"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train --data digits --hidden [0]", "Try --hidden '[400]'."),
        ("train --data digits --device gpu", "Try --device auto."),
        ("evaluate RUN --seed -1", "Try --seed 0."),
        ("evaluate RUN --iwae []", "Try --iwae '[5, 50]'."),
        ("evaluate RUN --num_particles 2", "Try --num_particles 30."),
    ],
)
def test_errors_of_the_library_name_options(words, hint, folder, capsys):
    assert main([word.replace("RUN", str(folder / "run")) for word in words.split()]) == 2
    assert capsys.readouterr().err.rstrip().endswith(hint)


def test_numbers_that_are_not_finite_name_options_too(folder, tmp_path, capsys):
    options = ["--latent_dim", "2", "--hidden", "[3]", "--epochs", "9", "--engine", "svi", "--device", "cpu"]
    argv = ["train", "--data", str(folder / "grey.npy"), *options, "--learning_rate", "1e30", "--batch_size", "48"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 1
    assert "--clip_norm 100, or a likelihood" in capsys.readouterr().err


def test_early_stopping_is_said(folder, capsys, tmp_path):
    options = ["--latent_dim", "2", "--hidden", "[3]", "--epochs", "50", "--batch_size", "48", "--patience", "1"]
    data = ["--data", str(folder / "grey.npy"), "--learning_rate", "0.3"]
    assert main(["train", *data, *options, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["epochs"] < 50
    assert result["stopped"] == "no better held-out bound for 1 epochs"
    assert f"Stopped after epoch {result['epochs']}: no better held-out bound for 1 epochs." in capsys.readouterr().out


def test_check_writes_what_it_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "crosscheck", lambda devices, progress: [])
    assert main(["check", "--device", "cpu", "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["passed"] is True
    assert "all 0 comparisons agree" in capsys.readouterr().out


def test_interruption_by_the_keyboard_elsewhere_is_status_130(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], run=interrupted))
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "pyro-vae: interrupted\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"{pyro_vae.__version__}\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "check", "sample", "reconstruct", "plot"))


def test_runs_as_a_module(tmp_path):
    """The only test that starts ``python -m pyro_vae`` itself: status, stdout and stderr of a process."""
    command = [sys.executable, "-m", "pyro_vae", "sample", "nothing"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyro-vae: error: Expected a run folder; got 'nothing', which does not exist.")
    assert len(done.stderr.splitlines()) == 1


# ---- programs of which not everything is available

HEAD = """
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(20, 4), nn.Linear(2, 20)

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            self.observe(x.reshape(-1, 20), self.decoder(z))

    def guide(self, x):
        pyro.module("program", self)
        loc, log_scale = self.encoder(x.reshape(-1, 20)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
"""
RESHAPED = """
    def observe(self, x, logits):
        pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)
"""
FORCED = """
    def observe(self, x, logits):
        before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
        pyro.sample("obs", dist.Bernoulli(logits=logits + before).to_event(1), obs=x)
"""


def trained(folder, tmp_path, body):
    (tmp_path / "mine.py").write_text(HEAD + body)
    argv = ["train", "--data", str(folder / "grey.npy"), "--model", f"{tmp_path / 'mine.py'}:Program", "--epochs", "1"]
    run = str(tmp_path / "run")
    assert main([*argv, "--batch_size", "16", "--engine", "svi", "--device", "cpu", "--out", run]) == 0
    return run


def test_a_program_that_observes_flat_images_has_its_pictures(folder, tmp_path, capsys):
    """Pyro's first example: ``obs=x.reshape(-1, 784)``."""
    run = trained(folder, tmp_path, RESHAPED)
    assert "left out" not in capsys.readouterr().out
    for command in ("sample", "reconstruct", "plot"):
        arrays = [] if command == "plot" else ["--arrays", str(tmp_path / "x.npz")]
        assert main([command, run, *arrays]) == 0
        assert arrays == [] or np.load(tmp_path / "x.npz")["mean"].shape[1:] == (5, 4)
    assert main(["evaluate", run, "--only", "bounds,pictures,calibration", "--simulations", "100"]) == 0


def test_a_program_that_looks_at_x_is_trained_and_says_what_is_left_out(folder, tmp_path, capsys):
    run = trained(folder, tmp_path, FORCED)
    out = capsys.readouterr().out
    assert "test bound" in out
    assert "left out  samples.png: Expected a model that does not look at x" in out
    for command in ("sample", "reconstruct"):
        assert main([command, run]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "does not look at x, to simulate from it; got another distribution at site 'obs'" in error
    assert main(["plot", run]) == 0
    assert "curves.png" in capsys.readouterr().out
    file = tmp_path / "draws.nc"
    assert main(["evaluate", run, "--only", "bounds", "--netcdf", str(file)]) == 0
    assert "left out  posterior_predictive: Expected a model" in capsys.readouterr().out
    assert file.exists()
