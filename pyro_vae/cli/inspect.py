"""The commands that look at a run: ``sample``, ``reconstruct`` and ``plot``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from numpy.typing import NDArray
from rich.console import Console

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.files import atomic_write
from pyro_vae.base.random import isolated_rng
from pyro_vae.cli.progress import say, say_pictures
from pyro_vae.data import DataSet
from pyro_vae.figures import gallery
from pyro_vae.program import predictive
from pyro_vae.program.call import x_alone
from pyro_vae.program.generated import Generated
from pyro_vae.program.protocol import Program
from pyro_vae.training.folder import Run, load_program
from pyro_vae.training.loop import EpochRecord

CHECKPOINTS = {"last": "where the run stopped", "best": "the best held-out bound"}


class Opened(NamedTuple):
    """A run, its data, and its program on a device."""

    run: Run
    data: DataSet
    program: Program
    device: torch.device


@dataclass(frozen=True)
class RunOptions:
    """Use a trained run.

    Args:
        run: the run folder.
        checkpoint: last or best.
        replicate: which replicate of a run with --replicates, from 0.
        device: cpu, cuda, or auto: cuda where available.
        data_root: where the data are, if they have moved.
        seed: seed of binarization and of what is sampled.
    """

    run: str
    checkpoint: str = "last"
    replicate: int = 0
    device: str = "auto"
    data_root: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("a seed that is a whole number of at least 0", self.seed, "seed=0")
        lookup(CHECKPOINTS, self.checkpoint, "checkpoint")

    def open(self) -> Opened:
        """Load the run, its data and its program."""
        run, device = Run.open(self.run), resolve_device(self.device)
        if self.data_root is not None:
            run = run.extended({"data_root": self.data_root})
        data = run.config.load_data()
        program = load_program(run, data, device, self.checkpoint, self.replicate)
        return Opened(run, data, program, device)

    def open_for_pictures(self) -> Opened:
        """Load them for what works on x alone."""
        opened = self.open()
        x_alone(opened.program, opened.data.train)
        return opened


@dataclass(frozen=True)
class SampleOptions(RunOptions):
    """Generate images from the prior: a picture, and arrays with --arrays.

    Args:
        count: how many images.
        arrays: write means, samples and latents to this .npz file.
    """

    count: PositiveInt = gallery.SAMPLES
    arrays: str | None = None


@dataclass(frozen=True)
class ReconstructOptions(RunOptions):
    """Reconstruct the first test images: a picture, and arrays with --arrays.

    Args:
        count: how many images; by default 10, or all if fewer.
        arrays: write images, means, samples and latents to this .npz file.
    """

    count: PositiveInt | None = None
    arrays: str | None = None


@dataclass(frozen=True)
class PlotOptions(RunOptions):
    """Plot all pictures of a run again."""


def sample(options: SampleOptions, console: Console) -> int:
    """Generate images from the prior."""
    run, data, program, device = options.open_for_pictures()
    test = data.test.to(device)
    if options.arrays is not None:
        with isolated_rng(device, options.seed):
            generated = predictive.sample_prior(program, gallery.like(test, options.count))
        _write_arrays(Path(options.arrays), generated, console)
    picture = gallery.plot_samples(run.pictures / "samples.png", program, test, options.count, options.seed)
    say_pictures(console, gallery.Pictures([picture], {}))
    return 0


def reconstruct(options: ReconstructOptions, console: Console) -> int:
    """Reconstruct the first test images."""
    run, data, program, device = options.open_for_pictures()
    test, seed = data.test.to(device), options.seed
    count = min(gallery.PAIRS, len(test)) if options.count is None else options.count
    if count > len(test):
        raise InputError(f"a count of at most {len(test)}, the test images", count, f"count={len(test)}")
    if options.arrays is not None:
        x = test.binarized(seed)[:count]
        with isolated_rng(device, seed):
            generated = predictive.reconstruct(program, x)
        _write_arrays(Path(options.arrays), generated, console, x=x.cpu().numpy())
    picture = gallery.plot_reconstructions(run.pictures / "reconstructions.png", program, test, count, seed)
    say_pictures(console, gallery.Pictures([picture], {}))
    return 0


def plot(options: PlotOptions, console: Console) -> int:
    """Plot every picture of a run again."""
    run, data, program, device = options.open_for_pictures()
    history = [EpochRecord(**record) for record in run.load_checkpoint(options.checkpoint)["history"]]
    say_pictures(console, gallery.plot_all(run.pictures, program, data, history, device, options.seed))
    return 0


def _write_arrays(path: Path, generated: Generated, console: Console, **more: NDArray[np.float32]) -> None:
    arrays: dict[str, Any] = {"draw": generated.sample.numpy(), **more}
    if generated.mean is not None:
        arrays["mean"] = generated.mean.numpy()
    else:
        say(console, f"left out  mean: {generated.no_mean}")
    arrays |= {f"latent_{name}": value.numpy() for name, value in generated.latents.items()}
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    say(console, f"arrays    {path}")
