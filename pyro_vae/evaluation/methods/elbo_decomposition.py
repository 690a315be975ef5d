r"""Decompositions of the ELBO: reconstruction, cross-entropy and entropy of q; mutual information and marginal KL.

.. math::

    \mathcal L = E_q \log p(x|z) - KL(q(z|x) \| p(z)), \qquad
    KL = \underbrace{-E_q \log p(z)}_{\text{cross-entropy}} - \underbrace{-E_q \log q(z|x)}_{\text{entropy}}

and, averaged over N examples,

.. math::

    \frac1N \sum_n KL(q(z|x_n) \| p(z)) = I_q(n; z) + KL(q(z) \| p(z)), \qquad q(z) = \frac1N \sum_n q(z|x_n)

All figures of one call come from the same particles, so that they add up to rounding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.elbo.draw import draw_particles, draw_terms
from pyro_vae.elbo.terms import Terms
from pyro_vae.evaluation.chunking import example_chunks, fitting, particle_chunks, split_examples
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.joint import Joint
from pyro_vae.program.protocol import Program

PAIRS_AT_ONCE = 200_000  # (code, example) pairs whose log q(z|x) is taken together
EXAMPLES_AT_ONCE = 500
SATURATED = math.log(2)  # nats


@dataclass(frozen=True, eq=False)
class Parts:
    """The ELBO of every example in parts, each (B,), in nats: means over the particles.

    ``reconstruction`` is E log p(x|z), ``cross_entropy`` is −E log p(z), ``entropy`` is −E log q(z|x).
    """

    reconstruction: Tensor
    cross_entropy: Tensor
    entropy: Tensor

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x)‖p(z)) = cross-entropy − entropy, (B,); sampled, so it may be below 0 for an example."""
        return self.cross_entropy - self.entropy

    @property
    def elbo(self) -> Tensor:
        """Reconstruction − KL, (B,)."""
        return self.reconstruction - self.kl


@dataclass(frozen=True, eq=False)
class Surgery:
    """The KL of a data set in two terms, each (N,), nats; the figures are their means over examples.

    ``mutual_information``, log q(z|x_n) − log q(z): what a code z says about which example it encodes. ``marginal_kl``,
    log q(z) − log p(z): how far the aggregate posterior is from the prior. ``parts`` is the ELBO of the same particles;
    the two terms add up to its KL.
    """

    mutual_information: Tensor
    marginal_kl: Tensor
    parts: Parts

    @property
    def log_n(self) -> float:
        """Log N, nats: the largest possible mutual information."""
        return math.log(len(self.mutual_information))

    @property
    def index_entropy(self) -> Estimate:
        """Log N − I, nats: the entropy of the example's index given its code; 0 where codes never overlap."""
        return estimate(self.log_n - self.mutual_information.double())

    @property
    def saturated(self) -> bool:
        """Whether I is within log 2 of log N: a code leaves fewer than two examples to choose from.

        Saturated at log N, I reflects the sample size, not the model; the marginal KL takes the rest, and more examples
        change both.
        """
        return self.index_entropy.value < SATURATED


@torch.no_grad()
def elbo_parts(
    program: Program, x: Batch, num_particles: int = 100, seed: int = 0, *, vectorize_particles: bool = True
) -> Parts:
    """Return the parts of the ELBO of every example.

    Args:
        program: the program.
        x: examples, (B, *event_shape).
        num_particles: K.
        seed: fixes the noise.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Example:
        >>> from pyro_vae import VAE
        >>> parts = elbo_parts(VAE((4,), latent_dim=2), torch.ones(10, 4))
        >>> bool((parts.elbo == parts.reconstruction - parts.kl).all())
        True
    """
    with evaluating(program, x.device, seed):
        chunks = example_chunks(x, num_particles)
        return _joined([_parts_of_chunk(program, part, num_particles, vectorize_particles) for part in chunks])


