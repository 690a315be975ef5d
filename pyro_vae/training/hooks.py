"""Hooks that write a run: its folder, its metrics as JSON lines and for TensorBoard, its checkpoints."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from torch.utils.tensorboard import SummaryWriter

from pyro_vae.base.errors import NonFiniteError
from pyro_vae.base.files import atomic_write
from pyro_vae.base.types import Json
from pyro_vae.data import DataSet
from pyro_vae.engines.protocol import StepInfo
from pyro_vae.training.folder import Run
from pyro_vae.training.loop import EpochRecord, Hook, Loop, Position


class FolderHook(Hook):
    """Makes the run folder once training is certain to begin, so that a refused program leaves nothing behind."""

    def __init__(self, run: Run, data: DataSet, *, resumed: bool, overwrite: bool) -> None:
        self._run, self._data, self._resumed, self._overwrite = run, data, resumed, overwrite

    def started(self, loop: Loop) -> None:
        """Make the folder, or, for a resumed run, write its configuration again."""
        if self._resumed:
            self._run.save_config()
        else:
            self._run.create(self._data, overwrite=self._overwrite)


class MetricsHook(Hook):
    """Writes one line every ``every`` steps and one every epoch; a resumed run drops the lines that it will repeat.

    A line of kind ``step`` holds the objective of one batch, a line of kind ``epoch`` the mean over the
    epoch and the held-out bound with its standard error; all in nats per example.
    """

    def __init__(self, run: Run, every: int = 50) -> None:
        self._run, self._every = run, every
        self._files = ExitStack()

    def started(self, loop: Loop) -> None:
        """Open both files at the position of the loop."""
        _keep_until(self._run, loop.position)
        self._file = self._files.enter_context(self._run.metrics.open("a"))
        board = SummaryWriter(str(self._run.path / "tensorboard"), purge_step=loop.position.step + 1)
        self._writer = self._files.enter_context(board)

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Write a step."""
        if loop.position.step % self._every == 0:
            self._write({"kind": "step", "step": loop.position.step, **asdict(info)})

    def epoch_ended(self, loop: Loop, record: EpochRecord) -> None:
        """Write an epoch."""
        self._write({"kind": "epoch", **asdict(record)})

    def closed(self) -> None:
        """Close both files."""
        self._files.close()

    def _write(self, line: dict[str, Json]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])


def _keep_until(run: Run, position: Position) -> None:
    """Drop the lines of steps that will be repeated, and a last line that a kill cut short."""
    if not run.metrics.exists():
        return
    kept = []
    for text in run.metrics.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        done = position.epoch if line["kind"] == "epoch" else position.step
        if line[line["kind"]] <= done:
            kept.append(text)
    with atomic_write(run.metrics) as partial:
        partial.write_text("".join(f"{text}\n" for text in kept))


class CheckpointHook(Hook):
    """Writes ``last.pt`` (every epoch, and every ``seconds`` within one) and ``best.pt`` (best held-out bound)."""

    def __init__(self, run: Run, seconds: float = 30.0) -> None:
        self._run, self._seconds = run, seconds

    def started(self, loop: Loop) -> None:
        """Save the starting point too: a run killed in its first second can be resumed."""
        self._save(loop)

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Save from time to time; the time does not change what is trained."""
        if loop.settled and time.monotonic() - self._saved >= self._seconds:
            self._save(loop)

    def epoch_ended(self, loop: Loop, record: EpochRecord) -> None:
        """Save the epoch, and first the best one, so that a kill between the two loses neither."""
        if record.improved:
            self._run.save_checkpoint(loop.state_dict(), "best")
        self._save(loop)

    def stopped(self, loop: Loop) -> None:
        """Save where a stop was asked for."""
        self._save(loop)

    def _save(self, loop: Loop) -> None:
        lost = [name for name, p in loop.program.named_parameters() if not p.isfinite().all()]
        if lost:  # the checkpoint on disk is the last good one and stays
            raise NonFiniteError(loop.position.step, loop.position.objective_sum, ", ".join(lost))
        self._run.save_checkpoint(loop.state_dict())
        self._saved = time.monotonic()


class InterruptHook(Hook):
    """Lets the first Ctrl-C end the run after the current step; a second one interrupts at once."""

    def __init__(self) -> None:
        self._asked = False

    def stepped(self, loop: Loop, info: StepInfo) -> None:
        """Stop, if asked to."""
        if self._asked:
            loop.stop("interrupted")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT within the block; the former handler is put back."""
        former = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
