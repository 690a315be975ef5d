"""The command line: options in, calls of the library out. Errors a user can cause are one line and status 2."""

import difflib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import jsonargparse
from rich.console import Console

from pyro_vae import benchmarking, commands, comparing, evaluating, gallery
from pyro_vae._version import __version__
from pyro_vae.config import NOT_COMPARED, ComparisonConfig, RunConfig
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.parts import PARTS

COMMANDS: dict[str, Callable[[Any, Console], int]] = {
    "bench": benchmarking.bench,
    "check": commands.check,
    "compare": comparing.compare,
    "evaluate": evaluating.evaluate_run,
    "sample": commands.sample,
    "reconstruct": commands.reconstruct,
    "plot": commands.plot,
}
KINDS = {  # the parser's words for a type, and ours; the first that fits
    "list[int]": "a list of whole numbers such as '[400, 200]'",
    "dict[str": "a mapping such as '{depth: 2}'",
    "'float'": "a number",
    "'int'": "a whole number",
}
OPTIONS = [field.name for field in fields(RunConfig)]


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an :class:`InputError`-like usage error."""
        raise UsageError(_one_line(message, self))


class UsageError(Exception):
    """The command line itself is wrong."""


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
        print(f"pyro-vae: error: {error}", file=sys.stderr)
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
        return commands.train(parsed[name], {k: given[k] for k in OPTIONS if k in given}, console)
    return COMMANDS[name](parsed[name], console)


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="pyro-vae", description="A laboratory for variational autoencoders in Pyro.")
    parser.add_argument("--version", action="version", version=__version__)
    subcommands = parser.add_subcommands(required=True, dest="subcommand")
    subcommands.add_subcommand("train", _train_parser(), help="train a program on images")
    subcommands.add_subcommand("evaluate", _evaluate_parser(), help="how good a run is on held-out data, and how sure")
    subcommands.add_subcommand("compare", _compare_parser(), help="estimators side by side on one program")
    subcommands.add_subcommand("check", _check_parser(), help="cross-check Pyro's ELBO against the hand-written one")
    for name, what in (("sample", "generate from the prior"), ("reconstruct", "reconstruct test images")):
        subcommands.add_subcommand(name, _generate_parser(name), help=f"{what}: a picture, and arrays with --arrays")
    subcommands.add_subcommand("bench", _bench_parser(), help="speed: engines, stock Pyro and peers side by side")
    subcommands.add_subcommand("plot", _run_parser("plot"), help="draw all pictures of a run again")
    return parser


def _train_parser() -> Parser:
    parser = Parser(description="Train a program on images, in a run folder that can be resumed.")
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(RunConfig)
    parser.add_argument("--out", type=str | None, help="the run folder; runs/DATA-TIME by default")
    parser.add_argument("--overwrite", action="store_true", help="replace the run folder if it exists")
    parser.add_argument("--resume", type=str | None, metavar="RUN", help="continue this run; takes --epochs for more")
    return parser


def _compare_parser() -> Parser:
    parser = Parser(description="Compare estimators: bias, variance, signal-to-noise ratio, cost, and what they buy.")
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(RunConfig, skip=NOT_COMPARED)
    parser.add_class_arguments(ComparisonConfig)
    return parser


def _bench_parser() -> Parser:
    parser = Parser(description="Time a step of every engine and peer, in turn, after a check that their maths agree.")
    parser.add_class_arguments(benchmarking.BenchmarkOptions, skip={"quick"})
    parser.add_argument("--quick", action="store_true", help="a look of seconds, to see that all works")
    return parser


def _evaluate_parser() -> Parser:
    parser = _run_parser("evaluate")
    parser.description = "Judge a run on held-out data: bounds, log p(x), gaps, diagnostics; goes on where it stood."
    parser.add_argument("--data", type=str | None, help="other data of the same shape; the run's own by default")
    parser.add_argument("--binarize", type=str | None, help="dynamic, threshold or none; as in training by default")
    parser.add_argument("--split", type=str, default="test", help="test, validation or train")
    parser.add_class_arguments(EvaluationOptions, skip={"only", "skip"})
    parser.add_argument("--only", type=str | None, metavar="PARTS", help=f"of {', '.join(PARTS)}; with commas")
    parser.add_argument("--skip", type=str | None, metavar="PARTS", help="parts to leave out; with commas")
    parser.add_argument("--json", type=str | None, metavar="FILE", help="write the card to this file, too")
    parser.add_argument("--netcdf", type=str | None, metavar="FILE", help="write draws and weights for ArviZ")
    return parser


def _check_parser() -> Parser:
    parser = Parser(description="Compare Pyro's ELBO with the hand-written one: values and gradients.")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: both where CUDA is present")
    parser.add_argument("--json", type=str | None, metavar="FILE", help="write every figure to this file")
    return parser


def _run_parser(name: str) -> Parser:
    parser = Parser(description=f"{name} for a finished run")
    parser.add_argument("run", type=str, metavar="RUN", help="the run folder")
    parser.add_argument("--checkpoint", type=str, default="last", help="last or best")
    parser.add_argument("--replicate", type=int, default=0, help="which one, of a run with --replicates; from 0")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--data_root", type=str | None, help="if the data have moved")
    parser.add_argument("--seed", type=int, default=0, help="of binarization and of what is drawn")
    return parser


def _generate_parser(name: str) -> Parser:
    parser = _run_parser(name)
    if name == "sample":
        parser.add_argument("--count", type=int, default=gallery.SAMPLES, help="how many images")
    else:
        parser.add_argument("--count", type=int | None, help=f"how many images; {gallery.PAIRS}, or all if fewer")
    parser.add_argument("--arrays", type=str | None, metavar="FILE.npz", help="means, draws and latents as arrays")
    return parser


def _underscores(word: str) -> str:
    """Let --data-root be written for --data_root."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """Return the parser's message on one line, with the nearest option where one is unknown."""
    text = " ".join(message.split()).rstrip(".")
    wrong = re.fullmatch(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', text)
    if wrong:
        kind = next((words for python, words in KINDS.items() if python in text), "another kind of value")
        text = f"Expected {kind} for --{wrong[1]}; got {wrong[2]}"
    known = {name: name for name in ("train", *COMMANDS, *OPTIONS)}
    known |= {option.lstrip("-"): option for action in parser._actions for option in action.option_strings}
    unknown = re.search(r"(?:nrecognized arguments: |not accept option '|invalid choice: ')-*([^\s=']+)", text)
    near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.7) if unknown else []
    return f"{text}. Try {known[near[0]]}" if near else f"{text}. Try {parser.prog.replace(' [options]', '')} --help"
