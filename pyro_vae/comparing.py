"""The command ``compare``: estimators side by side on one program, at points of its training."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from rich.console import Console
from rich.progress import Progress

from pyro_vae import plots, report
from pyro_vae.comparison import EstimatorReport, compare_gradients, count_references
from pyro_vae.config import NOT_COMPARED, ComparisonConfig, RunConfig
from pyro_vae.data import DataSet
from pyro_vae.devices import isolated_rng, resolve_device
from pyro_vae.elbo import ESTIMATORS
from pyro_vae.errors import InputError
from pyro_vae.program import Program, as_program
from pyro_vae.race import Lap, race, train_steps
from pyro_vae.replicates import members
from pyro_vae.run import Run, check_output, load_program, write_json
from pyro_vae.specs import from_spec, split_specs


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
    for option, wish, there in (("batch", wanted.batch, data.validation), ("judge_data", wanted.judge_data, data.test)):
        if wish > len(there) and (option == "batch" or wanted.steps):
            raise InputError(f"{option} of at most {len(there)}, the data there are", wish, f"--{option} {len(there)}")
    x = data.validation.to(device).draw(config.seed)[: wanted.batch]
    train = data.train.to(device)
    points: dict[int, list[EstimatorReport]] = {}
    for done, point in zip([0, *wanted.at], wanted.at, strict=False):
        train_steps(program, train, point - done, **_settings(config))
        first = members(program)[0]  # gradients are looked at on one replicate, training on all
        with _progress(console, _draws(first, x, estimators, wanted), f"step {point}") as tick:
            points[point] = compare_gradients(
                first, x, estimators, wanted.draws, wanted.reference_draws, config.seed, report=tick
            )
        for table in report.comparison_tables(points[point], "the run" if wanted.run else f"step {point}"):
            console.print(table)
    laps = _race(program, data, device, estimators, wanted, config, console)
    _write(wanted, config, data, points, laps, console)
    return 0


def _subject(options: Any, wanted: ComparisonConfig) -> tuple[RunConfig, DataSet, Program, torch.device]:
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
        program = as_program(config.build_program(data.train), data.train.batch(slice(0, 2)))
    program.to(device)
    return config, data, program, device


def _settings(config: RunConfig) -> dict[str, Any]:
    names = ("optimizer", "learning_rate", "batch_size", "seed", "engine")
    return {name: getattr(config, name) for name in names}


def _draws(program: Program, x: torch.Tensor, estimators: dict[str, ELBO], wanted: ComparisonConfig) -> int:
    references = count_references(program, x, estimators)
    return len(estimators) * wanted.draws + references * wanted.reference_draws


@contextlib.contextmanager
def _progress(console: Console, total: int, where: str) -> Iterator[Callable[[str], None]]:
    """Show a bar; yields what moves it on and says what is being done."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(where, total=total)
        yield lambda what: bar.update(task, advance=1, description=f"{where}: {what}")


def _race(
    program: Program,
    data: DataSet,
    device: torch.device,
    estimators: dict[str, ELBO],
    wanted: ComparisonConfig,
    config: RunConfig,
    console: Console,
) -> list[Lap]:
    if not wanted.steps:
        return []
    test = data.test.to(device).subset(torch.arange(wanted.judge_data))
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
    console.print(report.race_table(laps))
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
        plots.comparison(Path(wanted.figure), points, laps)
        console.print(f"picture   {wanted.figure}", highlight=False, markup=False)
