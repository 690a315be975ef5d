"""The subject of an evaluation: a program and held-out examples, checked and described."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyro
import torch
from torch import Tensor

from pyro_vae.base.batch import Batch, tensors_of
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import generator
from pyro_vae.base.statistics import chunk_sizes
from pyro_vae.base.types import Json
from pyro_vae.data import Columns, Data, Given, Images, as_data
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.chunking import fitting
from pyro_vae.evaluation.methods.bounds import Scorer, scorer
from pyro_vae.evaluation.methods.observed_dims import observed_dims
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.store import code, crc
from pyro_vae.program.adapter import FunctionProgram, as_program
from pyro_vae.program.call import data_for
from pyro_vae.program.capabilities import Capabilities, find_capabilities, is_discrete, why_not
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.explain import explained
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import Site, sample_sites, trace_program
from pyro_vae.program.validation import Need, check_program

IMPORTANCE_CHUNK = 50  # examples per chunk of L_K, of particles in a plate
ONE_BY_ONE_CHUNK = 500
TRIED = 100  # examples that a program is checked on


@dataclass(frozen=True, eq=False)
class Latent:
    """A latent site: its shape within an example, inner plates included, and whether it is discrete."""

    shape: tuple[int, ...]
    discrete: bool


@dataclass(frozen=True, eq=False)
class Subject:
    """A program and held-out examples, binarized and shuffled.

    Args:
        program: on the device.
        data: the examples as they were given, on the device.
        x: (N, *event_shape), or the tensors of a call.
        labels: (N,), or None; of a program that gets them as an argument, None.
        index: (N,), the position of each example in the data set.
        train: the training data, for figures that need them; None, too, where they have several tensors.
        options: of the evaluation.
        seed: of binarization, order and noise.
        pixels: how the examples were binarized, in words.
        likelihood: the distribution of the observed sites.
        discrete: whether the likelihood is a probability (True) or a density.
        latents: the model's latent sites.
        capabilities: what of the program is available.
        lacks: why the program's plates do not do, for each need of :func:`.check_program`; empty where they do.
        fingerprint: what identifies this program and these examples.
    """

    program: Program
    data: Data
    x: Batch
    labels: Tensor | None
    index: Tensor
    train: Images | None
    options: EvaluationOptions
    seed: int
    pixels: str
    likelihood: str
    discrete: bool
    latents: Mapping[str, Latent]
    capabilities: Capabilities
    lacks: Mapping[Need, str]
    fingerprint: Mapping[str, Json]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def alone(self) -> Tensor:
        """x, of a program that takes nothing else.

        Raises:
            InputError: model and guide take several tensors.
        """
        if isinstance(self.x, Tensor):
            return self.x
        hint = "what does not simulate: bounds, importance, annealing, gaps, latents"
        raise InputError("a program and data of x alone, for what simulates x or probes latents", f"{self.data}", hint)

    @cached_property
    def score(self) -> Scorer:
        """Samples and scores particles; compiled if L_K has enough pieces in all, however many are already finished."""
        options, total = self.options, min(self.options.importance_examples, len(self))
        chunk = min(importance_chunk(self), total)
        particles = fitting(options.draws_at_once, chunk)
        pieces = len(chunk_sizes(total, chunk)) * len(chunk_sizes(options.num_particles, particles))
        plate = options.vectorize_particles
        with evaluating(self.program, self.x.device, self.seed):
            return scorer(self.program, self.x[:2], pieces, (chunk, particles), vectorize_particles=plate)

    @property
    def num_examples(self) -> int:
        """The number of examples for cheap figures."""
        return min(self.options.num_examples or len(self), len(self))

    @cached_property
    def dims(self) -> Tensor:
        """D, the number of observed dimensions of each example that are not masked, (N,), on the CPU.

        Raises:
            InputError: they cannot be counted.
        """
        return observed_dims(self.program, self.x, self.seed)

    @property
    def latent_dims(self) -> int:
        """Z, the number of latent dimensions over all sites."""
        return sum(torch.Size(latent.shape).numel() for latent in self.latents.values())

    @property
    def continuous(self) -> bool:
        """Whether every latent has a density."""
        return not any(latent.discrete for latent in self.latents.values())


def importance_chunk(subject: Subject) -> int:
    """Return the examples per chunk of L_K: of particles one by one, many, for each takes a run of them all."""
    return (
        IMPORTANCE_CHUNK
        if subject.options.vectorize_particles
        else min(ONE_BY_ONE_CHUNK, subject.options.draws_at_once)
    )


def look_at(
    thing: object,
    data: Given,
    train: Given | None,
    device: torch.device,
    seed: int,
    options: EvaluationOptions,
) -> Subject:
    """Check a program on held-out examples and describe both.

    Raises:
        InputError: not a program, or one that cannot be evaluated on these examples: without latents, or particles.
    """
    held_out = data_for(thing, as_data(data)).to(device)
    if len(held_out) < 2:
        raise InputError("at least two held-out examples, for a standard error", len(held_out), "more examples")
    program = _program(thing, held_out.batch(slice(0, TRIED), generator(device, seed, 0)).cpu())
    program.to(device)
    order = torch.randperm(len(held_out), generator=generator(torch.device("cpu"), seed, 2))
    x = held_out.binarized(seed)[order.to(device)]
    lacks = _lacks(program, x[:TRIED])
    capabilities = find_capabilities(program, x[:TRIED])
    _check_bounded(capabilities, options)
    plate = options.vectorize_particles
    with evaluating(program, device, seed), torch.no_grad(), explained("that runs on two examples"):
        observed, latents = _sites(program, x[:2], each=not lacks["card"])
        probe = draw_terms(program, x[:2], 2, vectorize_particles=plate).log_weight
    labels = held_out.labels if isinstance(held_out, Images) else None
    taught = None if train is None else data_for(thing, as_data(train))
    fingerprint: dict[str, Json] = {
        "program": f"{type(program).__module__}.{type(program).__qualname__}",
        "parameters": crc(program.state_dict()),
        "log weights of two examples": [f"{value:.5g}" for value in probe.flatten().tolist()],
        "data": crc(_named(x)),
        "seed": seed,
        "vectorize_particles": plate,
        "device": device.type,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "code": code(),
    }
    return Subject(
        program=program,
        data=held_out,
        x=x,
        labels=None if labels is None else labels[order.to(device)],
        index=order,
        train=taught.to(device) if isinstance(taught, Images) else None,
        options=options,
        seed=seed,
        pixels=_pixels(held_out, x, seed),
        likelihood=", ".join(dict.fromkeys(type(innermost(site["fn"])).__name__ for site in observed)),
        discrete=all(map(is_discrete, observed)),
        latents=latents,
        capabilities=capabilities,
        lacks=lacks,
        fingerprint=fingerprint,
    )


def _program(thing: object, example: Batch) -> Program:
    """Return the program; of functions, only if the caller's store has a value of every ``pyro.param``."""
    program = as_program(thing, example)
    if isinstance(program, FunctionProgram) and program is not thing and program.fresh:
        raise InputError(
            "a value of every pyro.param of the functions in Pyro's parameter store",
            f"none of {', '.join(map(repr, program.fresh))}, which would start afresh",
            "evaluate(result.program, data), or fit((model, guide), data) before",
        )
    return program


