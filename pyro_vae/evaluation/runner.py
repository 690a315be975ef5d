"""The evaluation of a program: part by part, chunk by chunk, to a card."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.types import Json, Progress, no_progress
from pyro_vae.data import Given
from pyro_vae.data.columns import event_shapes
from pyro_vae.evaluation.card.card import Card
from pyro_vae.evaluation.card.entry import Entry, in_part
from pyro_vae.evaluation.card.part import Part, Results
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.card.totals import paired_entries, total_entries
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.store import ChunkStore, chunk_seed, crc, in_chunks
from pyro_vae.evaluation.subject import Subject, look_at
from pyro_vae.program.contexts import evaluating

T = TypeVar("T")
R = TypeVar("R")


class Unable(Exception):
    """A part is not available for this program; the message says why."""


def evaluate(
    program: object,
    data: Given,
    *,
    train: Given | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
    save: str | Path | None = None,
    about: Mapping[str, str] | None = None,
    num_particles: int = 5000,
    iwae: Sequence[int] = (5, 50),
    num_examples: int | None = None,
    importance_examples: int = 1000,
    annealing_examples: int = 20,
    sandwich_examples: int = 10,
    annealing_chains: int = 10,
    annealing_temperatures: int = 500,
    prior_examples: int = 100,
    hmc_examples: int = 20,
    hmc_samples: int = 200,
    gap_examples: int = 100,
    gap_steps: int = 3000,
    surgery_examples: int = 2000,
    simulations: int = 1000,
    probe_examples: int = 10_000,
    draws_at_once: int = 2000,
    vectorize_particles: bool = True,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> Card:
    r"""Evaluate a program on held-out examples: bounds, log p(x), gaps, diagnostics, each with its standard error.

    The examples are binarized and shuffled once, by the seed: every subset is random and the beginning of every larger
    one. Memory is bounded by chunks of examples and, within them, of particles; the noise of a chunk is a function of
    (seed, part, number of the chunk).

    Args:
        program: a :class:`~pyro_vae.VAE`, any ``nn.Module`` with ``model(x)`` and ``guide(x)``, or a pair of
            functions ``(model, guide)``, with the parameters that Pyro's store has for them.
        data: held-out examples, as for :func:`pyro_vae.fit`, also in several tensors; of these the first is x.
        train: the training data, for the linear probe.
        device: ``auto`` (CUDA where present), ``cpu`` or ``cuda``.
        seed: fixes binarization, order and noise.
        progress: called as ``progress(part, done, total)``, in examples, after every chunk.
        save: a folder for finished chunks; a later call with the same program, data and options resumes from them, bit
            for bit on one device and number of threads.
        about: lines at the head of the card, such as ``{"data": "mnist, test"}``.
        num_particles: K of the importance-sampling estimate L_K of log p(x).
        iwae: k of the importance-weighted bounds; the largest is also the number of particles of the ELBO.
        num_examples: for ELBO, its terms, importance-weighted bounds, latent usage and reconstructions; all by default.
        importance_examples: for L_K, k-hat and effective sample size.
        annealing_examples: for annealed importance sampling.
        sandwich_examples: simulated examples for the bounds from both sides.
        annealing_chains: chains per example.
        annealing_temperatures: steps from the prior to the posterior.
        prior_examples: for the estimate by sampling the prior.
        hmc_examples: for the estimate from samples of the posterior, where latent dimensions are few.
        hmc_samples: of each of its 20 chains, after as many for warm-up.
        gap_examples: examples that get their own local q.
        gap_steps: largest number of steps of its optimisation.
        surgery_examples: for mutual information and marginal KL; the cost is quadratic.
        simulations: simulated examples for the calibration of q.
        probe_examples: training examples of the linear probe.
        draws_at_once: examples times particles scored together; bounds memory.
        vectorize_particles: several particles in one run, in a plate; False: in runs one by one, for programs that do
            not broadcast. Parts that place latents of their own are then left out.
        only: the parts to compute.
        skip: the parts to leave out.

    Returns:
        The card: ``print`` it, index it by a figure's name, or take the values of each example from ``per_example``.

    Raises:
        InputError: an invalid argument, or a part named by ``only`` that is not available for this program.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> x = torch.bernoulli(torch.full((40, 6), 0.3))
        >>> card = evaluate(VAE((6,), latent_dim=2), x, only=["bounds"], device="cpu")
        >>> card["elbo"].count, card["elbo"].unit
        (40, 'nats per example')
    """
    wanted = EvaluationOptions(
        num_particles=num_particles,
        iwae=_listed("iwae", iwae, "iwae=[5, 50]"),
        num_examples=num_examples,
        importance_examples=importance_examples,
        annealing_examples=annealing_examples,
        sandwich_examples=sandwich_examples,
        annealing_chains=annealing_chains,
        annealing_temperatures=annealing_temperatures,
        prior_examples=prior_examples,
        hmc_examples=hmc_examples,
        hmc_samples=hmc_samples,
        gap_examples=gap_examples,
        gap_steps=gap_steps,
        surgery_examples=surgery_examples,
        simulations=simulations,
        probe_examples=probe_examples,
        draws_at_once=draws_at_once,
        vectorize_particles=vectorize_particles,
        only=None if only is None else _listed("only", only, 'only=["bounds"]'),
        skip=_listed("skip", skip, 'skip=["hmc"]'),
    )
    names = wanted.parts(PARTS)
    subject = look_at(program, data, train, resolve_device(device), _checked(seed), wanted)
    names = [name for name in names if name in (wanted.only or []) or PARTS[name].concerns(subject)]
    folder = None if save is None else Path(save).expanduser()
    results, entries = Results(), list[Entry]()
    per_example: dict[str, Tensor] = {}
    per_latent: dict[str, Mapping[str, list[float]]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        part = PARTS[name]
        try:
            found = _result(name, part, subject, folder, progress)
        except Unable as reason:
            if name in (wanted.only or []):
                raise InputError(str(reason)) from reason.__cause__
            left_out[name] = str(reason)
            continue
        results.put(found)
        left_out |= {figure: why for figure, why in part.omits(subject).items() if why}
        per_example |= part.per_example(found)
        per_latent |= part.per_latent(found)
        entries += [in_part(entry, name) for entry in part.entries(subject, found)]
    for name, entry in [*paired_entries(results), *total_entries(subject, results)]:
        entries.insert(1 + [known.part for known in entries].index(name), in_part(entry, name))
    return Card(tuple(entries), _about(subject, about or {}), left_out, per_example, subject.index, per_latent)


def _listed(name: str, values: Iterable[T], hint: str) -> list[T]:
    """Return a sequence as a list; a text is no sequence of names."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} as a list", repr(values), hint)
    return list(values)


