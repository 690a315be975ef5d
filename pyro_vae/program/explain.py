"""Errors in a user's model or guide, as one line that says where they were raised."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.base.errors import InputError

RUNS = "that runs on a batch, all but the batch in event dimensions by .to_event"
FOUND = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # in a user's code


@contextmanager
def explained(what: str = RUNS) -> Iterator[None]:
    """Turn an error in the user's code into one line that says where it was raised; the cause stays chained."""
    try:
        yield
    except FOUND as error:
        if isinstance(error, InputError):
            raise
        raise program_error(error, what) from error


def program_error(
    error: Exception, what: str, hint: str = "running model and guide on a small batch by hand"
) -> InputError:
    """Return an InputError for a program whose code raised: what was expected of it, and the line that raised."""
    foreign = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(folder in Path(frame.filename).parents for folder in foreign)]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return InputError(f"a program {what}", f"{type(error).__name__}{place}: {first}", hint)