def _lacks(program: Program, x: Batch) -> dict[Need, str]:
    """Return why the plates of a program do not do for each need; a plain program is checked once.

    Raises:
        InputError: a program that is wrong whatever its plates are.
    """
    found: dict[Need, str] = {"training": "", "bound": "", "card": why_not(lambda: check_program(program, x))}
    if found["card"]:
        found["bound"] = why_not(lambda: check_program(program, x, need="bound"))
    if found["bound"]:
        check_program(program, x, need="training")
    return found


def _check_bounded(capabilities: Capabilities, options: EvaluationOptions) -> None:
    if not capabilities.latents:
        hint = "minus the loss of pyro.infer.Trace_ELBO, which is log p(x) itself"
        raise InputError("a model with a latent site, for bounds", "none", hint)
    if capabilities.no_particles and options.vectorize_particles:
        raise InputError(capabilities.no_particles)


def _sites(program: Program, x: Batch, *, each: bool) -> tuple[list[Site], dict[str, Latent]]:
    """Return the observed sites, and the latent ones described."""
    sites = sample_sites(trace_program(program, x)[1])
    shapes = {name: site["value"].shape[1:] if each else site["fn"].event_shape for name, site in sites}
    latents = {n: Latent(tuple(shapes[n]), is_discrete(s)) for n, s in sites if not s["is_observed"]}
    return [site for _, site in sites if site["is_observed"]], latents


def _named(x: Batch) -> dict[str, Tensor]:
    if isinstance(x, Tensor):
        return {"x": x}
    return {str(number): tensor for number, tensor in enumerate(x.args)} | dict(x.kwargs)


def _pixels(data: Data, x: Batch, seed: int) -> str:
    """Return how x, the first tensor, was binarized."""
    first = next(iter(data.columns.values())) if isinstance(data, Columns) else data
    binarize = first.binarize if isinstance(first, Images) else "none"
    if binarize == "dynamic":
        return f"binarized by one draw (seed {seed})"
    if binarize == "threshold":
        return "binarized at one half"
    values = tensors_of(x)[0]
    return "binary as they are" if bool(((values == 0) | (values == 1)).all()) else "as they are, not binarized"