def _result(name: str, part: Part[R], subject: Subject, folder: Path | None, progress: Progress) -> R:
    """Return the result of one part, from its finished chunks where there are any."""
    refusal = part.why_not(subject)
    if refusal:
        raise Unable(refusal)
    depends = {option: getattr(subject.options, option) for option in part.options}
    chunk, total = part.chunk(subject), min(part.count(subject), len(subject))
    determined_by = {**subject.fingerprint, **depends, **part.depends(subject), "part": name, "chunk": chunk}
    if part.takes_train and subject.train is not None:
        determined_by["train"] = crc({"pixels": subject.train.pixels, "labels": subject.train.labels})
    store = ChunkStore(folder, name, determined_by)

    def work(where: slice, number: int) -> R:
        seed = chunk_seed(subject.seed, name, number)
        try:
            with evaluating(subject.program, subject.x.device, seed):
                return part.work(subject, where, seed)
        except InputError as error:
            raise Unable(str(error)) from error

    progress(name, 0, total)
    return in_chunks(store, total, chunk, work, part.result, lambda done: progress(name, done, total))


def _about(subject: Subject, given: Mapping[str, str]) -> dict[str, Json]:
    count = sum(parameter.numel() for parameter in subject.program.parameters())
    latents = ", ".join(f"{n} {tuple(s.shape)}{' discrete' * s.discrete}" for n, s in subject.latents.items())
    kind = "a probability" if subject.discrete else "a density"
    return {
        "data": f"{len(subject)} of shape {_shapes(subject)}",
        **given,
        "pixels": subject.pixels,
        **({} if subject.options.vectorize_particles else {"particles": "in runs one by one"}),
        "likelihood": f"{subject.likelihood}, {kind} of x",
        "program": f"{type(subject.program).__name__}, {count:,} parameters, latents {latents}",
        "seed": str(subject.seed),
        "fingerprint": dict(subject.fingerprint),
        "options": subject.options.as_dict(),
    }


def _shapes(subject: Subject) -> str:
    shapes = {name: "x".join(map(str, shape)) or "()" for name, shape in event_shapes(subject.data).items()}
    return shapes[0] if shapes.keys() == {0} else ", ".join(f"{shape} as {name}" for name, shape in shapes.items())


def _checked(seed: int) -> int:
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("a seed that is a whole number of at least 0", seed, "seed=0")
    return seed
