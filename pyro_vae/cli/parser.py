"""From words to a command and its options: the parser of all commands, built from their table."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import getdoc
from typing import Any, Generic, NoReturn, TypeAlias

import jsonargparse
from rich.console import Console

from pyro_vae.base.errors import InputError
from pyro_vae.base.version import __version__
from pyro_vae.cli.options import T
from pyro_vae.training.folder import Run

KINDS = {  # the parser's words for a type, and ours; the first that fits
    "list[int]": "a list of whole numbers such as '[400, 200]'",
    "class 'list'": "a list of whole numbers such as '[5, 50]'",
    "dict[str": "a mapping such as '{depth: 2}'",
    "'float'": "a number",
    "'int'": "a whole number",
    "PositiveInt": "a whole number",
    "'bool'": "true or false",
}


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command: a function of its options and the console that returns the exit status.

    Args:
        options: a frozen dataclass; its required fields are positional unless they are ``kw_only``, its docstring is
            the help.
        run: the function.
        help: one line for the list of commands.
        hidden: fields of ``options`` that keep their defaults: no options on the command line.
        stored: the option that names a run whose configuration gives the defaults; such a command takes ``--config``.
        fresh: fields whose default does not come from that run.
    """

    options: type[T]
    run: Callable[[T, Console], int]
    help: str
    hidden: frozenset[str] = frozenset()
    stored: str | None = None
    fresh: frozenset[str] = frozenset()

    def names(self) -> set[str]:
        """Return the fields of ``options`` that are options on the command line."""
        return {field.name for field in fields(self.options)} - self.hidden

    def configuration(self, options: T) -> dict[str, object]:
        """Return the configuration of the run that ``options`` name, as defaults; nothing if they name none."""
        run = getattr(options, self.stored) if self.stored else None
        config = {} if run is None else asdict(Run.open(run).config)
        return {name: value for name, value in config.items() if name in self.names() - self.fresh}


Row: TypeAlias = Command[Any]  # a table cannot say that each row's function takes that row's options
Commands: TypeAlias = Mapping[str, Row]


class UsageError(Exception):
    """The command line itself is wrong."""


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""

    known: Sequence[str] = ()  # words to suggest beside its own options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a :class:`UsageError`."""
        raise UsageError(_one_line(message, self))


def parse(argv: Sequence[str], commands: Commands) -> tuple[Row, object]:
    """Return the command that the words name, and its options.

    Where they name a run whose configuration gives the defaults, the words are parsed again on top of it.

    Raises:
        UsageError: words that the parser does not take.
        InputError: values that the command does not take.
    """
    name, options = _parse(argv, build_parser(commands), commands)
    stored = commands[name].configuration(options)
    if stored:
        _, options = _parse(argv, build_parser(commands, {name: stored}), commands)
    return commands[name], options


def _parse(argv: Sequence[str], parser: "Parser", commands: Commands) -> tuple[str, object]:
    try:
        parsed = parser.parse_args(argv)
    except UnicodeDecodeError as error:  # the parser reads the file and does not look for this
        raise InputError("a --config in YAML", error, "config.yaml of a run") from None
    name: str = parsed.subcommand
    values = {key: parsed[name][key] for key in commands[name].names()}
    return name, commands[name].options(**values)


def build_parser(commands: Commands, defaults: Mapping[str, dict[str, object]] | None = None) -> Parser:
    """Return the parser of all commands; ``defaults``, by command, replace those of the dataclasses."""
    parser = Parser(
        prog="pyro-vae", description="A laboratory for variational autoencoders in Pyro.", allow_abbrev=False
    )
    parser.known = [*commands, *(name for command in commands.values() for name in command.names())]
    parser.add_argument("--version", action="version", version=__version__)
    subcommands = parser.add_subcommands(required=True, dest="subcommand")
    for name, command in commands.items():
        subcommands.add_subcommand(name, _subparser(command, (defaults or {}).get(name, {})), help=command.help)
    return parser


def _subparser(command: Row, defaults: dict[str, object]) -> Parser:
    parser = Parser(description=(getdoc(command.options) or "").partition("\n\n")[0], allow_abbrev=False)
    if command.stored:
        parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(command.options, as_group=False, as_positional=True, skip=set(command.hidden))
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # --overwrite alone means true
            action.nargs, action.const = "?", True
    parser.set_defaults(defaults)
    return parser


def _one_line(message: str, parser: Parser) -> str:
    """Return the parser's message on one line, with the nearest option where one is unknown."""
    text = " ".join(message.split()).rstrip(".")
    wrong = re.fullmatch(r'Parser key "([\w.]+)": (.*)', text)
    text = (wrong and _wrong_value(*wrong.groups())) or text
    missing = re.fullmatch(r"the following arguments are required: (\w+)\.(.*)", text)
    if missing:
        names = missing[2].replace(f"{missing[1]}.", "")
        text = f"Expected {names} for {missing[1]}; got none. Try {parser.prog} {missing[1]} --help"
    return text if ". Try " in text else f"{text}. Try {_hint(text, parser)}"


def _hint(text: str, parser: Parser) -> str:
    """Return the nearest option to an unknown one, or where the help is."""
    known = {name: name for name in parser.known}
    known |= {option.lstrip("-"): option for action in parser._actions for option in action.option_strings}
    unknown = re.search(r"(?:nrecognized arguments: |not accept option '|invalid choice: ')-*([^\s=']+)", text)
    near = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.7) if unknown else []
    return known[near[0]] if near else f"{parser.prog.replace(' [options]', '')} --help"


def _wrong_value(name: str, text: str) -> str | None:
    """Return what was expected and got where a value does not fit an option's type."""
    patterns = ("(?:Got|Given) value: (.*)", ": invalid literal .*: '(.*)'", r": (\S+) does not conform")
    value = next((found[1] for pattern in patterns if (found := re.search(pattern, text))), None)
    if value is None:
        return None
    if "does not conform to restriction v>0" in text:
        article = "" if name.endswith("s") else "a "
        return f"Expected {article}{name} of at least 1; got {value}. Try --{name} 1"
    kind = next((words for python, words in KINDS.items() if python in text), "another kind of value")
    return f"Expected {kind} for --{name}; got {value}"
