"""The command ``compare``: estimators side by side on one program, at several points of its training."""

import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from pyro.infer import ELBO
from rich.console import Console

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.files import check_output, write_json
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.registry import split_specs
from pyro_vae.cli import tables
from pyro_vae.cli.options import part
from pyro_vae.cli.progress import progress_bars, say
from pyro_vae.data import DataSet
from pyro_vae.elbo.catalogue import as_estimator
from pyro_vae.figures.gradients import gradient_figure
from pyro_vae.models.replicates import Replicates, as_trainable, first_of, members
from pyro_vae.program.call import data_for
from pyro_vae.program.protocol import Program
from pyro_vae.studies.gradients import LEAST_DRAWS, GradientComparison, compare_gradients
from pyro_vae.studies.training import Race, race, training_points
from pyro_vae.training.config import MAY_DIFFER, RunConfig
from pyro_vae.training.folder import Run, load_program

# Settings that a comparison does not use: its estimators train by the same plain settings.
NOT_COMPARED = frozenset(
    {"estimator", "epochs", "max_steps", "schedule", "clip_norm", "kl_warmup", "patience", "eval_particles"}
)
JUDGE_EXAMPLES = 500
TRAINING = ("optimizer", "learning_rate", "batch_size", "seed", "engine")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RunConfig):
    """Compare estimators: bias, variance, signal-to-noise ratio, cost, and what they are worth in training.

    Args:
        estimators: names with arguments, such as stl,iwae:num_particles=5,dreg:num_particles=5.
        run: compare on the trained program of this run; its configuration gives the defaults.
        at: steps of training by trace_elbo after which to compare gradients; 0 is the untrained program.
        draws: gradients sampled from each estimator.
        reference_draws: gradients sampled for each reference.
        batch: examples in the batch whose gradients are compared.
        steps: then train with each estimator for so many steps, and for equal time; 0 for no training.
        judge_particles: particles of the importance-weighted bound that judges the trained programs.
        judge_examples: held-out examples of that bound; by default 500, or all where there are fewer.
        json: write every figure to this file.
        figure: plot the figures to this file.
    """

    estimators: str
    run: str | None = None
    at: list[int] = field(default_factory=lambda: [0])
    draws: int = 500
    reference_draws: int = 2000
    batch: PositiveInt = 20
    steps: int = 0
    judge_particles: PositiveInt = 500
    judge_examples: int | None = None
    json: str | None = None
    figure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"draws": LEAST_DRAWS, "reference_draws": LEAST_DRAWS, "steps": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} of at least {least}", getattr(self, name), f"{name}={least}")
        if self.judge_examples is not None and self.judge_examples < 2:
            raise InputError("judge_examples of at least 2", self.judge_examples, "judge_examples=2")
        if not self.at or sorted(set(self.at)) != self.at or self.at[0] < 0:
            raise InputError("steps in rising order, of at least 0", self.at, "at=[0, 1000]")
        if self.run is not None and self.at != [0]:
            raise InputError("--at for a program that is trained here", "--run beside it", "one of the two")


def compare(wanted: CompareOptions, console: Console) -> int:
    """Compare gradients at each point, then race, print tables, write JSON and figure."""
    names = split_specs(wanted.estimators)
    if len(set(names)) < len(names):
        raise InputError("each estimator once", wanted.estimators, ",".join(dict.fromkeys(names)))
    estimators = {text: as_estimator(text, vectorize_particles=wanted.vectorize_particles) for text in names}
    for path in (wanted.json, wanted.figure):
        check_output(path)
    config, data, program, device = _subject(wanted)
    for option, wish, there in (
        ("batch", wanted.batch, data.validation),
        ("judge_examples", wanted.judge_examples, data.test),
    ):
        if wish is not None and wish > len(there):
            raise InputError(f"{option} of at most {len(there)}, the held-out examples", wish, f"{option}={len(there)}")
    x = data_for(members(program)[0], data.validation.to(device)).binarized(config.seed)[: wanted.batch]
    train = data.train.to(device)
    points: dict[int, GradientComparison] = {}
    for point in training_points(program, train, wanted.at, **_settings(config)):
        first = members(program)[0]  # gradients are those of one replicate; all are trained
        with progress_bars(console, "draws") as tick:
            points[point] = compare_gradients(
                first, x, estimators, wanted.draws, wanted.reference_draws, config.seed, progress=tick
            )
        for table in tables.comparison_tables(points[point], "the run" if wanted.run else f"step {point}"):
            console.print(table)
    laps = _race(program, data, device, estimators, wanted, config, console)
    _write(wanted, config, data, points, laps, console)
    return 0


