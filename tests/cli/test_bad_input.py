"""Whatever a user gets wrong is one line on stderr that says what was expected, got and what to try; status 2."""

import io
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from pyro_vae.cli import check
from pyro_vae.cli.main import main

FUNCTIONS = """
import pyro
import pyro.distributions as dist
import torch


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z[..., None, None] + 0 * x).to_event(2), obs=x)


def guide(x):
    weight = pyro.param("weight", torch.tensor(0.5))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(weight * x[..., 0, 0], 0.7))


number = 3
"""
FILES = {
    "functions.py": FUNCTIONS,
    "syntax.py": "def model(x:\n    pass\n",
    "neither.py": "number = 3\n",
    "raises.py": 'raise RuntimeError("line one\\nline two")\n',
    "exits.py": "import sys\nsys.exit(3)\n",
    "imports.py": "import no_such_module_anywhere\n",
    "half.py": FUNCTIONS.replace("def guide", "def guided"),
    "unplated.py": FUNCTIONS.replace('with pyro.plate("data", len(x), dim=-1):', "if True:"),
    "narrow.py": FUNCTIONS.replace("z[..., None, None] + 0 * x", "z[..., None, None].expand(x.shape)"),
    "unknown.yaml": "epochs: 1\nbatch_siz: 3\n",
    "unclosed.yaml": "epochs: [1\n",
    "list.yaml": "- 1\n",
    "word.yaml": "epochs: many\n",
    "bytes.yaml": b"\x00\x93\xff",
    "empty.npy": b"",
    "text.npy": b"not an array at all",
    "data.txt": "1 2 3",
}


