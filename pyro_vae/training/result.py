"""The result of training."""

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd

from pyro_vae.base.statistics import Estimate
from pyro_vae.base.types import State
from pyro_vae.models.replicates import Replicates
from pyro_vae.program.protocol import Program
from pyro_vae.training.loop import EpochRecord

SHOWN = 10  # epochs in the printed table


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A trained program and its history; prints as a short table, nats per example.

    Args:
        program: the program, trained in place.
        history: one record per epoch.
        stopped: why training ended before the last epoch; empty if it did not.
        state: all that resuming needs (:func:`pyro_vae.fit`'s ``resume``); a copy, which further training leaves alone.

    Example:
        >>> record = EpochRecord(1, 4, -2.5, 1.0, 0.001, 0.1, bound=-2.25, bound_standard_error=0.01, improved=True)
        >>> FitResult(None, [record], "max_steps=4", {})
        1 epoch; stopped: max_steps=4
        epoch step objective  held-out bound KL weight
            1    4     -2.50 -2.250 ± 0.010*      1.00
        * best held-out bound
    """

    program: Program | Replicates
    history: list[EpochRecord]
    stopped: str
    state: State

    def to_dataframe(self) -> pd.DataFrame:
        """Return the history as a data frame, one row per epoch, a column per field of ``EpochRecord``."""
        return pd.DataFrame(
            [asdict(record) for record in self.history], columns=[field.name for field in fields(EpochRecord)]
        )

    def __repr__(self) -> str:
        table: str = self._table().to_string(index=False)
        return "\n".join([self._title(), *([table] if self.history else []), *self._notes()])

    def _repr_html_(self) -> str:
        paragraphs = [f"<p>{html.escape(line)}</p>" for line in (self._title(), *self._notes())]
        table: str = self._table().to_html(index=False)
        return "".join([paragraphs[0], table, *paragraphs[1:]])

    def _title(self) -> str:
        count = len(self.history)
        begun = self.state["position"]["batch"] if self.state else 0
        more = f" and {begun} step{'' if begun == 1 else 's'} of the next" if begun else ""
        stopped = f"; stopped: {self.stopped}" if self.stopped else ""
        return f"{count} epoch{'' if count == 1 else 's'}{more}{stopped}"

    def _notes(self) -> list[str]:
        dropped = len(self.history) - SHOWN
        notes = [f"the first {dropped} epochs are not shown"] if dropped > 0 else []
        return notes + (["* best held-out bound"] if any(record.improved for record in self.history) else [])

    def _table(self) -> pd.DataFrame:
        best = max((record.epoch for record in self.history if record.improved), default=None)
        rows = [_row(record, best) for record in self.history[-SHOWN:]]
        return pd.DataFrame(rows, columns=["epoch", "step", "objective", "held-out bound", "KL weight"])


def _row(record: EpochRecord, best: int | None) -> Sequence[str]:
    bound = "–"
    if record.bound is not None and record.bound_standard_error is not None:
        bound = str(Estimate(record.bound, record.bound_standard_error, 0)) + ("*" if record.epoch == best else "")
    return [str(record.epoch), str(record.step), f"{record.objective:.2f}", bound, f"{record.kl_weight:.2f}"]
