"""Held-out bounds: ELBO and importance-weighted bounds of examples that the program was not trained on."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import generator
from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.data import Data
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.estimator import at_least_one
from pyro_vae.elbo.terms import Terms
from pyro_vae.engines.compiled.terms import CompiledTerms, can_be_compiled
from pyro_vae.evaluation.chunking import fitting, particle_chunks, particle_pieces, split_examples
from pyro_vae.models.replicates import Replicates, members
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.protocol import Program

SCORED_AT_ONCE = 1000  # examples, times particles for the importance-weighted bounds; bounds memory
COMPILED_FROM = 2000  # pieces; compilation takes about 10 s and saves about 10 ms per piece


@torch.no_grad()
def held_out_elbo(
    program: Program, data: Data, num_particles: int = 1, seed: int = 0, *, vectorize_particles: bool = True
) -> Tensor:
    r"""Return the ELBO of every example, (N,), in nats: the mean of log w over K particles.

    .. math:: \frac1K \sum_k \log p(x|z_k) + \log p(z_k) - \log q(z_k|x), \quad z_k \sim q(z|x)

    Examples are binarized once, by the seed; the program runs in evaluation mode. Global random states do not change.

    Args:
        program: the program.
        data: held-out examples, on the program's device.
        num_particles: K.
        seed: fixes binarization and noise, so that two programs see the same examples.
        vectorize_particles: several particles in a plate; False: in runs one by one.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.data import as_images
        >>> held_out_elbo(VAE((4,), latent_dim=2), as_images(torch.ones(10, 4))).shape
        torch.Size([10])
    """

    def bound(x: Batch) -> Tensor:
        return draw_terms(program, x, num_particles, vectorize_particles=vectorize_particles).log_weight.mean(0)

    return _over_data(program, data, seed, 1, bound)


@torch.no_grad()
def importance_bounds(
    program: Program,
    data: Data,
    num_particles: int,
    seed: int = 0,
    *,
    compiled: bool | None = None,
    vectorize_particles: bool = True,
) -> Tensor:
    r"""Return the importance-weighted bound of every example, (N,), in nats: below log p(x), tight for large K.

    .. math:: \mathcal L_K = \log \frac1K \sum_k w_k

    Memory is bounded: at most 100 particles of a chunk of examples at a time.

    Source: Burda, Grosse and Salakhutdinov, arXiv 1509.00519.

    Args:
        program: the program.
        data: held-out examples, on the program's device.
        num_particles: K.
        seed: fixes binarization and noise.
        compiled: whether to trace and compile the program (``CompiledTerms``): the same values up to rounding. None
            compiles from 2000 pieces on.
        vectorize_particles: particles in a plate; False: in runs one by one, which are not compiled.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.data import as_images
        >>> importance_bounds(VAE((4,), latent_dim=2), as_images(torch.ones(10, 4)), num_particles=50).shape
        torch.Size([10])
    """
    at_least_one("num_particles", num_particles)
    counts = particle_chunks(num_particles) if vectorize_particles else [1] * num_particles
    chunk = fitting(SCORED_AT_ONCE, counts[0])
    few = data.batch(slice(0, 2), generator(data.device, seed))
    with evaluating(program, data.device, seed):
        pieces = len(counts) * math.ceil(len(data) / chunk)
        shape = min(chunk, len(data)), counts[0]
        score = scorer(program, few, pieces, shape, compiled, vectorize_particles=vectorize_particles)

    def bound(x: Batch) -> Tensor:
        sums = torch.stack([score(x, count).log_weight.logsumexp(0) for count in counts])
        return sums.logsumexp(0) - math.log(num_particles)

    return _over_data(program, data, seed, counts[0], bound)


Scorer = Callable[[Batch, int], Terms]  # (x, K) -> the terms of K particles per example


def scorer(
    program: Program,
    x: Batch,
    pieces: int,
    shape: tuple[int, int],
    compiled: bool | None = None,
    *,
    vectorize_particles: bool = True,
) -> Scorer:
    """Return a function that samples and scores K particles for a batch, compiled where compilation amortises.

    Args:
        program: the program; its store must be active.
        x: a few examples, to try tracing.
        pieces: the number of calls.
        shape: (examples, particles) of nearly all calls.
        compiled: None compiles from :data:`COMPILED_FROM` calls on, if the program can be traced and a compiler is
            available.
        vectorize_particles: particles in a plate; False: in runs one by one, which are not compiled.

    Raises:
        InputError: compiled particles one by one.
    """
    if not vectorize_particles and compiled:
        raise InputError("compiled particles in a plate", "vectorize_particles=False", "compiled=False")
    amortises = vectorize_particles and compiled is None and pieces >= COMPILED_FROM
    if compiled or (amortises and can_be_compiled(program, x)):
        return CompiledTerms(program, shape)
    return lambda x, num_particles: draw_terms(program, x, num_particles, vectorize_particles=vectorize_particles)


@torch.no_grad()
def draw_in_pieces(score: Scorer, x: Batch, num_particles: int, draws_at_once: int) -> Iterator[Terms]:
    r"""Sample K particles for a chunk of examples in pieces, each (k, B), in bounded memory.

    Memory is bounded by the larger of ``draws_at_once`` and B particles, whatever K is. The program's store must be
    active (:func:`~pyro_vae.program.evaluating`).

    Args:
        score: what :func:`scorer` returned.
        x: a chunk of examples, (B, \*event_shape).
        num_particles: K.
        draws_at_once: particles times examples in a piece.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((4,), latent_dim=2)
        >>> with evaluating(vae, torch.device("cpu"), seed=0):
        ...     score = scorer(vae, torch.ones(2, 4), pieces=3, shape=(10, 2))
        ...     [piece.log_weight.shape[0] for piece in draw_in_pieces(score, torch.ones(10, 4), 5, draws_at_once=20)]
        [2, 2, 1]
    """
    for count in particle_pieces(num_particles, len(x), draws_at_once):
        yield score(x, count)


def group_bounds(log_weight: Tensor, k: int) -> Tensor:
    r"""Return the importance-weighted bound of k particles, averaged over groups of k of M particles; (B,), nats.

    .. math:: \frac1{\lfloor M/k \rfloor} \sum_g \log \frac1k \sum_{i \in g} w_i

    Particles after the last whole group are not used.

    Args:
        log_weight: log w, (M, B), M ≥ k.
        k: particles in a group.

    Example:
        >>> log_weight = torch.tensor([[0.0], [2.0], [1.0]])
        >>> group_bounds(log_weight, 1), group_bounds(log_weight, 2)
        (tensor([1.]), tensor([1.4338]))
    """
    groups = len(log_weight) // k
    grouped = log_weight[: groups * k].unflatten(0, (groups, k))
    mean: Tensor = (grouped.logsumexp(1) - math.log(k)).mean(0)
    return mean


def held_out_bound(
    program: Program, data: Data, num_particles: int = 1, seed: int = 0, *, vectorize_particles: bool = True
) -> Estimate:
    """Return the mean of :func:`held_out_elbo`, nats per example, with its standard error.

    The standard error is over examples. It includes the noise of the particles: each example has its own.
    """
    return estimate(held_out_elbo(program, data, num_particles, seed, vectorize_particles=vectorize_particles))


def held_out_bounds(
    program: Program | Replicates,
    data: Data,
    num_particles: int = 1,
    seed: int = 0,
    *,
    vectorize_particles: bool = True,
) -> tuple[Estimate, tuple[float, ...]]:
    """Return the held-out bound of a program; of replicates, the mean of their bounds, and the bound of each.

    The standard error is over examples, after averaging over replicates. It does not include the variation between
    seeds, which the spread of the replicates' bounds shows.
    """
    plate = vectorize_particles
    found = [held_out_elbo(m, data, num_particles, seed, vectorize_particles=plate) for m in members(program)]
    each = tuple(float(bounds.double().mean()) for bounds in found)
    return estimate(torch.stack(found).mean(0)), each if isinstance(program, Replicates) else ()


def _over_data(program: Program, data: Data, seed: int, each: int, bound: Callable[[Batch], Tensor]) -> Tensor:
    """Apply a bound to chunks of examples, which take ``each`` rows: one binarization, evaluation mode, own store."""
    x = data.binarized(seed)
    with evaluating(program, x.device, seed):
        return torch.cat([bound(part) for part in split_examples(x, each, SCORED_AT_ONCE)])