def _subject(wanted: CompareOptions) -> tuple[RunConfig, DataSet, Program | Replicates, torch.device]:
    """Return the program to compare on: that of a run, or a fresh one."""
    device, config = resolve_device(wanted.device), part(RunConfig, wanted).absolute()
    if wanted.run is not None:
        run = Run.open(wanted.run)
        _same_subject(run.config, config)
        data = config.load_data()
        return config, data, load_program(run, data, device), device
    data = config.load_data()
    with isolated_rng(device, config.seed):
        thing = config.build_program(data.train)
        program = as_trainable(thing, data_for(first_of(thing), data.train).batch(slice(0, 2)))
    program.to(device)
    return config, data, program, device


def _same_subject(ran: RunConfig, wanted: RunConfig) -> None:
    """Refuse another program or other data than a run's."""
    may_differ = {*NOT_COMPARED, *MAY_DIFFER, *TRAINING, "vectorize_particles"} - {"seed"}
    wishes, there = asdict(wanted), asdict(ran)
    for name in wishes.keys() - may_differ:
        if wishes[name] != there[name]:
            got = f"{name} {wishes[name]!r} instead of {there[name]!r}"
            raise InputError("the program and the data of the run", got, f"leaving out --{name}")


def _settings(config: RunConfig) -> dict[str, Any]:  # keyword arguments
    return {name: getattr(config, name) for name in TRAINING}


def _race(
    program: Program | Replicates,
    data: DataSet,
    device: torch.device,
    estimators: dict[str, ELBO],
    wanted: CompareOptions,
    config: RunConfig,
    console: Console,
) -> Race:
    if not wanted.steps:
        return Race()
    test = data.test.to(device).subset(torch.arange(wanted.judge_examples or min(JUDGE_EXAMPLES, len(data.test))))
    with progress_bars(console, "steps") as tick:
        laps = race(
            program,
            data.train,
            test,
            estimators,
            wanted.steps,
            num_particles=wanted.judge_particles,
            vectorize_particles=config.vectorize_particles,
            progress=tick,
            **_settings(config),
        )
    console.print(tables.race_table(laps))
    return laps


def _write(
    wanted: CompareOptions,
    config: RunConfig,
    data: DataSet,
    points: dict[int, GradientComparison],
    laps: Race,
    console: Console,
) -> None:
    if wanted.json:
        described = {name: value for name, value in data.describe().items() if name != "source"}
        found = {
            "points": {str(point): [asdict(report) for report in reports] for point, reports in points.items()},
            "laps": [asdict(lap) for lap in laps],
            "comparison": _comparison(wanted),
            "program": {name: getattr(config, name) for name in ("model", "latent_dim", "hidden", "likelihood")},
            "training": _settings(config),
            "data": described,
            "machine": {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        }
        write_json(Path(wanted.json), found)
        say(console, f"figures   {wanted.json}")
    if wanted.figure:
        gradient_figure(Path(wanted.figure), points, laps)
        say(console, f"picture   {wanted.figure}")


def _comparison(wanted: CompareOptions) -> dict[str, object]:
    """Return the options that are the comparison's alone."""
    settings = {field.name for field in fields(RunConfig)}
    return {name: value for name, value in asdict(wanted).items() if name not in settings}
