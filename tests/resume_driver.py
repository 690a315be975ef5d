"""A process that trains in forked children and lets them be killed: imports are paid for once.

It reads one JSON object a line from standard input and answers each with one line, the exit status as of
``subprocess`` (-9: killed). ``{"argv": [...], "log": FILE, "plan": NAME, "at": N, "seconds": S}`` runs ``pyro-vae`` in
a child; the plan says where the child kills itself, at the N-th occasion; S is the time between checkpoints.
"""

import functools
import io
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from pyro_vae.cli import train as commands
from pyro_vae.cli.main import main
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.figures import gallery
from pyro_vae.training import folder as run
from pyro_vae.training import hooks as recording


def send(number):
    os.kill(os.getpid(), number)


def kill():
    send(signal.SIGKILL)


def after(owner, name, at, action=kill, when=lambda *args: True):
    """Call ``action`` after the ``at``-th call of a function for which ``when`` holds."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        result = original(*args, **kwargs)
        if when(*args):
            calls.append(name)
            if len(calls) == at:
                action()
        return result

    setattr(owner, name, patched)


def half_a_checkpoint(at):
    """Write the ``at``-th checkpoint up to its middle, and die."""
    save, calls = torch.save, []

    def patched(value, file):
        calls.append(file)
        if len(calls) == at:
            whole = io.BytesIO()
            save(value, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            kill()
        save(value, file)

    torch.save = patched


def half_a_line(at):
    """Write the ``at``-th line of the metrics up to its middle, and die."""
    write, calls = recording.MetricsHook._write, []

    def patched(self, line):
        calls.append(line)
        if len(calls) == at:
            self._file.write(json.dumps(line)[:20])
            self._file.flush()
            kill()
        write(self, line)

    recording.MetricsHook._write = patched


def interrupt_twice():
    send(signal.SIGINT)
    send(signal.SIGINT)


PLANS = {
    "none": lambda at: None,
    "outside": lambda at: None,  # the parent kills, after that many milliseconds
    "inside create": functools.partial(after, run, "write_json"),
    "created": functools.partial(after, run.Run, "create"),
    "resuming": functools.partial(after, recording.FolderHook, "started"),
    "dropping lines": functools.partial(after, recording, "_keep_until"),
    "step": functools.partial(after, SVIEngine, "step"),
    "checkpoint": functools.partial(after, recording.CheckpointHook, "_save"),
    "inside a checkpoint": half_a_checkpoint,
    "after the best": functools.partial(after, run.Run, "save_checkpoint", when=lambda *args: args[2:] == ("best",)),
    "metrics": functools.partial(after, recording.MetricsHook, "epoch_ended"),
    "inside a line": half_a_line,
    "trained": functools.partial(after, recording.MetricsHook, "closed"),
    "result": functools.partial(after, commands, "write_json"),
    "interrupt": functools.partial(after, SVIEngine, "step", action=functools.partial(send, signal.SIGINT)),
    "interrupt twice": functools.partial(after, SVIEngine, "step", action=interrupt_twice),
}


def child(order):
    torch.set_num_threads(1)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    commands.CheckpointHook = functools.partial(recording.CheckpointHook, seconds=order["seconds"])
    commands.MetricsHook = functools.partial(recording.MetricsHook, every=2)
    gallery.plot_all = lambda *args, **kwargs: gallery.Pictures(
        [], {}
    )  # pictures are tested elsewhere and take most of the time
    PLANS[order["plan"]](order["at"])
    return main(order["argv"])


def answer(order):
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = child(order)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if order["plan"] == "outside":
        checkpoint = Path(order["argv"][order["argv"].index("--out") + 1]) / "checkpoints" / "last.pt"
        while not checkpoint.exists():
            time.sleep(0.01)
        time.sleep(order["at"] / 1000)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
