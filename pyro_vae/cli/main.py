"""The command line: options in, calls of the library out. Errors a user can cause are one line and status 2."""

import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from pyro_vae.base.errors import InputError, NonFiniteError
from pyro_vae.cli.bench import BenchOptions, bench
from pyro_vae.cli.check import CheckOptions, check
from pyro_vae.cli.compare import NOT_COMPARED, CompareOptions, compare
from pyro_vae.cli.evaluate import EvaluateOptions, evaluate_run
from pyro_vae.cli.hints import on_the_command_line
from pyro_vae.cli.inspect import PlotOptions, ReconstructOptions, SampleOptions, plot, reconstruct, sample
from pyro_vae.cli.parser import Command, Commands, UsageError, parse
from pyro_vae.cli.train import TrainOptions, train

FILE_WIDTH = 160  # of tables where the output is no terminal

COMMANDS: Commands = {
    "train": Command(TrainOptions, train, "train a program on images", stored="resume"),
    "evaluate": Command(EvaluateOptions, evaluate_run, "how good a run is on held-out data, with standard errors"),
    "compare": Command(
        CompareOptions,
        compare,
        "estimators side by side on one program",
        hidden=NOT_COMPARED,
        stored="run",
        fresh=frozenset({"device"}),
    ),
    "check": Command(CheckOptions, check, "cross-check Pyro's ELBO against the hand-written one"),
    "sample": Command(SampleOptions, sample, "generate from the prior: a picture, and arrays with --arrays"),
    "reconstruct": Command(
        ReconstructOptions, reconstruct, "reconstruct test images: a picture, and arrays with --arrays"
    ),
    "bench": Command(BenchOptions, bench, "speed: engines, stock Pyro and peers side by side"),
    "plot": Command(PlotOptions, plot, "plot all pictures of a run again"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0: done. 1: a check found a mismatch, or training met a number that is not finite. 2: an input cannot be used.
    130: interrupted.
    """
    argv = [_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        command, options = parse(argv, COMMANDS)
        return command.run(options, _console())
    except UsageError as error:
        return _failed(str(error), 2)
    except (InputError, NonFiniteError) as error:
        names = next(COMMANDS[word].names() for word in argv if word in COMMANDS)
        return _failed(on_the_command_line(str(error), names), 2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("pyro-vae: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _console() -> Console:
    """Return the console; tables in a file or a pipe are not squeezed into the 80 columns of an unknown terminal."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=FILE_WIDTH)


def _failed(message: str, status: int) -> int:
    print(f"pyro-vae: error: {message}", file=sys.stderr)
    return status


def _underscores(word: str) -> str:
    """Let --data-root be written for --data_root."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
