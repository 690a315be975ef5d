"""The command ``compare``: estimators side by side on one program, at points of its training."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from rich.console import Console
from rich.progress import Progress

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.files import check_output, write_json
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.registry import from_spec, split_specs
from pyro_vae.cli import tables
from pyro_vae.cli.progress import progress_bars
from pyro_vae.data import DataSet
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.figures.gradients import gradient_figure
from pyro_vae.models.replicates import Replicates, as_trainable, members
from pyro_vae.program.protocol import Program
from pyro_vae.studies.gradients import EstimatorReport, compare_gradients
from pyro_vae.studies.training import Lap, race, training_points
from pyro_vae.training.config import RunConfig
from pyro_vae.training.folder import Run, load_program

# options of a run that a comparison has no use for: its estimators train by the same plain settings
NOT_COMPARED = {"estimator", "epochs", "max_steps", "schedule", "clip_norm", "kl_warmup", "patience", "eval_particles"}


@dataclass(frozen=True)
class ComparisonConfig:
    """What a comparison needs beside the program and the data; its fields are options of ``pyro-vae compare``.

    Args:
        estimators: names with arguments, such as stl,iwae:num_particles=5,dreg:num_particles=5.
        run: compare on the program of this finished run, in the place of the options of a program and data.
        at: steps of training by trace_elbo after which to compare gradients; 0 is the untrained program.
        draws: gradients drawn from each estimator.
        reference_draws: gradients drawn for each reference.
        batch: data whose gradients are looked at.
        steps: then train with each estimator for so many steps, and for equal time; 0 for no training.
        judge_particles: of the importance-weighted bound that judges the trained programs.
        judge_examples: held-out data that it is taken on.
        json: write every figure to this file.
        figure: draw the figures to this file.
    """

    estimators: str
    run: str | None = None
    at: list[int] = field(default_factory=lambda: [0])
    draws: int = 500
    reference_draws: int = 2000
    batch: int = 20
    steps: int = 0
    judge_particles: int = 500
    judge_examples: int = 500
    json: str | None = None
    figure: str | None = None

    def __post_init__(self) -> None:
        least = {"draws": 20, "reference_draws": 20, "batch": 1, "steps": 0, "judge_particles": 1, "judge_examples": 2}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"{name} of at least {lowest}", getattr(self, name), f"--{name} {lowest}")
        if not self.at or sorted(set(self.at)) != self.at or self.at[0] < 0:
            raise InputError("steps in rising order, of at least 0", self.at, "--at '[0, 1000]'")
        if self.run is not None and self.at != [0]:
            raise InputError("--at for a program that is trained here", "--run beside it", "one of the two")


def compare(options: Any, console: Console) -> int:
    """Compare gradients at each point, then race, print tables, write JSON and figure."""
    wanted = ComparisonConfig(**{name: options[name] for name in ComparisonConfig.__dataclass_fields__})
    names = split_specs(wanted.estimators)
    if len(set(names)) < len(names):
        raise InputError("each estimator once", wanted.estimators, ",".join(dict.fromkeys(names)))
    estimators = {text: from_spec(ESTIMATORS, text, "estimator") for text in names}
    for path in (wanted.json, wanted.figure):
        check_output(path)
    config, data, program, device = _subject(options, wanted)
    for option, wish, there in (
        ("batch", wanted.batch, data.validation),
        ("judge_examples", wanted.judge_examples, data.test),
    ):
        if wish > len(there) and (option == "batch" or wanted.steps):
            raise InputError(f"{option} of at most {len(there)}, the data there are", wish, f"--{option} {len(there)}")
    x = data.validation.to(device).binarized(config.seed)[: wanted.batch]
    train = data.train.to(device)
    points: dict[int, list[EstimatorReport]] = {}
    for point in training_points(program, train, wanted.at, **_settings(config)):
        first = members(program)[0]  # gradients are looked at on one replicate, training on all
        with progress_bars(console, "draws") as tick:
            points[point] = compare_gradients(
                first, x, estimators, wanted.draws, wanted.reference_draws, config.seed, progress=tick
            )
        for table in tables.comparison_tables(points[point], "the run" if wanted.run else f"step {point}"):
            console.print(table)
    laps = _race(program, data, device, estimators, wanted, config, console)
    _write(wanted, config, data, points, laps, console)
    return 0


def _subject(options: Any, wanted: ComparisonConfig) -> tuple[RunConfig, DataSet, Program | Replicates, torch.device]:
    """Return the program to compare on: that of a run, or a fresh one."""
    device = resolve_device(options.device)
    if wanted.run is not None:
        run = Run.open(wanted.run)
        data = run.config.load_data()
        return run.config, data, load_program(run, data, device), device
    names = set(RunConfig.__dataclass_fields__) - NOT_COMPARED
    config = RunConfig(**{name: options[name] for name in names}).absolute()
    data = config.load_data()
    with isolated_rng(device, config.seed):
        program = as_trainable(config.build_program(data.train), data.train.batch(slice(0, 2)))
    program.to(device)
    return config, data, program, device


def _settings(config: RunConfig) -> dict[str, Any]:
    names = ("optimizer", "learning_rate", "batch_size", "seed", "engine")
    return {name: getattr(config, name) for name in names}


@contextlib.contextmanager
def _progress(console: Console, total: int, where: str) -> Iterator[Callable[[str], None]]:
    """Show a bar; yields what moves it on and says what is being done."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(where, total=total)
        yield lambda what: bar.update(task, advance=1, description=f"{where}: {what}")


def _race(
    program: Program | Replicates,
    data: DataSet,
    device: torch.device,
    estimators: dict[str, ELBO],
    wanted: ComparisonConfig,
    config: RunConfig,
    console: Console,
) -> list[Lap]:
    if not wanted.steps:
        return []
    test = data.test.to(device).subset(torch.arange(wanted.judge_examples))
    with _progress(console, len(estimators) * wanted.steps, "training") as tick:
        laps = race(
            program,
            data.train,
            test,
            estimators,
            wanted.steps,
            num_particles=wanted.judge_particles,
            report=tick,
            **_settings(config),
        )
    console.print(tables.race_table(laps))
    return laps


def _write(
    wanted: ComparisonConfig,
    config: RunConfig,
    data: DataSet,
    points: dict[int, list[EstimatorReport]],
    laps: list[Lap],
    console: Console,
) -> None:
    if wanted.json:
        described = {name: value for name, value in data.describe().items() if name != "source"}
        found = {
            "points": {str(point): [asdict(report) for report in reports] for point, reports in points.items()},
            "laps": [asdict(lap) for lap in laps],
            "comparison": asdict(wanted),
            "program": {name: getattr(config, name) for name in ("model", "latent_dim", "hidden", "likelihood")},
            "training": _settings(config),
            "data": described,
            "machine": {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        }
        write_json(Path(wanted.json), found)
        console.print(f"figures   {wanted.json}", highlight=False, markup=False)
    if wanted.figure:
        gradient_figure(Path(wanted.figure), points, laps)
        console.print(f"picture   {wanted.figure}", highlight=False, markup=False)
