"""What the options of commands share."""

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from jsonargparse.typing import register_type


class Dataclass(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


T = TypeVar("T", bound=Dataclass)  # the options of a command


class Words(list[str]):
    """Words separated by commas, such as ``bounds,gaps``; the parser passes them on as a plain list."""

    def __init__(self, words: str | Iterable[str] = ()) -> None:
        parts = words.split(",") if isinstance(words, str) else words
        super().__init__(part.strip() for part in parts if part.strip())


register_type(Words, ",".join, Words)


def part(kind: type[T], options: T) -> T:
    """Return the fields that a command's options have from one of their base classes, as an instance of it.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     epochs: int = 20
        >>> @dataclass(frozen=True)
        ... class Options(Settings):
        ...     out: str = "run"
        >>> part(Settings, Options(epochs=3))
        Settings(epochs=3)
    """
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})
