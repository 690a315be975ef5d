"""Progress while training, and single lines."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pyro_vae.base.types import Progress
from pyro_vae.data import DataSet
from pyro_vae.engines.protocol import StepInfo
from pyro_vae.figures.gallery import Pictures
from pyro_vae.training.folder import Run
from pyro_vae.training.loop import EpochRecord, Hook, Loop

LINES = 20  # of a training that is not on a terminal


def is_reported(epoch: int, epochs: int) -> bool:
    """Return whether an epoch gets a line where there is no terminal: the first, the last and evenly between.

    Example:
        >>> [epoch for epoch in range(1, 101) if is_reported(epoch, 100)][:4]
        [1, 5, 10, 15]
    """
    return epoch in (1, epochs) or epoch % math.ceil(epochs / LINES) == 0


class ProgressHook(Hook):
    """A bar with rate, remaining time and the current objective, and a line per epoch.

    Output that is not a terminal gets no bar and about ``LINES`` lines, however many epochs there are. The figure of
    training is the objective: whether it bounds log p(x) depends on estimator, KL weight and the program's scales.
    """

    def __init__(self, run: Run, data: DataSet, console: Console) -> None:
        self._run, self._data, self._console = run, data, console
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def preparing(self, loop: Loop) -> None:
        """Print data, program, settings and engine."""
        for line in _opening(self._run, self._data, loop):
            self._console.print(line, highlight=False, markup=False)

    def started(self, loop: Loop) -> None:
        """Show the bar."""
        self._bar = RichProgress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figure]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = loop.total_steps
        self._task = self._bar.add_task(
            "", total=total, completed=loop.position.step, epoch=loop.position.epoch + 1, rate="", figure=""
        )
        self._bar.start()

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Move the bar."""
        position = loop.position
        if self._bar is None:
            return
        self._bar.update(
            self._task,
            completed=position.step,
            epoch=position.epoch + 1,
            rate=f"{position.step / position.seconds:.0f} steps/s",
            figure=f"objective {position.objective_sum / position.seen:.2f}",
        )

    def epoch_ended(self, loop: Loop, record: EpochRecord) -> None:
        """Print a line, or none for most epochs of a long training that is not on a terminal."""
        if not (self._console.is_terminal or is_reported(record.epoch, loop.settings.epochs)):
            return
        held_out = ""
        if record.bound is not None and record.bound_standard_error is not None:
            held_out = f"   held-out bound {record.bound:.2f} ± {record.bound_standard_error:.2f}"
            if record.bounds:
                held_out += f" ({min(record.bounds):.2f} to {max(record.bounds):.2f})"
        rate = record.step / record.seconds
        line = f"epoch {record.epoch:>3}   objective {record.objective:.2f}{held_out}   {rate:.0f} steps/s"
        self._console.print(line, highlight=False)


def _opening(run: Run, data: DataSet, loop: Loop) -> list[str]:
    sizes = ", ".join(f"{len(getattr(data, split))} {split}" for split in ("train", "validation", "test"))
    count = sum(parameter.numel() for parameter in loop.program.parameters())
    shape = "x".join(map(str, data.event_shape))
    config = run.config
    lines = [
        f"data      {data.name}: {sizes} images of {shape}, split {data.split}, binarize {data.train.binarize}",
        f"program   {config.model}, {count:,} parameters, on {loop.train.device}",
        f"training  {config.estimator} by {config.optimizer} at {config.learning_rate:g}, "
        f"batches of {config.batch_size}, {config.epochs} epochs",
        f"engine    {loop.engine_name} ({loop.why})",
    ]
    if loop.engine_name.startswith("compiled"):
        lines.append("compiling, which takes ten seconds or more")
    if loop.position.step:
        lines.append(f"resuming  after step {loop.position.step}, in epoch {loop.position.epoch + 1}")
    return lines


def say_pictures(console: Console, pictures: Pictures) -> None:
    """Print the path of each picture, and why others are left out."""
    for file in pictures.files:
        say(console, f"picture   {file}")
    for name, why in pictures.left_out.items():
        say(console, f"left out  {name}: {why}")


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is, without markup."""
    console.print(line, style=style, highlight=False, markup=False)


@contextmanager
def progress_bars(console: Console, unit: str) -> Iterator[Progress]:
    """Show a bar for each task; yields the callback that moves them."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), TextColumn(f"{{task.completed}}/{{task.total}} {unit}")
    with RichProgress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def tick(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield tick
