"""The commands that look at a run: ``sample``, ``reconstruct`` and ``plot``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.files import atomic_write
from pyro_vae.base.random import isolated_rng
from pyro_vae.cli.progress import say, say_pictures
from pyro_vae.data import DataSet
from pyro_vae.figures import gallery
from pyro_vae.program import predictive
from pyro_vae.program.protocol import Program
from pyro_vae.training.folder import Run, load_program
from pyro_vae.training.loop import EpochRecord

CHECKPOINTS = {"last": "where the run stands", "best": "the best held-out bound"}


def sample(options: Any, console: Console) -> int:
    """Generate from the prior: a picture, and arrays if asked for."""
    run, data, program, device = opened(options)
    test = data.test.to(device)
    if options.arrays is not None:
        with isolated_rng(device, options.seed):
            generated = predictive.sample_prior(program, gallery.like(test, options.count))
        _write_arrays(Path(options.arrays), generated, console)
    picture = gallery.draw_samples(run.pictures / "samples.png", program, test, options.count, options.seed)
    say_pictures(console, [picture])
    return 0


def reconstruct(options: Any, console: Console) -> int:
    """Reconstruct the first test images: a picture, and arrays if asked for."""
    run, data, program, device = opened(options)
    test, seed = data.test.to(device), options.seed
    count = min(gallery.PAIRS, len(test)) if options.count is None else options.count
    if count > len(test):
        raise InputError(f"a count of at most {len(test)}, the test images", count, f"--count {len(test)}")
    if options.arrays is not None:
        x = test.binarized(seed)[:count]
        with isolated_rng(device, seed):
            generated = predictive.reconstruct(program, x)
        _write_arrays(Path(options.arrays), generated, console, x=x.cpu().numpy())
    picture = gallery.draw_reconstructions(run.pictures / "reconstructions.png", program, test, count, seed)
    say_pictures(console, [picture])
    return 0


def plot(options: Any, console: Console) -> int:
    """Draw every picture of a run again."""
    run, data, program, device = opened(options)
    history = [EpochRecord(**record) for record in run.load_checkpoint(options.checkpoint)["history"]]
    say_pictures(console, gallery.draw_all(run.pictures, program, data, history, device, options.seed))
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
    arrays = {"mean": generated.mean.numpy(), "draw": generated.sample.numpy(), **more}
    arrays |= {f"latent_{name}": value.numpy() for name, value in generated.latents.items()}
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    say(console, f"arrays    {path}")
