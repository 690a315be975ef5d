"""The command line: options in, calls of the library out. Errors a user can cause are one line and status 2."""

import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from pyro_vae.base.errors import InputError, NonFiniteError
from pyro_vae.cli import bench, check, compare, evaluate, inspect, train
from pyro_vae.cli.parser import OPTIONS, UsageError, build_parser

COMMANDS: dict[str, Callable[[Any, Console], int]] = {
    "bench": bench.bench,
    "check": check.check,
    "compare": compare.compare,
    "evaluate": evaluate.evaluate_run,
    "sample": inspect.sample,
    "reconstruct": inspect.reconstruct,
    "plot": inspect.plot,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0: done. 1: a check found a mismatch, or training met a number that is not finite. 2: something given cannot
    be used. 130: interrupted.
    """
    console = Console(stderr=False, soft_wrap=True)
    argv = [_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        return _dispatch(argv, console)
    except (InputError, UsageError) as error:
        print(f"pyro-vae: error: {_as_options(str(error))}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"pyro-vae: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyro-vae: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _dispatch(argv: Sequence[str], console: Console) -> int:
    parser = build_parser()
    try:
        parsed = parser.parse_args(argv)
    except UnicodeDecodeError as error:  # the parser reads the file and does not look for this
        raise InputError("a --config in YAML", error, "config.yaml of a run") from None
    name = parsed.subcommand
    if name == "train":
        given = parser.parse_args(argv, defaults=False)[name]
        return train.train(parsed[name], {k: given[k] for k in OPTIONS if k in given}, console)
    return COMMANDS[name](parsed[name], console)


def _as_options(message: str) -> str:
    """Write ``name=value`` behind "Try" as ``--name value``."""
    before, word, hint = message.rpartition(". Try ")
    known = "|".join(OPTIONS)
    return before + word + re.sub(rf"(?<!\S)({known})=([\"']?)([^\s,\"']*[^\s,\"'.])\2", r"--\1 \3", hint)


def _underscores(word: str) -> str:
    """Let --data-root be written for --data_root."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
