"""What each command does: the library's parts put together, figures printed, files written."""

import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import strftime
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pyro_vae import gallery, predictive, report
from pyro_vae.config import RunConfig
from pyro_vae.crosscheck import crosscheck
from pyro_vae.data import DataSet
from pyro_vae.devices import isolated_rng, resolve_device
from pyro_vae.errors import InputError, lookup
from pyro_vae.evaluation.likelihood import held_out_bounds
from pyro_vae.loop import EpochRecord
from pyro_vae.program import Program
from pyro_vae.recording import CheckpointHook, FolderHook, InterruptHook, MetricsHook
from pyro_vae.replicates import members
from pyro_vae.run import Run, check_new, check_output, load_program, write_json
from pyro_vae.training import FitResult, fit

INTERRUPTED = 128 + signal.SIGINT
CHECKPOINTS = {"last": "where the run stands", "best": "the best held-out bound"}


def train(options: Any, given: dict[str, Any], console: Console) -> int:
    """Train, or continue to train, and report; ``given`` holds the options that the user set."""
    run, state = _new(options) if options.resume is None else _resumed(options, given)
    data = run.config.load_data()
    if state is not None:
        run.check_data(data)
    result = _fit(run, data, state, console, overwrite=options.overwrite)
    if result.stopped == "interrupted":
        say(console, f"Stopped, and saved. Continue with: pyro-vae train --resume {run.path}")
        return INTERRUPTED
    _finish(run, data, result, console)
    return 0


def _new(options: Any) -> tuple[Run, None]:
    config = RunConfig(**{name: options[name] for name in RunConfig.__dataclass_fields__}).absolute()
    out = f"runs/{Path(config.data).stem}-{strftime('%Y%m%d-%H%M%S')}" if options.out is None else options.out
    path = Path(out).expanduser()
    check_new(path, overwrite=options.overwrite)
    return Run(path, config), None