@torch.no_grad()
def elbo_surgery(program: Program, x: Batch, num_particles: int = 1, seed: int = 0) -> Surgery:
    r"""Decompose the KL of a data set into mutual information and marginal KL.

    The aggregate posterior q(z) is the mixture over all N examples: the cost grows with K N², the memory does not. For
    these examples the figures are unbiased. As an estimate for the data distribution, the mutual information is too
    low, the more so the closer it is to log N (:attr:`Surgery.saturated`); the standard error ignores that bias.

    Source: Hoffman and Johnson, ELBO surgery: yet another way to carve up the variational evidence lower bound, 2016.

    Args:
        program: the program; its guide's density must be computable at any z.
        x: examples, (N, *event_shape).
        num_particles: K codes per example, averaged over.
        seed: fixes the noise.

    Raises:
        InputError: a flow without an inverse as q.

    Example:
        >>> from pyro_vae import VAE
        >>> found = elbo_surgery(VAE((4,), latent_dim=2), torch.bernoulli(torch.full((50, 4), 0.5)))
        >>> bool(found.mutual_information.mean() < found.log_n)
        True
    """
    with evaluating(program, x.device, seed):
        draws = [_codes(program, part, num_particles) for part in example_chunks(x, num_particles)]
        codes = {name: torch.cat([codes[name] for codes, _ in draws], 1) for name in draws[0][0]}
        terms = _concatenated([terms for _, terms in draws])
        log_marginal = _log_aggregate(program, x, {n: z.flatten(0, 1) for n, z in codes.items()}).view_as(terms.log_qz)
    return Surgery(
        (terms.log_qz - log_marginal).mean(0),
        (log_marginal - terms.log_pz).mean(0),
        Parts(terms.log_px_z.mean(0), -terms.log_pz.mean(0), -terms.log_qz.mean(0)),
    )


def _parts_of_chunk(program: Program, x: Batch, num_particles: int, plate: bool) -> Parts:
    sums = torch.zeros(3, len(x), device=x.device, dtype=torch.float64)
    for count in particle_chunks(num_particles):
        terms = draw_terms(program, x, count, vectorize_particles=plate)
        sums += torch.stack([terms.log_px_z.sum(0), -terms.log_pz.sum(0), -terms.log_qz.sum(0)])
    return Parts(*(sums / num_particles))


def _joined(parts: list[Parts]) -> Parts:
    names = ("reconstruction", "cross_entropy", "entropy")
    return Parts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _codes(program: Program, x: Batch, num_particles: int) -> tuple[dict[str, Tensor], Terms]:
    """Draw K codes per example, {site: (K, B, *S)}, and their terms, in float64."""
    draws = [draw_particles(program, x, k) for k in particle_chunks(num_particles)]
    codes = {name: torch.cat([draw.drawn[name] for draw in draws]) for name in draws[0].drawn}
    terms = [draw.terms for draw in draws]
    return codes, Terms(*(torch.cat([getattr(t, name) for t in terms]).double() for name in TERMS))


TERMS = ("log_px_z", "log_pz", "log_qz")


def _concatenated(terms: list[Terms]) -> Terms:
    return Terms(*(torch.cat([getattr(t, name) for t in terms], 1) for name in TERMS))


def _log_aggregate(program: Program, x: Batch, codes: dict[str, Tensor]) -> Tensor:
    """Return log q(z) of M codes, (M,), float64: the log of the mean of q(z|x) over all examples."""
    parts = split_examples(x, 1, EXAMPLES_AT_ONCE)
    chunks = {name: z.split(fitting(PAIRS_AT_ONCE, len(parts[0]))) for name, z in codes.items()}
    totals = []
    for values in zip(*chunks.values(), strict=True):
        some = dict(zip(chunks, values, strict=True))
        sums = torch.stack([_log_q_of_pairs(program, part, some).double().logsumexp(1) for part in parts])
        totals.append(sums.logsumexp(0) - math.log(len(x)))
    return torch.cat(totals)


def _log_q_of_pairs(program: Program, x: Batch, codes: dict[str, Tensor]) -> Tensor:
    """Return log q(z_m|x_n), (M, N): the guide of every example at every code."""
    number = len(next(iter(codes.values())))
    return Joint(program, x).log_q({n: z[:, None].expand(number, len(x), *z.shape[1:]) for n, z in codes.items()})
