"""The command ``train``."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from time import strftime

import pyro
from rich.console import Console

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.files import write_json
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import State
from pyro_vae.cli import tables
from pyro_vae.cli.options import part
from pyro_vae.cli.progress import ProgressHook, say, say_pictures
from pyro_vae.data import DataSet
from pyro_vae.evaluation.methods.bounds import held_out_bounds
from pyro_vae.figures import gallery
from pyro_vae.models.replicates import members
from pyro_vae.program.call import data_for, x_alone
from pyro_vae.training.config import RunConfig
from pyro_vae.training.fit import fit
from pyro_vae.training.folder import Run, check_new
from pyro_vae.training.hooks import CheckpointHook, FolderHook, InterruptHook, MetricsHook
from pyro_vae.training.result import FitResult

INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunConfig):
    """Train a program on images, in a run folder that can be resumed.

    Args:
        out: the run folder; runs/DATA-TIME by default.
        overwrite: replace the run folder if it exists.
        resume: resume this run where it stopped; its options are the defaults, and --epochs may ask for more.
    """

    out: str | None = None
    overwrite: bool = False
    resume: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume is not None and (self.out is not None or self.overwrite):
            raise InputError("--resume RUN by itself", "--out or --overwrite beside it", "leaving them out")


def train(options: TrainOptions, console: Console) -> int:
    """Train, or resume training, and report."""
    run, state = _new(options) if options.resume is None else _resumed(options, options.resume)
    data = run.config.load_data()
    if state is not None:
        run.check_data(data)
    device = resolve_device(run.config.device)
    with isolated_rng(device, run.config.seed):
        program = run.config.build_program(data.train)
    folder = FolderHook(run, data, resumed=state is not None, overwrite=options.overwrite)
    progress, interrupt = ProgressHook(run, data, console), InterruptHook()
    hooks = [folder, progress, MetricsHook(run), CheckpointHook(run), interrupt]
    with progress, interrupt.listening(), pyro.get_param_store().scope():
        result = fit(
            program,
            data.train,
            validation=data.validation,
            device=device,
            hooks=hooks,
            resume=state,
            **run.config.settings(),
        )
    if result.stopped == "interrupted":
        say(console, f"Stopped, and saved. Resume with: pyro-vae train --resume {run.path}")
        return INTERRUPTED
    _finish(run, data, result, console)
    return 0


def _new(options: TrainOptions) -> tuple[Run, None]:
    config = part(RunConfig, options).absolute()
    out = f"runs/{Path(config.data).stem}-{strftime('%Y%m%d-%H%M%S')}" if options.out is None else options.out
    path = Path(out).expanduser()
    check_new(path, overwrite=options.overwrite)
    return Run(path, config), None


def _resumed(options: TrainOptions, path: str) -> tuple[Run, State]:
    run = Run.open(path).extended(asdict(part(RunConfig, options)))
    return run, run.load_checkpoint()


def _finish(run: Run, data: DataSet, result: FitResult, console: Console) -> None:
    """Compute the test bound, write the result, plot the pictures, and print where they are."""
    particles, seed = run.config.eval_particles, run.config.seed
    device = resolve_device(run.config.device)
    test = data.test.to(device)
    first = members(result.program)[0]
    plate = run.config.vectorize_particles
    bound, each = held_out_bounds(result.program, data_for(first, test), particles, seed, vectorize_particles=plate)
    figures = {
        "test_bound": asdict(bound),
        "replicates": list(each),
        "unit": "nats per example",
        "binarize": test.binarize,
        "num_particles": particles,
        "epochs": len(result.history),
        "stopped": result.stopped,
    }
    write_json(run.path / "result.json", figures)
    if result.stopped:
        say(console, f"Stopped after epoch {len(result.history)}: {result.stopped}.")
    say(console, tables.bound_line("test", len(test), bound, test.binarize, particles))
    if each:
        say(console, tables.spread_line(each))
    say(console, f"run       {run.path}")
    first = members(result.program)[0]
    try:
        x_alone(first, test)
        say_pictures(console, gallery.plot_all(run.pictures, first, data, result.history, device, seed))
    except InputError as error:  # the run is complete without them
        say(console, f"no pictures: {error}")
