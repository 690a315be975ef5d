"""What the options of commands share."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

from jsonargparse.typing import register_type

T = TypeVar("T")


class Words(list[str]):
    """Words with commas between, such as ``bounds,gaps``."""

    def __init__(self, words: str | Iterable[str] = ()) -> None:
        parts = words.split(",") if isinstance(words, str) else words
        super().__init__(part.strip() for part in parts if part.strip())

    def __str__(self) -> str:
        return ",".join(self)


register_type(Words, str, Words)


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
    return kind(**{field.name: getattr(options, field.name) for field in fields(cast(Any, kind))})
