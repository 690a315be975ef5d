"""Evaluation: every figure that says how good a program is, on data it was not trained on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.data import Images
from pyro_vae.evaluation.card.card import Evaluation
from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.card.latents import per_dimension
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.card.totals import all_data_entries, paired_entries
from pyro_vae.evaluation.options import EvaluationOptions, options_of
from pyro_vae.evaluation.store import ChunkStore, Values, chunk_seed, crc, in_chunks
from pyro_vae.evaluation.subject import Subject, look_at
from pyro_vae.program.contexts import evaluating

Progress = Callable[[str, int, int], None]


class Unable(Exception):
    """A part cannot be computed for this program; the message says why."""


def evaluate(
    program: object,
    data: Images | Tensor,
    *,
    train: Images | Tensor | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    save: str | Path | None = None,
    about: Mapping[str, str] | None = None,
    **options: Any,
) -> Evaluation:
    r"""Judge a program on held-out data: bounds, log p(x), gaps, diagnostics, each with its standard error.

    The data are binarized once, with the seed, and taken in an order drawn by the seed, so that every subset is a
    random one and the beginning of every greater one. The work goes in chunks of data and, within them, of particles;
    the noise of a chunk is a function of (seed, part, number of the chunk).

    Args:
        program: a :class:`~pyro_vae.VAE`, any ``nn.Module`` with ``model(x)`` and ``guide(x)``, or a pair of
            functions ``(model, guide)``, whose parameters are taken from Pyro's store where it has them.
        data: held-out data; a plain tensor's first dimension is the data.
        train: the training data, for the linear probe.
        device: ``auto`` (CUDA where present), ``cpu`` or ``cuda``.
        seed: fixes binarization, order and noise.
        progress: called as ``progress(part, done, total)``, in data, after every chunk.
        save: a folder for finished chunks; a later call with the same program, data and options goes on from them, bit
            for bit on one device and number of threads.
        about: lines that head the card, such as ``{"data": "mnist, test"}``.
        options: the fields of :class:`~pyro_vae.evaluation.EvaluationOptions`.

    Returns:
        The card; ``print`` it, index it by a figure's name, or take the values datum by datum from ``per_datum``.

    Raises:
        InputError: an argument that does not fit, or a part asked for by ``only`` that this program does not admit.

    Example:
        >>> from pyro_vae import VAE
        >>> x = torch.bernoulli(torch.full((40, 6), 0.3))
        >>> card = evaluate(VAE((6,), latent_dim=2), x, only=["bounds"], device="cpu")
        >>> card["elbo"].count, card["elbo"].unit
        (40, 'nats per datum')
    """
    wanted = options_of(options)
    names = wanted.parts(PARTS)
    subject = look_at(program, data, train, resolve_device(device), _checked(seed), wanted)
    found: dict[str, Values] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            found[name] = _values(name, PARTS[name], subject, save, progress)
        except Unable as reason:
            if name in (wanted.only or []):
                raise InputError(str(reason)) from reason.__cause__
            left_out[name] = str(reason)
    per_datum = {key: value for name in found if PARTS[name].per_datum for key, value in found[name].items()}
    entries, per_latent = _entries(subject, found), per_dimension(found.get("latents", {}))
    return Evaluation(entries, _about(subject, about or {}), left_out, per_datum, subject.index, per_latent)


def _entries(subject: Subject, found: dict[str, Values]) -> tuple[Entry, ...]:
    entries = [replace(entry, part=name) for name in found for entry in PARTS[name].entries(subject, found[name])]
    for name, entry in [*paired_entries(found), *all_data_entries(subject, found)]:
        where = 1 + [known.part for known in entries].index(name)
        entries.insert(where, replace(entry, part=name))
    return tuple(entries)


def _values(name: str, part: Part, subject: Subject, save: str | Path | None, progress: Progress | None) -> Values:
    refusal = part.refuses(subject)
    if refusal:
        raise Unable(refusal)
    depends = {option: getattr(subject.options, option) for option in part.options}
    chunk, total = part.chunk(subject), min(part.count(subject), len(subject))
    determined_by = {**subject.fingerprint, **depends, **part.depends(subject), "part": name, "chunk": chunk}
    if part.takes_train and subject.train is not None:
        determined_by["train"] = crc({"pixels": subject.train.pixels, "labels": subject.train.labels})
    store = ChunkStore(None if save is None else Path(save).expanduser(), name, determined_by)

    def work(where: slice, number: int) -> Values:
        seed = chunk_seed(subject.seed, name, number)
        try:
            with evaluating(subject.program, subject.x.device, seed):
                return part.work(subject, where, seed)
        except InputError as error:
            raise Unable(str(error)) from error

    report = progress or (lambda part, done, total: None)
    report(name, 0, total)
    return in_chunks(store, total, chunk, work, lambda done: report(name, done, total))


def _about(subject: Subject, given: Mapping[str, str]) -> dict[str, Any]:
    shape = "x".join(map(str, subject.x.shape[1:]))
    count = sum(parameter.numel() for parameter in subject.program.parameters())
    latents = ", ".join(f"{n} {tuple(s.shape)}{' discrete' * s.discrete}" for n, s in subject.latents.items())
    kind = "a probability" if subject.discrete else "a density"
    return {
        "data": f"{len(subject)} of shape {shape}",
        **given,
        "pixels": subject.pixels,
        "likelihood": f"{subject.likelihood}, {kind} of x",
        "program": f"{type(subject.program).__name__}, {count:,} parameters, latents {latents}",
        "seed": str(subject.seed),
        "fingerprint": dict(subject.fingerprint),
        "options": {name: getattr(subject.options, name) for name in EvaluationOptions.__dataclass_fields__},
    }


def _checked(seed: int) -> int:
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("a seed that is a whole number of at least 0", seed, "--seed 0")
    return seed
