"""Runs: the folder that holds a training run, written so that it can be killed at any instant."""

import hashlib
import inspect
import json
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile, ZipFile

import torch
import yaml

from pyro_vae import data as data_sets
from pyro_vae._version import __version__
from pyro_vae.data import DataSet, Images, is_path
from pyro_vae.devices import isolated_rng
from pyro_vae.errors import InputError
from pyro_vae.imports import locate
from pyro_vae.program import Program, as_program, load_parameters
from pyro_vae.vae import VAE

FORMAT = 1  # of checkpoints
PACKAGES = ("pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")
EXTENDABLE = ("epochs", "device", "data_root")  # what a resumed run may change
VAE_OPTIONS = ("latent_dim", "hidden", "likelihood", "activation")


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; its fields are the options of ``pyro-vae train``.

    Args:
        data: digits, mnist, fashion-mnist, frey-face, omniglot, binarized-mnist, caltech101-silhouettes, or a
            path to .npy, .npz, .pt or a folder of images.
        data_root: folder that holds the published data sets, or into which MNIST is downloaded; by
            default ./data.
        binarize: dynamic (a fresh Bernoulli draw each epoch), threshold (at one half) or none; a default that
            suits the data.
        model: vae, a Python file with model(x) and guide(x), FILE.py:NAME, or an import path.
        latent_dim: length of the latent vector; 20 by default.
        hidden: hidden units of the encoder, in reverse those of the decoder; [400] by default.
        likelihood: bernoulli, gaussian:scale=0.1 or learned_gaussian; bernoulli by default where pixels are
            binary, else learned_gaussian.
        activation: of the networks; relu by default.
        model_args: further arguments of a class of your own, as a mapping.
        estimator: a name with arguments, such as trace_elbo:num_particles=5.
        engine: svi.
        epochs: passes over the training data.
        batch_size: data in a step.
        optimizer: a torch optimiser with arguments, such as adam:eps=1e-4, adagrad, sgd:momentum=0.9.
        learning_rate: step of the optimiser; the loss is a sum over the batch.
        schedule: constant, cosine:final=0.1, exponential:gamma=0.99 or multistep:every=10.
        clip_norm: largest norm of the whole gradient; no limit by default.
        kl_warmup: epochs over which the KL's weight rises linearly to 1.
        patience: stop after this many epochs without a better held-out bound; never by default.
        eval_particles: draws a datum for held-out bounds.
        seed: fixes split, initial parameters, order, binarization and noise.
        device: auto (cuda where present), cpu or cuda.
    """

    data: str = "digits"
    data_root: str | None = None
    binarize: str | None = None
    model: str = "vae"
    latent_dim: int | None = None
    hidden: list[int] | None = None
    likelihood: str | None = None
    activation: str | None = None
    model_args: dict[str, Any] | None = None
    estimator: str = "trace_elbo"
    engine: str = "svi"
    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    clip_norm: float | None = None
    kl_warmup: float = 0.0
    patience: int | None = None
    eval_particles: int = 1
    seed: int = 0
    device: str = "auto"

    def absolute(self) -> "RunConfig":
        """Return the same options with every path absolute, so that a run can be continued from anywhere."""
        data = str(Path(self.data).expanduser().absolute()) if is_path(self.data) else self.data
        root = self.data_root and str(Path(self.data_root).expanduser().absolute())
        file, colon, name = self.model.partition(":")
        model = f"{Path(file).expanduser().absolute()}{colon}{name}" if file.endswith(".py") else self.model
        return replace(self, data=data, data_root=root, model=model)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of :func:`pyro_vae.fit` among the fields."""
        names = ("estimator", "engine", "epochs", "batch_size", "optimizer", "learning_rate", "schedule")
        more = ("clip_norm", "kl_warmup", "patience", "eval_particles", "seed")
        return {name: getattr(self, name) for name in names + more}

    def load_data(self) -> DataSet:
        """Load and split the data."""
        return data_sets.load(self.data, self.data_root, binarize=self.binarize, seed=self.seed)  # type: ignore[arg-type]

    def build_program(self, images: Images) -> object:
        """Build the program that ``model`` names for these images, with fresh parameters.

        Raises:
            InputError: nothing of that name, or options that it does not take.
        """
        options = {name: getattr(self, name) for name in VAE_OPTIONS if getattr(self, name) is not None}
        options |= self.model_args or {}
        target = VAE if self.model == "vae" else locate(self.model)
        if target is VAE:
            options.setdefault("likelihood", "bernoulli" if images.is_binary else "learned_gaussian")
        if not inspect.isclass(target) and not (inspect.isfunction(target)):
            if options:
                raise InputError(f"no options for the functions in {self.model}", options, "a class that takes them")
            return target
        return _construct(target, options, images, self.model)


