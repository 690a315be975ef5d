"""Hints of the library, which speak Python, as options of the command line."""

import ast
import json
import re
import shlex
from collections.abc import Collection

# A string, tuple, list or mapping whole, or a word without the stop that ends the sentence.
VALUE = r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|[^\s,;]*[^\s,;.)]"


def on_the_command_line(message: str, names: Collection[str]) -> str:
    """Write ``name=value`` as ``--name value`` behind the last "Try" of a message, for these names alone.

    Example:
        >>> on_the_command_line("Expected layer sizes; got hidden=(0,). Try hidden=(400, 200), eps=1.", ["hidden"])
        "Expected layer sizes; got hidden=(0,). Try --hidden '[400, 200]', eps=1."
    """
    before, word, hint = message.rpartition(". Try ")
    if not word or not names:
        return message
    known = "|".join(map(re.escape, sorted(names)))
    argument = re.compile(rf"(?<!\S)({known})=({VALUE})")  # a blank before: not the arguments in 'adam:eps=1'
    return before + word + argument.sub(lambda found: f"--{found[1]} {_value(found[2])}".rstrip(), hint)


def _value(text: str) -> str:
    r"""Write a Python literal as the command line takes it.

    Example:
        >>> [_value(text) for text in ("'svi'", "(400,)", "1e-3", "None", "True", "{'depth': 2}")]
        ['svi', "'[400]'", '1e-3', 'null', 'true', '\'{"depth": 2}\'']
    """
    try:
        value = ast.literal_eval(text)
        written = json.dumps(value)
    except (SyntaxError, TypeError, ValueError):  # no literal, or one that YAML has no word for, such as {...}
        return text
    if isinstance(value, str):
        return shlex.quote(value)
    return text if isinstance(value, float) else shlex.quote(written)
