"""The parser of all commands."""

import difflib
import re
from dataclasses import fields
from typing import NoReturn

import jsonargparse

from pyro_vae.base.version import __version__
from pyro_vae.cli.bench import BenchmarkOptions
from pyro_vae.cli.compare import NOT_COMPARED, ComparisonConfig
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.figures import gallery
from pyro_vae.training.config import RunConfig

KINDS = {  # the parser's words for a type, and ours; the first that fits
    "list[int]": "a list of whole numbers such as '[400, 200]'",
    "dict[str": "a mapping such as '{depth: 2}'",
    "'float'": "a number",
    "'int'": "a whole number",
}


NAMES = ("train", "bench", "check", "compare", "evaluate", "sample", "reconstruct", "plot")
OPTIONS = [field.name for field in fields(RunConfig)]


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an :class:`InputError`-like usage error."""
        raise UsageError(_one_line(message, self))


class UsageError(Exception):
    """The command line itself is wrong."""


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
    parser.add_class_arguments(BenchmarkOptions, skip={"quick"})
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


def _one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """Return the parser's message on one line, with the nearest option where one is unknown."""
    text = " ".join(message.split()).rstrip(".")
    wrong = re.fullmatch(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', text)
    if wrong:
        kind = next((words for python, words in KINDS.items() if python in text), "another kind of value")
        text = f"Expected {kind} for --{wrong[1]}; got {wrong[2]}"
    known = {name: name for name in (*NAMES, *OPTIONS)}
    known |= {option.lstrip("-"): option for action in parser._actions for option in action.option_strings}
    unknown = re.search(r"(?:nrecognized arguments: |not accept option '|invalid choice: ')-*([^\s=']+)", text)
    near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.7) if unknown else []
    return f"{text}. Try {known[near[0]]}" if near else f"{text}. Try {parser.prog.replace(' [options]', '')} --help"
