"""The folder of a training run, written so that the run can be killed at any instant."""

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile, ZipFile

import torch
import yaml

from pyro_vae.base.errors import InputError
from pyro_vae.base.files import atomic_write, write_json
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import State
from pyro_vae.base.version import __version__, installed_versions
from pyro_vae.data import DataSet
from pyro_vae.models.replicates import as_trainable, first_of, members
from pyro_vae.program.call import data_for
from pyro_vae.program.contexts import load_parameters
from pyro_vae.program.protocol import Program
from pyro_vae.training.config import MAY_DIFFER, RunConfig, fingerprint

FORMAT = 2  # of checkpoints


PACKAGES = ("pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")


class Run:
    """A run folder.

    ::

        config.yaml          every option; pyro-vae train --config repeats the run
        info.json            versions, machine, data and their splits
        metrics.jsonl        one JSON object a line
        tensorboard/         the same, for TensorBoard
        checkpoints/last.pt  all that a resumed run needs; best.pt: the best held-out bound so far
        pictures/*.png
        result.json          the final bounds
        evaluation/          cards of pyro-vae evaluate, and the chunks from which it resumes
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
            write_json(fresh / "info.json", run_info(data))
            if path.exists():
                shutil.rmtree(path)
            fresh.rename(path)
        except OSError as error:
            got = f"{self.path}: {error.strerror}"
            raise InputError("a folder that can be written", got, "another folder") from None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run folder.

        Raises:
            InputError: it does not exist, or is not one.
        """
        path = Path(path).expanduser()
        if not path.is_dir():
            raise InputError("a run folder", f"{str(path)!r}, which does not exist", "the folder of an earlier run")
        missing = [name for name in ("config.yaml", "info.json", "checkpoints") if not (path / name).exists()]
        if missing:
            hint = "a folder made by pyro-vae train"
            raise InputError("a run folder", f"{str(path)!r}, without {', '.join(missing)}", hint)
        return cls(path, _read_config(path / "config.yaml"))

    def extended(self, changes: dict[str, Any]) -> Self:
        """Return the run with other options, as far as a resumed run may change them; nothing is written.

        Raises:
            InputError: an option that a resumed run cannot change, or fewer epochs.
        """
        if changes.get("epochs", self.config.epochs) < self.config.epochs:
            raise InputError(f"at least {self.config.epochs} epochs", changes["epochs"], f"epochs={self.config.epochs}")
        wanted = replace(self.config, **changes).absolute()
        for name, value in changes.items():
            if name not in MAY_DIFFER and getattr(wanted, name) != getattr(self.config, name):
                raise InputError(
                    f"only {', '.join(MAY_DIFFER)} changed when a run resumes",
                    f"{name} {value!r} instead of {getattr(self.config, name)!r}",
                    f"a new run with {name}={value!r}",
                )
        return type(self)(self.path, wanted)

    def check_data(self, data: DataSet) -> None:
        """Refuse data other than those the run began with; their path does not matter.

        Raises:
            InputError: another size, split, shape, binarization or other pixels.
        """
        began = json.loads((self.path / "info.json").read_text())["data"]
        now = json.loads(json.dumps(data.describe()))
        for name in now.keys() - {"source", *({"labels"} - began.keys())}:  # an older version did not record labels
            if began.get(name) != now[name]:
                got = f"{name} {now[name]} instead of {began.get(name)}"
                raise InputError("the data that the run began with", got, "a new run, or the former files")

    def save_config(self) -> None:
        """Write the configuration again, after it was extended."""
        _write_yaml(self.path / "config.yaml", self.config)

    def checkpoint(self, name: str = "last") -> Path:
        """Return the path of the checkpoint of that name."""
        return self.path / "checkpoints" / f"{name}.pt"

    def save_checkpoint(self, state: State, name: str = "last") -> None:
        """Write a checkpoint: the file of that name is at every instant the old one or the new one, whole."""
        path = self.checkpoint(name)
        with atomic_write(path, durable=True) as partial, partial.open("wb") as file:
            torch.save({"format": FORMAT, "fingerprint": fingerprint(self.config), **state}, file)

    def load_checkpoint(self, name: str = "last") -> State:
        """Read a checkpoint, tensors on the CPU, with ``weights_only=True``.

        Raises:
            InputError: there is none, it is damaged or no checkpoint, or it is of another configuration.
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
        there, here = asdict(RunConfig()) | json.loads(theirs), json.loads(fingerprint(self.config))
        for name in here:
            if there.get(name) != here[name]:
                got = f"{name} {there.get(name)!r} instead of {here[name]!r} in {path}"
                raise InputError("a checkpoint of this run's configuration", got, "a new run")


def load_program(
    run: Run, data: DataSet, device: torch.device, checkpoint: str = "last", replicate: int = 0
) -> Program:
    """Return the program of a run with the parameters of one of its checkpoints, in evaluation mode.

    Raises:
        InputError: there is no such checkpoint or replicate, or it cannot be used.
    """
    if not 0 <= replicate < run.config.replicates:
        raise InputError(f"a replicate from 0 to {run.config.replicates - 1}", replicate, "replicate=0")
    state = run.load_checkpoint(checkpoint)
    with isolated_rng(device, run.config.seed):
        thing = run.config.build_program(data.train)
        program = as_trainable(thing, data_for(first_of(thing), data.train).batch(slice(0, 2)))
    load_parameters(program, state["program"])
    program.to(device)
    program.train(False)
    return members(program)[replicate]


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a run folder that exists (unless it is one and may be overwritten) or cannot be made.

    Raises:
        InputError: as said.
    """
    if path.exists():
        is_run = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
        if not overwrite or not is_run:
            hint = f"overwrite=True, resume={str(path)!r}, or another folder" if is_run else "another folder"
            raise InputError("a new run folder", f"{str(path)!r}, which exists", hint)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("a folder that can be written", f"{parent}, which cannot", "another folder")


def run_info(data: DataSet) -> dict[str, object]:
    """Return what a run records beside its configuration: versions, machine, command and data."""
    return {
        "pyro_vae": __version__,
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "data": data.describe(),
    }


def _write_yaml(path: Path, config: RunConfig) -> None:
    with atomic_write(path) as partial:
        partial.write_text(yaml.safe_dump(asdict(config), sort_keys=False))


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