def write_arrays(folder):
    grey = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    unit = grey / 255.0

    def spoiled(value):
        array = unit.copy()
        array[3, 2, 1] = value
        return array

    arrays = {
        "grey": grey,
        "floats": unit * 0.9,
        "int64": grey.astype(np.int64),
        "complex": grey.astype(complex),
        "strings": grey.astype(str),
        "vector": grey[:, 0, 0],
        "none": grey[:0],
        "one": grey[:1],
        "two": grey[:2],
        "nan": spoiled(np.nan),
        "inf": spoiled(-np.inf),
        "negative": spoiled(-0.25),
        "above": spoiled(17.0),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    whole = (folder / "grey.npy").read_bytes()
    (folder / "short.npy").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "short.npz", train=grey)
    whole = (folder / "short.npz").read_bytes()
    (folder / "short.npz").write_bytes(whole[: len(whole) // 2])
    torch.save(torch.from_numpy(grey), folder / "short.pt")
    whole = (folder / "short.pt").read_bytes()
    (folder / "short.pt").write_bytes(whole[: len(whole) // 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_arrays(folder)
    (folder / "pictureless").mkdir()
    (folder / "stranger").mkdir()
    (folder / "stranger" / "thesis.tex").write_text("irreplaceable")
    argv = ["train", "--data", str(folder / "grey.npy"), "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
    assert main([*argv, "--latent_dim", "3", "--hidden", "[5]", "--out", str(folder / "run")]) == 0
    model = ["--model", str(folder / "functions.py"), "--out", str(folder / "functions")]
    assert main([*argv, *model]) == 0
    return folder


def listing(folder):
    """Everything below a folder, with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def assert_refused(argv, message, capsys, monkeypatch, folder, status=2):
    """Run in the folder; assert the status, the one line, and that nothing was made or changed."""
    monkeypatch.chdir(folder)
    before = listing(folder)
    capsys.readouterr()
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert err.startswith("pyro-vae: error: ")
    assert re.search(message, err), err
    assert listing(folder) == before


TRAIN = [
    # ---- sizes and numbers
    ("--epochs 0", r"epochs as a whole number of at least 1; got 0\. Try --epochs 1"),
    ("--epochs -2", "epochs as a whole number of at least 1; got -2"),
    ("--epochs abc", "Expected a whole number for --epochs; got abc. Try pyro-vae train --help"),
    ("--epochs 1.5", "Expected a whole number for --epochs; got 1.5"),
    ("--batch_size 0", "batch_size as a whole number of at least 1; got 0"),
    ("--batch_size -3", "batch_size as a whole number of at least 1; got -3"),
    ("--batch_size 17", r"a batch_size of at most 16, the number of examples; got 17\. Try --batch_size 16"),
    ("--latent_dim 0", "a latent_dim that is a whole number of at least 1; got 0"),
    ("--latent_dim -1", "a latent_dim that is a whole number of at least 1; got -1"),
    ("--hidden [0]", r"hidden as a sequence of whole numbers above 0; got \[0\]"),
    ("--hidden [8,-8]", r"hidden as a sequence of whole numbers above 0; got \[8, -8\]"),
    ("--hidden 400", r"a list of whole numbers such as '\[400, 200\]' for --hidden; got 400"),
    ("--hidden [a]", "a list of whole numbers .* for --hidden; got"),
    ("--learning_rate 0", "learning_rate as a finite number above 0; got 0.0"),
    ("--learning_rate -0.1", "learning_rate as a finite number above 0; got -0.1"),
    ("--learning_rate .nan", "learning_rate as a finite number above 0; got nan"),
    ("--learning_rate .inf", "learning_rate as a finite number above 0; got inf"),
    ("--learning_rate fast", "Expected a number for --learning_rate; got fast"),
    ("--clip_norm 0", "clip_norm as a finite number above 0; got 0.0"),
    ("--clip_norm -1", "clip_norm as a finite number above 0; got -1.0"),
    ("--kl_warmup -1", "kl_warmup as a finite number of epochs, 0 or more; got -1.0"),
    ("--patience 0", "patience as a whole number of at least 1; got 0"),
    ("--eval_particles 0", "eval_particles as a whole number of at least 1; got 0"),
    ("--seed -1", "a seed from 0 to .*; got -1"),
    ("--seed 9223372036854775808", "a seed from 0 to .*; got 9223372036854775808"),
    # ---- names; the nearest is suggested
    ("--lerning_rate 1", "nrecognized arguments: --lerning_rate 1. Try --learning_rate$"),
    ("--lerning-rate=1", "nrecognized arguments: --lerning_rate=1. Try --learning_rate$"),
    ("--qqq", "nrecognized arguments: --qqq. Try pyro-vae train --help"),
    ("surplus", "nrecognized arguments: surplus. Try pyro-vae train --help"),
    ("--data", "--data: expected one argument. Try pyro-vae train --help"),
    ("--estimator trace_elb", "an estimator, one of .*; got 'trace_elb'. Try 'trace_elbo'"),
    ("--optimizer adagrat", "an optimizer, one of .*; got 'adagrat'. Try 'adagrad'"),
    ("--schedule cosin", "a schedule, one of .*; got 'cosin'. Try 'cosine'"),
    ("--activation rel", "an activation, one of .*; got 'rel'. Try 'relu'"),
    ("--likelihood bernouli", "a likelihood, one of .*; got 'bernouli'. Try 'bernoulli'"),
    ("--binarize dynamc", "a binarization, one of .*; got 'dynamc'. Try 'dynamic'"),
    ("--engine svj", "an engine, one of .*; got 'svj'. Try 'svi'"),
    ("--data minst", "a data set, one of .*; got 'minst'. Try 'mnist'"),
    ("--data digit", "a data set, one of .*; got 'digit'. Try 'digits'"),
    ("--device gpu", "a device, one of auto, cpu, cuda; got 'gpu'. Try --device auto"),
    ("--device meta", "a device, one of auto, cpu, cuda; got 'meta'"),
    # ---- values with arguments
    ("--estimator trace_elbo:num_particles", "Expected name:key=value,key=value; got 'trace_elbo:num_particles'"),
    ("--estimator trace_elbo:num_particles=", "Expected name:key=value,key=value; got"),
    ("--estimator trace_elbo:num_particles=[", r"a number or a word; got '\['"),
    ("--estimator trace_elbo:num_particles=0", "a num_particles that is a whole number of at least 1; got 0"),
    ("--estimator trace_elbo:num_particles=many", "a num_particles that is a whole number of at least 1; got .?many"),
    (
        "--estimator trace_elbo:particles=3",
        "an argument of estimator trace_elbo, one of num_particles, vectorize_particles; got 'particles'",
    ),
    ("--optimizer adam:epsilon=1", "an argument of optimizer adam, one of betas, eps, .*; got 'epsilon'"),
    ("--optimizer adam:lr=3", "got 'lr'. Try adam alone for its defaults .lr is set separately"),
    ("--optimizer adam:eps=-3", "arguments that optimizer adam takes; got 'adam:eps=-3': Invalid epsilon"),
    ("--optimizer sgd:nesterov=true", "got 'sgd:nesterov=true': Nesterov momentum requires"),
    ("--schedule cosine:final=2", "a final from 0 to 1; got 2"),
    ("--schedule multistep:every=0", "every as a whole number of epochs, at least 1; got 0"),
    ("--likelihood gaussian:scale=0", "a finite scale above 0; got 0"),
    ("--likelihood gaussian:scale=nan", "a finite scale above 0; got nan"),
    ("--likelihood gaussian:scal=1", "an argument of likelihood gaussian, one of scale, mean_link; got 'scal'"),
    ("--likelihood gaussian:mean_link=sigmod", "got 'sigmod'. Try 'sigmoid'"),
    # ---- data
    ("--data ./nothing.npy", "a file or folder of images; got '.*nothing.npy', which does not exist"),
    ("--data ./nothing/at/all", "a file or folder of images; got '.*', which does not exist"),
    ("--data empty.npy", "got an empty file. Try a fresh copy"),
    ("--data text.npy", "an array without pickled objects in .*text.npy; got"),
    ("--data pickled.npy", "an array without pickled objects in .*pickled.npy; got"),
    ("--data short.npy", "an array without pickled objects in .*short.npy; got"),
    ("--data short.npz", "in .*short.npz; got"),
    ("--data short.pt", "in .*short.pt; got"),
    ("--data data.txt", r"a folder of pictures or a file \.npy, \.npz, \.pt; got '.*data.txt'"),
    ("--data pictureless", "pictures .* in .*pictureless; got none"),
    ("--data int64.npy", "uint8, bool or floating pixels in .*; got dtype int64"),
    ("--data complex.npy", "uint8, bool or floating pixels in .*; got dtype complex128"),
    ("--data strings.npy", "uint8, bool or floating pixels in .*; got dtype <U3"),
    ("--data vector.npy", r"images of shape \(N, \.\.\.\) in .*; got shape \(20,\)"),
    ("--data none.npy", r"at least one image in .*; got shape \(0, 4, 4\)"),
    ("--data one.npy", "at least 3 images to split; got 1"),
    ("--data two.npy", "at least 3 images to split; got 2"),
    ("--data nan.npy", "finite pixels in .*nan.npy; got NaN or infinity"),
    ("--data inf.npy", "finite pixels in .*inf.npy; got NaN or infinity"),
    ("--data negative.npy", "floating pixels from 0 to 1 in .*; got -0.25 to"),
    ("--data above.npy", "floating pixels from 0 to 1 in .*; got 0 to 17"),
    ("--data frey-face --data_root pictureless", "no such files in .*pictureless.* Try downloading frey-face from"),
    (
        "--binarize none --likelihood bernoulli",
        "binary pixels: a Bernoulli gives grey levels no probability, .*; got values other than 0 and 1 at site 'x'. "
        "Try --binarize dynamic, or --likelihood learned_gaussian for grey pixels",
    ),
    ("--data floats.npy --binarize none --likelihood bernoulli", "binary pixels: a Bernoulli"),
    # ---- programs
    ("--model nothing.py", "a Python file; got '.*nothing.py', which does not exist"),
    ("--model nothing.at.all", "'vae', FILE.py, FILE.py:NAME or an import path; got 'nothing.at.all'"),
    ("--model functions.py:nothing", "'nothing' in .*; got none, asked for as '.*functions.py:nothing'"),
    ("--model functions.py:number", "a program: an nn.Module with model.x. and guide.x., .*; got 3"),
    ("--model math.floor", "a program: an nn.Module with model.x. and guide.x., .*; got <built-in function floor>"),
    ("--model math.flor", "'flor' in math; got none"),
    ("--model ..x", "an import path; got '..x'"),
    ("--model syntax.py", "a file that runs, .*syntax.py; got SyntaxError: .* line 1"),
    ("--model raises.py", "a file that runs, .*raises.py; got RuntimeError: line one line two. Try python"),
    ("--model exits.py", "a file that runs, .*exits.py; got SystemExit: 3"),
    ("--model imports.py", "a file that runs, .*imports.py; got ModuleNotFoundError: .*no_such_module_anywhere"),
    ("--model neither.py", "a program: an nn.Module with model.x. and guide.x., or a pair of functions; got <module"),
    ("--model half.py", "a program: an nn.Module with model.x. and guide.x., or a pair of functions; got <module"),
    ("--model unplated.py", "a plate of the 16 examples that all sites share, .*; got site 'z' outside it"),
    (
        "--model narrow.py --eval_particles 2",
        "a program that broadcasts .*; got RuntimeError at .*narrow.py:10: expand",
    ),
    ("--model functions.py --latent_dim 3", "no options for the functions in .*functions.py; got {'latent_dim': 3}"),
    ("--model functions.py --model_args {depth:\xa02}", "no options for the functions in .*; got {'depth': 2}"),
    ("--model_args {depth:\xa02}", "arguments that vae takes .event_shape, .*; got an unexpected .*'depth'"),
    ("--model_args 3", r"Expected a mapping such as '\{depth: 2\}' for --model_args; got 3"),
    # ---- files of options
    ("--config nothing.yaml", "config.*: File does not exist: .*nothing.yaml"),
    ("--config stranger", "config.*: Path is not a file"),
    ("--config unknown.yaml", "does not accept option 'batch_siz'. Try batch_size$"),
    ("--config unclosed.yaml", "Problems parsing config"),
    ("--config list.yaml", "Unexpected config: - 1"),
    ("--config word.yaml", "Expected a whole number for --epochs; got many"),
    ("--config bytes.yaml", "a --config in YAML; got 'utf-8' codec can't decode"),
    # ---- the run folder
    ("--out run", "a new run folder; got 'run', which exists. Try --overwrite true, --resume run, or another folder"),
    ("--out stranger", "a new run folder; got 'stranger', which exists. Try another folder"),
    ("--out stranger --overwrite", "a new run folder; got 'stranger', which exists. Try another folder"),
    ("--out functions.py --overwrite", "a new run folder; got 'functions.py', which exists. Try another folder"),
    ("--out=", "a new run folder; got '.', which exists"),
    ("--out functions.py/below", "a folder that can be written; got .*functions.py, which cannot. Try another folder"),
]


@pytest.mark.parametrize(("options", "message"), TRAIN)
def test_train_refuses(options, message, folder, capsys, monkeypatch):
    """A blank within a word is written as a no-break space."""
    words = [word.replace("\xa0", " ") for word in options.split(" ")]
    usual = {"--data": "grey.npy", "--epochs": "1", "--batch_size": "8", "--out": "new", "--device": "cpu"}
    given = {word.partition("=")[0] for word in words}
    if "--config" in given:
        usual.pop("--epochs")
        usual.pop("--batch_size")
    rest = [word for name, value in usual.items() if name not in given for word in (name, value)]
    assert_refused(["train", *rest, *words], message, capsys, monkeypatch, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--resume nothing", "a run folder; got 'nothing', which does not exist"),
        ("--resume=", "a run folder; got '.', without config.yaml, info.json, checkpoints"),
        ("--resume stranger", "a run folder; got 'stranger', without config.yaml, info.json, checkpoints"),
        ("--resume functions.py", "a run folder; got 'functions.py'"),
        (
            "--resume run --batch_size 4",
            "only epochs, max_steps, device, data_root changed when a run resumes; got batch_size 4 instead of 8",
        ),
        (
            "--resume run --learning_rate 1",
            r"got learning_rate 1\.0 instead of 0\.001. Try a new run with --learning_rate 1\.0",
        ),
        ("--resume run --model functions.py", "changed when a run resumes; got model"),
        ("--resume run --epochs 0", "at least 1( epochs)?; got 0"),
        ("--resume run --out other", "--resume RUN by itself; got --out or --overwrite beside it"),
        ("--resume run --overwrite", "--resume RUN by itself; got --out or --overwrite beside it"),
        ("--resume", "--resume: expected one argument"),
    ],
)
def test_resume_refuses(options, message, folder, capsys, monkeypatch):
    assert_refused(["train", *options.split()], message, capsys, monkeypatch, folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "subcommand"),
        ("trian", "invalid choice: 'trian'.* Try train$"),
        ("--vresion", "nrecognized arguments: --vresion. Try --version$"),
        ("sample", "Expected run for sample; got none. Try pyro-vae sample --help"),
        ("sample nothing", "a run folder; got 'nothing', which does not exist"),
        ("sample stranger", "a run folder; got 'stranger', without config.yaml"),
        ("sample run --count 0", "a count of at least 1; got 0"),
        ("sample run --count -4", "a count of at least 1; got -4"),
        ("sample run --count few", "a whole number for --count; got few. Try pyro-vae sample --help"),
        ("sample run --seed -1", "a seed that is a whole number of at least 0; got -1"),
        ("sample run --checkpoint bset", "a checkpoint, one of best, last; got 'bset'. Try 'best'"),
        ("sample run --device gpu", "a device, one of auto, cpu, cuda; got 'gpu'"),
        ("sample run --coun 3", "nrecognized arguments: --coun 3. Try --count$"),
        ("sample run --aray x", "nrecognized arguments: --aray x. Try --arrays$"),
        (
            "sample run --arrays functions.py/x.npz",
            "a file that can be written; got functions.py/x.npz: Not a directory",
        ),
        ("sample run --arrays stranger", "a file that can be written; got stranger: Is a directory"),
        ("sample run --arrays nowhere/x.npz", "a file that can be written; got nowhere/x.npz: No such file"),
        ("reconstruct run --count 3", "a count of at most 2, the test images; got 3. Try --count 2"),
        ("reconstruct run --count 0", "a count of at least 1; got 0"),
        ("reconstruct run --count 1.5", "Expected a whole number for --count; got 1.5. Try pyro-vae reconstruct"),
        ("sample run --count 0", r"Expected a count of at least 1; got 0\. Try --count 1$"),
        ("compare --estimators stl --batch 0", r"Expected a batch of at least 1; got 0\. Try --batch 1$"),
        ("compare --estimators stl --draws 0", r"Expected draws of at least 20; got 0\. Try --draws 20\.$"),
        ("compare --estimators stl --at [1,0]", r"got \[1, 0\]\. Try --at '\[0, 1000\]'\.$"),
        ("bench --threads 0", r"Expected threads of at least 1; got 0\. Try --threads 1$"),
        ("train --overwrite maybe", "Expected true or false for --overwrite; got maybe. Try pyro-vae train --help"),
        ("reconstruct run --count 1 --arrays nowhere/x.npz", "a file that can be written; got nowhere/x.npz"),
        ("plot stranger", "a run folder; got 'stranger', without config.yaml"),
        ("plot run --checkpoint bset", "a checkpoint, one of best, last; got 'bset'"),
    ],
)
def test_other_commands_refuse(words, message, folder, capsys, monkeypatch):
    assert_refused(words.split(), message, capsys, monkeypatch, folder)


@pytest.mark.parametrize("place", ["functions.py/x.json", "stranger"])
def test_json_to_a_place_that_cannot_be_written(place, folder, capsys, monkeypatch):
    monkeypatch.setattr(check, "crosscheck", lambda devices, progress: [])
    argv = ["check", "--device", "cpu", "--json", place]
    message = f"a file that can be written; got '{place}', which cannot. Try another path"
    assert_refused(argv, message, capsys, monkeypatch, folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "words", ["train --data grey.npy --device cuda", "sample run --device cuda", "check --device cuda"]
)
def test_cuda_asked_for_where_there_is_none(words, folder, capsys, monkeypatch):
    message = "a CUDA device; got a machine on which torch sees none. Try --device cpu"
    assert_refused(words.split(), message, capsys, monkeypatch, folder)


def test_a_folder_without_permission(folder, capsys, monkeypatch):
    """Permissions do not bind root, under whom tests may run: the answer of the system is put in."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    argv = ["train", "--data", "grey.npy", "--batch_size", "8", "--out", "new"]
    assert_refused(argv, "a folder that can be written; got .*, which cannot", capsys, monkeypatch, folder)


# ---- damaged runs


class Command:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (open, ("planted", "w"))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


DAMAGE = {
    "empty": (lambda whole: b"", "a whole checkpoint; got .*last.pt"),
    "one byte": (lambda whole: whole[:1], "a whole checkpoint; got .*last.pt"),
    "half": (lambda whole: whole[: len(whole) // 2], "a whole checkpoint; got .*last.pt"),
    "all but a byte": (lambda whole: whole[:-1], "a whole checkpoint; got .*last.pt"),
    "random": (lambda whole: np.random.default_rng(0).bytes(5000), "a whole checkpoint; got .*last.pt"),
    "random after the head": (lambda whole: whole[:100] + bytes(5000), "a whole checkpoint; got .*last.pt"),
    "text": (lambda whole: b"hello\n" * 50, "a whole checkpoint; got .*last.pt"),
    "plain pickle": (lambda whole: pickle.dumps({"format": 2}), "checkpoint.*got .*last.pt"),
    "hostile pickle": (lambda whole: pickle.dumps(Command()), "a whole checkpoint; got .*last.pt"),
    "hostile archive": (lambda whole: saved({"format": 2, "program": Command()}), "a whole checkpoint; got .*last.pt"),
    "another dictionary": (
        lambda whole: saved({"weight": torch.zeros(3)}),
        "a checkpoint of format 2; got another file",
    ),
    "no dictionary": (lambda whole: saved([1, 2]), "a checkpoint of format 2; got another file"),
    "no fingerprint": (lambda whole: saved({"format": 2}), "a checkpoint of format 2; got another file"),
    "later format": (lambda whole: saved({"format": 3, "fingerprint": "{}"}), "a checkpoint of format 2; got another"),
}


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of both runs, to be damaged."""
    for name in ("run", "functions"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["sample", "train --epochs 2 --resume"])
def test_damaged_checkpoints(damage, command, broken, capsys, monkeypatch):
    change, message = DAMAGE[damage]
    file = broken / "run" / "checkpoints" / "last.pt"
    file.write_bytes(change(file.read_bytes()))
    assert_refused([*command.split(), "run"], message, capsys, monkeypatch, broken)
    assert not (broken / "planted").exists()


def test_a_flipped_bit_is_found(broken, capsys, monkeypatch):
    file = broken / "run" / "checkpoints" / "last.pt"
    whole = bytearray(file.read_bytes())
    tensor = torch.load(file, weights_only=True)["program"]["decoder.layers.0.weight"]
    whole[whole.index(tensor.numpy().tobytes()) + 5] ^= 1
    file.write_bytes(bytes(whole))
    assert_refused(["sample", "run"], "a whole checkpoint; got .*last.pt", capsys, monkeypatch, broken)


def test_a_missing_checkpoint(broken, capsys, monkeypatch):
    (broken / "run" / "checkpoints" / "best.pt").unlink()
    message = "a checkpoint at .*best.pt; got none"
    assert_refused(["sample", "run", "--checkpoint", "best"], message, capsys, monkeypatch, broken)


@pytest.mark.parametrize("command", ["sample", "reconstruct --count 2", "plot", "train --epochs 2 --resume"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("latent_dim", 7, "a checkpoint of this run's configuration; got latent_dim 3 instead of 7"),
        ("batch_size", 4, "a checkpoint of this run's configuration; got batch_size 8 instead of 4"),
        ("seed", 1, "a checkpoint of this run's configuration; got seed 0 instead of 1"),
        ("colour", "blue", "options of pyro-vae train; got colour in .*config.yaml"),
    ],
)
def test_an_edited_configuration(command, option, value, message, broken, capsys, monkeypatch):
    file = broken / "run" / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), option: value}))
    assert_refused([*command.split(), "run"], message, capsys, monkeypatch, broken)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "word"])
def test_a_configuration_that_is_none(text, broken, capsys, monkeypatch):
    (broken / "run" / "config.yaml").write_text(text)
    message = "a configuration in YAML; got|options of pyro-vae train; got"
    assert_refused(["sample", "run"], message, capsys, monkeypatch, broken)


@pytest.mark.parametrize("command", ["sample", "train --epochs 2 --resume"])
def test_a_model_file_that_changed(command, folder, broken, capsys, monkeypatch):
    file = folder / "functions.py"
    original = file.read_text()
    try:
        file.write_text(original.replace("0.7", "0.8"))
        message = "a checkpoint of this run's configuration; got model file"
        assert_refused([*command.split(), "functions"], message, capsys, monkeypatch, broken)
    finally:
        file.write_text(original)


def test_estimator_that_refuses_the_program_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "discrete.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def model(x):\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        with pyro.poutine.scale(scale=0.5):\n"
        "            z = pyro.sample('z', dist.Bernoulli(0.5))\n"
        "        p = (0.2 + 0.5 * z)[..., None, None].expand(*z.shape, 8, 8)\n"
        "        pyro.sample('x', dist.Bernoulli(p).to_event(2), obs=x)\n"
        "def guide(x):\n"
        "    q = pyro.param('q', torch.tensor(0.5), constraint=dist.constraints.unit_interval)\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        pyro.sample('z', dist.Bernoulli(q))\n"
    )
    argv = ["train", "--model", str(tmp_path / "discrete.py"), "--epochs", "1", "--device", "cpu"]
    assert main([*argv, "--estimator", "dreg", "--out", str(tmp_path / "run")]) == 2
    assert "one scale for all sites, or one for all latents" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    text = (tmp_path / "discrete.py").read_text()
    (tmp_path / "discrete.py").write_text(text.replace("scale=0.5", "scale=1.0"))
    assert main([*argv, "--estimator", "dreg", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("command", ["check", "compare --estimators stl"])
def test_output_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu", "--json", "."]) == 2
    assert "Expected a file that can be written; got '.', which cannot" in capsys.readouterr().err