def _resumed(options: Any, given: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    if options.out is not None or options.overwrite:
        raise InputError("--resume RUN by itself", "--out or --overwrite beside it", "leaving them out")
    run = Run.open(options.resume)
    return run.extended(given), run.load_checkpoint()


def _fit(run: Run, data: DataSet, state: dict[str, Any] | None, console: Console, *, overwrite: bool) -> FitResult:
    device = resolve_device(run.config.device)
    with isolated_rng(device, run.config.seed):
        program = run.config.build_program(data.train)
    folder = FolderHook(run, data, resumed=state is not None, overwrite=overwrite)
    progress, interrupt = report.ProgressHook(run, data, console), InterruptHook()
    hooks = [folder, progress, MetricsHook(run), CheckpointHook(run), interrupt]
    settings = run.config.settings()
    with progress, interrupt.listening():
        return fit(
            program,
            data.train,
            validation=data.validation,
            device=device,
            hooks=hooks,
            resume=state,
            **settings,
        )


def _finish(run: Run, data: DataSet, result: FitResult, console: Console) -> None:
    """Score the test data, write the result, draw the pictures, and say where everything is."""
    particles, seed = run.config.eval_particles, run.config.seed
    device = resolve_device(run.config.device)
    test = data.test.to(device)
    bound, each = held_out_bounds(result.program, test, particles, seed)
    figures = {
        "test_bound": asdict(bound),
        "replicates": list(each),
        "unit": "nats per datum",
        "binarize": test.binarize,
        "num_particles": particles,
        "epochs": len(result.history),
        "stopped": result.stopped,
    }
    write_json(run.path / "result.json", figures)
    if result.stopped:
        say(console, f"Stopped after epoch {len(result.history)}: {result.stopped}.")
    say(console, report.bound_line("test", len(test), bound, test.binarize, particles))
    if each:
        say(console, report.spread_line(each))
    say(console, f"run       {run.path}")
    first = members(result.program)[0]
    try:
        _say_pictures(console, gallery.draw_all(run.pictures, first, data, result.history, device, seed))
    except InputError as error:  # the run is whole without them
        say(console, f"no pictures: {error}")


def check(options: Any, console: Console) -> int:
    """Cross-check on this machine; 1 on any mismatch."""
    check_output(options.json)
    device = resolve_device(options.device)
    both = options.device == "auto" and device.type == "cuda"
    devices = [torch.device("cpu"), device] if both else [device]
    with console.status("comparing") as status:
        rows = crosscheck(devices, on_row=lambda row: status.update(f"{row.comparison}, {row.likelihood}"))
    mismatches = [row for row in rows if not row.passed]
    if options.json is not None:
        lines = [{**asdict(row), "passed": row.passed} for row in rows]
        write_json(Path(options.json), {"passed": not mismatches, "torch": torch.__version__, "rows": lines})
    console.print(report.check_table(rows))
    for line in report.z_score_lines(rows):
        say(console, line)
    if mismatches:
        for line in report.mismatch_lines(rows):
            say(console, line)
        console.print(f"[red]{len(mismatches)} of {len(rows)} comparisons do not agree[/]")
        return 1
    console.print(f"[green]all {len(rows)} comparisons agree[/]")
    return 0


def sample(options: Any, console: Console) -> int:
    """Generate from the prior: a picture, and arrays if asked for."""
    run, data, program, device = opened(options)
    test = data.test.to(device)
    if options.arrays is not None:
        with isolated_rng(device, options.seed):
            generated = predictive.sample_prior(program, gallery.like(test, options.count))
        _write_arrays(Path(options.arrays), generated, console)
    picture = gallery.draw_samples(run.pictures / "samples.png", program, test, options.count, options.seed)
    _say_pictures(console, [picture])
    return 0


def reconstruct(options: Any, console: Console) -> int:
    """Reconstruct the first test images: a picture, and arrays if asked for."""
    run, data, program, device = opened(options)
    test, seed = data.test.to(device), options.seed
    count = min(gallery.PAIRS, len(test)) if options.count is None else options.count
    if count > len(test):
        raise InputError(f"a count of at most {len(test)}, the test images", count, f"--count {len(test)}")
    if options.arrays is not None:
        x = test.draw(seed)[:count]
        with isolated_rng(device, seed):
            generated = predictive.reconstruct(program, x)
        _write_arrays(Path(options.arrays), generated, console, x=x.cpu().numpy())
    picture = gallery.draw_reconstructions(run.pictures / "reconstructions.png", program, test, count, seed)
    _say_pictures(console, [picture])
    return 0


def plot(options: Any, console: Console) -> int:
    """Draw every picture of a run again."""
    run, data, program, device = opened(options)
    history = [EpochRecord(**record) for record in run.load_checkpoint(options.checkpoint)["history"]]
    _say_pictures(console, gallery.draw_all(run.pictures, program, data, history, device, options.seed))
    return 0


def opened(options: Any) -> tuple[Run, DataSet, Program, torch.device]:
    """Open a run for a command that only looks at it."""
    count = getattr(options, "count", None)
    if count is not None and count < 1:
        raise InputError("a count of at least 1", count, "--count 64")
    if options.seed < 0:
        raise InputError("a seed that is a whole number of at least 0", options.seed, "--seed 0")
    lookup(CHECKPOINTS, options.checkpoint, "checkpoint")
    run, device = Run.open(options.run), resolve_device(options.device)
    if options.data_root is not None:
        run = run.extended({"data_root": options.data_root})
    data = run.config.load_data()
    return run, data, load_program(run, data, device, options.checkpoint, options.replicate), device


def _write_arrays(path: Path, generated: predictive.Generated, console: Console, **more: Any) -> None:
    arrays = {"mean": generated.mean.numpy(), "draw": generated.draw.numpy(), **more}
    arrays |= {f"latent_{name}": value.numpy() for name, value in generated.latents.items()}
    partial = path.with_name(f".{path.stem}.partial.npz")
    try:
        np.savez_compressed(partial, **arrays)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError("a file that can be written", f"{path}: {error.strerror}", "another path") from None
    say(console, f"arrays    {path}")


def _say_pictures(console: Console, files: list[Path]) -> None:
    for file in files:
        say(console, f"picture   {file}")


def say(console: Console, line: str) -> None:
    """Print a line as it is, without colour or markup."""
    console.print(line, highlight=False, markup=False)