def _construct(target: Any, options: dict[str, Any], images: Images, name: str) -> object:
    takes = inspect.signature(target).parameters
    if "event_shape" in takes:
        options = {"event_shape": tuple(images.event_shape), **options}
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        got = str(error).removeprefix("got ")
        raise InputError(f"arguments that {name} takes ({', '.join(takes)})", got, "--model_args") from None
    return target(**options)


class Run:
    """A run folder.

    ::

        config.yaml          every option; pyro-vae train --config makes the run again
        info.json            versions, machine, data and their splits
        metrics.jsonl        one JSON object a line
        tensorboard/         the same, for TensorBoard
        checkpoints/last.pt  all that a resumed run needs; best.pt: the best held-out bound so far
        pictures/*.png
        result.json          the final bounds
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self.metrics = path / "metrics.jsonl"
        self.pictures = path / "pictures"

    def create(self, data: DataSet, *, overwrite: bool = False) -> None:
        """Make the folder, whole or not at all.

        Raises:
            InputError: it exists, or cannot be written.
        """
        check_new(self.path, overwrite=overwrite)
        path = self.path.absolute()
        fresh = path.with_name(f".{path.name}.new")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            for name in ("checkpoints", "pictures"):
                (fresh / name).mkdir(parents=True)
            _write_yaml(fresh / "config.yaml", self.config)
            write_json(fresh / "info.json", describe_machine(data))
            if path.exists():
                shutil.rmtree(path)
            fresh.rename(path)
        except OSError as error:
            got = f"{self.path}: {error.strerror}"
            raise InputError("a folder that can be written", got, "another --out") from None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run folder.

        Raises:
            InputError: it does not exist, or is not one.
        """
        path = Path(path).expanduser()
        if not path.is_dir():
            raise InputError("a run folder", f"{str(path)!r}, which does not exist", "--out of an earlier train")
        missing = [name for name in ("config.yaml", "info.json", "checkpoints") if not (path / name).exists()]
        if missing:
            hint = "a folder made by pyro-vae train"
            raise InputError("a run folder", f"{str(path)!r}, without {', '.join(missing)}", hint)
        return cls(path, _read_config(path / "config.yaml"))

    def extended(self, changes: dict[str, Any]) -> Self:
        """Return the run with options changed that a resumed run may change; nothing is written.

        Raises:
            InputError: an option that a resumed run cannot change, or fewer epochs.
        """
        wanted = replace(self.config, **changes).absolute()
        for name, value in changes.items():
            if name not in EXTENDABLE and getattr(wanted, name) != getattr(self.config, name):
                raise InputError(
                    f"only {', '.join(EXTENDABLE)} changed on --resume",
                    f"{name} {value!r} instead of {getattr(self.config, name)!r}",
                    f"--config {self.path / 'config.yaml'} --{name} {value} --out NEW",
                )
        if changes.get("epochs", self.config.epochs) < self.config.epochs:
            raise InputError(f"at least {self.config.epochs} epochs", changes["epochs"], "more")
        return type(self)(self.path, wanted)

    def save_config(self) -> None:
        """Write the configuration down again, after it was extended."""
        _write_yaml(self.path / "config.yaml", self.config)

    def checkpoint(self, name: str = "last") -> Path:
        """Return where the checkpoint of that name lies."""
        return self.path / "checkpoints" / f"{name}.pt"

    def save_checkpoint(self, state: dict[str, Any], name: str = "last") -> None:
        """Write a checkpoint: the file of that name is at every instant the old one or the new one, whole."""
        path = self.checkpoint(name)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, "fingerprint": fingerprint(self.config), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)

    def load_checkpoint(self, name: str = "last") -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU, with ``weights_only=True``.

        Raises:
            InputError: there is none, it is cut short or no checkpoint, or it is of another configuration.
        """
        path = self.checkpoint(name)
        if not path.is_file():
            raise InputError(f"a checkpoint at {path}", "none: the run was stopped before its first", "a new run")
        try:
            with ZipFile(path) as archive:  # torch itself does not look at the checksums
                damaged = archive.testzip()
            if damaged:
                raise BadZipFile(f"{damaged} is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes raise anything: UnpicklingError, struct.error, IndexError, ...
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise InputError("a whole checkpoint", f"{path}: {reason}", "the run's other checkpoint") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT or "fingerprint" not in state:
            raise InputError(f"a checkpoint of format {FORMAT}", f"another file at {path}", "a new run")
        self._same_configuration(state["fingerprint"], path)
        return state

    def _same_configuration(self, theirs: str, path: Path) -> None:
        there, here = json.loads(theirs), json.loads(fingerprint(self.config))
        for name in here:
            if there.get(name) != here[name]:
                got = f"{name} {there.get(name)!r} instead of {here[name]!r} in {path}"
                raise InputError("a checkpoint of this run's configuration", got, "a new run")


def load_program(run: Run, data: DataSet, device: torch.device, checkpoint: str = "last") -> Program:
    """Return the program of a run with the parameters of one of its checkpoints, in evaluation mode.

    Raises:
        InputError: there is no such checkpoint, or it cannot be used.
    """
    state = run.load_checkpoint(checkpoint)
    with isolated_rng(device, run.config.seed):
        thing = run.config.build_program(data.train)
        program = as_program(thing, data.train.batch(slice(0, 2)))
    load_parameters(program, state["program"])
    program.to(device)
    program.train(False)
    return program


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a run folder that exists (unless it is one and may be overwritten) or cannot be made.

    Raises:
        InputError: as said.
    """
    if path.exists():
        is_run = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
        if not overwrite or not is_run:
            hint = "--overwrite, --resume, or another --out" if is_run else "another --out"
            raise InputError("a new run folder", f"{str(path)!r}, which exists", hint)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("a folder that can be written", f"{parent}, which cannot", "another --out")


def fingerprint(config: RunConfig) -> str:
    """Return, as JSON, what two runs must share for one to continue the other."""
    shared = {name: value for name, value in asdict(config).items() if name not in EXTENDABLE}
    file = Path(config.model.partition(":")[0])
    if file.suffix == ".py" and file.is_file():
        shared["model file"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return json.dumps(shared, sort_keys=True, default=str)


def describe_machine(data: DataSet) -> dict[str, Any]:
    """Return what a run records beside its configuration: versions, machine and data."""
    return {
        "pyro_vae": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "data": data.describe(),
    }


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; a folder that is not there is made.

    Raises:
        InputError: the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError("a file that can be written", f"{path}: {error.strerror}", "another path") from None


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_yaml(path: Path, config: RunConfig) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    partial.replace(path)


def _read_config(path: Path) -> RunConfig:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise InputError("a configuration in YAML", f"{path}, which is none", "a new run")
    unknown = [str(name) for name in values if name not in RunConfig.__dataclass_fields__]
    if unknown:
        raise InputError("options of pyro-vae train", f"{', '.join(unknown)} in {path}", "the version that made it")
    return RunConfig(**values)
