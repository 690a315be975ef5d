"""The command ``check``."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.files import check_output, write_json
from pyro_vae.cli import tables
from pyro_vae.cli.progress import say
from pyro_vae.studies.crosscheck import crosscheck


@dataclass(frozen=True)
class CheckOptions:
    """Compare Pyro's ELBO with the hand-written one: values and gradients.

    Args:
        device: cpu, cuda, or auto: both where CUDA is available.
        json: write every figure to this file.
    """

    device: str = "auto"
    json: str | None = None


def check(options: CheckOptions, console: Console) -> int:
    """Cross-check on this machine; 1 on any mismatch."""
    check_output(options.json)
    device = resolve_device(options.device)
    both = options.device == "auto" and device.type == "cuda"
    devices = [torch.device("cpu"), device] if both else [device]
    with console.status("comparing") as status:
        rows = crosscheck(devices, lambda what, done, total: status.update(f"{what}, {done} of {total}"))
    mismatches = [row for row in rows if not row.passed]
    if options.json is not None:
        lines = [{**asdict(row), "passed": row.passed} for row in rows]
        write_json(Path(options.json), {"passed": not mismatches, "torch": torch.__version__, "rows": lines})
    console.print(tables.check_table(rows))
    for line in tables.z_score_lines(rows):
        say(console, line)
    if mismatches:
        for line in tables.mismatch_lines(rows):
            say(console, line)
        console.print(f"[red]{len(mismatches)} of {len(rows)} comparisons do not agree[/]")
        return 1
    console.print(f"[green]all {len(rows)} comparisons agree[/]")
    return 0
