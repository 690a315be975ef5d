"""Data as users have them: tensors, arrays, tuples and mappings of them, data sets and loaders of torch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.data.arrays import Array, is_array, to_tensor
from pyro_vae.data.columns import Column, Columns, Data
from pyro_vae.data.images import Images, as_images

Element: TypeAlias = Images | Tensor | Array
Given: TypeAlias = (
    Columns
    | Element
    | tuple[Element, ...]
    | list[Element]
    | Mapping[str, Element]
    | Dataset[object]
    | DataLoader[object]
)
"""Data as users give them; :func:`as_data` reads them."""

READ_TWICE = 20  # examples of a data set that are read again, to find out whether they stay the same


def as_data(given: Given, batch_size: int | None = None) -> Data:
    r"""Return data ready for batches.

    ===================================  ==================================================================
    given                                model and guide are called as
    ===================================  ==================================================================
    a tensor, an array, :class:`Images`  ``model(x)``; see :func:`as_images`
    a tuple or list of them              ``model(x, y)``; of a single one, ``model(x)``
    a mapping of them                    ``model(x=x, y=y)``
    a ``Dataset``                        as its examples are: tensors, tuples or mappings; read once, as a whole
    a ``DataLoader``                     likewise; examples are put together by its ``collate_fn``
    ===================================  ==================================================================

    In a tuple or a mapping a tensor reaches the program as it is. A floating array becomes float32, as in data files.

    Examples must not change from one reading to the next (a random crop): some are read twice. Batches are taken by
    :func:`pyro_vae.fit`, in an order of its own seed: a loader that would take other batches is refused. Its workers
    and pinned memory are not needed, its generator is not used.

    Args:
        given: the data.
        batch_size: of training, with which a loader must agree; None: held-out data, whose batches mean nothing.

    Raises:
        InputError: none of these, an array of text or objects, a data set that is read in one order only or differently
            each time, a loader whose batches are not those of ``fit``.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> as_data(TensorDataset(torch.rand(5, 2), torch.arange(5)))
        Columns(5 of 0 (2,), 1 (), cpu)
        >>> as_data(TensorDataset(torch.rand(5, 2)))
        Images(5 of 2, torch.float32, binarize='none', cpu)
    """
    if isinstance(given, Columns):
        return given
    if isinstance(given, DataLoader):
        _check_map_style(given.dataset)
        _check_loader(given, batch_size)
        return _as_columns(_read(given.dataset, given.collate_fn))
    if isinstance(given, Dataset):
        _check_map_style(given)
        return _as_columns(_read(given, default_collate))
    return _as_columns(given)


def _as_columns(given: object) -> Data:
    """Return tensors as data: a single one as images."""
    if isinstance(given, Mapping):
        wrong = [name for name in given if not (isinstance(name, str) and name.isidentifier())]
        if wrong:
            raise InputError("arguments of model and guide as keys", f"{wrong[0]!r}", '{"x": x, "y": y}')
        return Columns(kwargs={name: _column(value) for name, value in given.items()})
    if isinstance(given, tuple | list) and len(given) != 1 and not _numbers(given):
        return Columns(tuple(map(_column, given)))
    return as_images(given[0] if isinstance(given, tuple | list) and not _numbers(given) else given)  # type: ignore[arg-type]


def _numbers(given: tuple[object, ...] | list[object]) -> bool:
    """Whether a list is data written out, ``[[0.0, 1.0], ...]``, which is no tuple of tensors."""
    return bool(given) and all(isinstance(value, int | float | list | tuple) for value in given)


def _column(value: Any) -> Column:
    return to_tensor(value) if is_array(value) else value


def _check_map_style(dataset: Dataset[object]) -> None:
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        hint = "torch.stack(list(dataset)), for data that fit in memory"
        raise InputError("a data set with a length, whose examples can be taken in any order", name, hint)
    if len(dataset) == 0:
        raise InputError("at least one example", f"{name} of none", "a set that is not empty")


def _read(dataset: Dataset[object], collate: Callable[[list[object]], object]) -> object:
    """Return all examples of a data set, put together."""
    name, count = type(dataset).__name__, len(dataset)  # type: ignore[arg-type]
    if isinstance(dataset, TensorDataset) and collate is default_collate:
        return dataset.tensors  # what collating them gives, without a copy
    with isolated_rng(torch.device("cpu"), seed=0):  # a random transform draws
        examples = [dataset[number] for number in range(count)]
        first = _collated(examples[:READ_TWICE], collate, name)
        again = _collated([dataset[number] for number in range(min(count, READ_TWICE))], collate, name)
    if not _same(first, again):
        hint = (
            "a data set without random transforms, or Images(x, binarize='dynamic') for a new binarization each epoch"
        )
        raise InputError("examples that stay the same", f"{name}, another one at the second reading", hint)
    return _collated(examples, collate, name)


def _collated(examples: list[object], collate: Callable[[list[object]], object], name: str) -> object:
    try:
        return collate(examples)
    except (RuntimeError, TypeError, ValueError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        hint = "a transform to tensors, or DataLoader(..., collate_fn=...) that pads"
        raise InputError(f"examples of {name} that can be put together", got, hint) from error


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, Tensor):
        return first.shape == second.shape and bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
    return bool(first == second)


def _check_loader(loader: DataLoader[object], batch_size: int | None) -> None:
    """Refuse a loader whose batches are not those that training takes: all examples, each epoch in a fresh order."""
    samplers: Iterable[type] = (RandomSampler,) if batch_size else (RandomSampler, SequentialSampler)
    sampler = loader.sampler
    if loader.batch_size is None:
        raise InputError("a loader with a batch_size", "batches of its own", "fit(program, loader.dataset)")
    if batch_size is not None and loader.batch_size != batch_size:
        own = loader.batch_size
        raise InputError(f"a loader of the batch_size of fit, {batch_size}", own, f"fit(..., batch_size={own})")
    if isinstance(sampler, SequentialSampler) and batch_size is not None:
        hint = "DataLoader(..., shuffle=True), or fit(program, loader.dataset)"
        raise InputError("a loader that takes the examples in a fresh order each epoch", "shuffle=False", hint)
    partial = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(sampler.data_source)
    )
    if type(sampler) not in samplers or partial:
        got = f"{type(sampler).__name__} with replacement or of a part" if partial else type(sampler).__name__
        raise InputError("a loader that takes every example once", got, "fit(program, loader.dataset)")
    if loader.drop_last and len(loader.dataset) % loader.batch_size:  # type: ignore[arg-type]
        raise InputError("a loader that takes every example", "drop_last=True", "drop_last=False")
