"""Records that print as a table and turn into a data frame."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TypeVar

import pandas as pd

from pyro_vae.base.statistics import Estimate

R = TypeVar("R")


class Records(tuple[R, ...], ABC):
    """A tuple of records that prints as a table, in a terminal and in a notebook."""

    @abstractmethod
    def to_dataframe(self) -> pd.DataFrame:
        """Return the records as numbers; each standard error has its own column."""

    @abstractmethod
    def shown(self) -> pd.DataFrame:
        """Return the table that is printed, as text."""

    def __repr__(self) -> str:
        text: str = self.shown().to_string(index=False)
        return text

    def _repr_html_(self) -> str:
        table: str = self.shown().to_html(index=False)
        return table


def columns_of(record: object) -> dict[str, object]:
    """Return the fields of a dataclass by name; an :class:`Estimate` gives a value and its standard error.

    Fields that are tuples are left out.

    Example:
        >>> from dataclasses import dataclass
        >>> from pyro_vae.base import Estimate
        >>> @dataclass
        ... class Record:
        ...     name: str
        ...     bound: Estimate
        >>> columns_of(Record("iwae", Estimate(-90.5, 0.25)))
        {'name': 'iwae', 'bound': -90.5, 'bound_standard_error': 0.25}
    """
    found: dict[str, object] = {}
    for field in fields(record):  # type: ignore[arg-type]  # any dataclass
        value = getattr(record, field.name)
        if isinstance(value, Estimate):
            found |= {field.name: value.value, f"{field.name}_standard_error": value.standard_error}
        elif not isinstance(value, tuple):
            found[field.name] = value
    return found
