"""Importance weights: PSIS k-hat and effective sample size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.chunking import example_chunks, particle_chunks
from pyro_vae.evaluation.methods.arviz import pareto_shape
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.protocol import Program

FEWEST_PARTICLES = 30  # fewer leave a tail that ArviZ cannot fit
EQUAL_WEIGHTS = 1e-6  # log weights that differ by less, in nats, count as equal: importance sampling without variance
ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class WeightDiagnostics:
    """Diagnostics of a program's importance weights, per example.

    ``k_hat`` (B,), by :func:`pareto_k`; ``effective_sample_size`` (B,), between 1 and ``num_particles``.
    """

    k_hat: Tensor
    effective_sample_size: Tensor
    num_particles: int

    def share_over(self, threshold: float) -> float:
        """Return the share of examples with k̂ above a threshold, among those whose k̂ is defined; NaN if none is."""
        defined = self.k_hat[~self.k_hat.isnan()]
        return (defined > threshold).double().mean().item()

    @property
    def undefined(self) -> int:
        """The number of examples whose k̂ is undefined."""
        return int(self.k_hat.isnan().sum())


@torch.no_grad()
def weight_diagnostics(
    program: Program, x: Batch, num_particles: int = 1000, seed: int = 0, *, vectorize_particles: bool = True
) -> WeightDiagnostics:
    """Draw K particles for every example and return the diagnostics of their weights.

    Args:
        program: the program.
        x: examples, (B, *event_shape).
        num_particles: K, at least 30; k̂ is biased towards 0.5 and noisy (about ± 0.2) below a few hundred.
        seed: fixes the noise.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Raises:
        InputError: too few particles, log weights that are NaN.

    Example:
        >>> from pyro_vae import VAE
        >>> found = weight_diagnostics(VAE((4,), latent_dim=2), torch.ones(10, 4), num_particles=100)
        >>> found.k_hat.shape, 0 <= found.share_over(0.7) <= 1
        (torch.Size([10]), True)
    """
    k_hat, sizes, plate = [], [], vectorize_particles
    with evaluating(program, x.device, seed):
        for part in example_chunks(x, num_particles):
            counts = particle_chunks(num_particles)
            drawn = [draw_terms(program, part, count, vectorize_particles=plate).log_weight for count in counts]
            log_weights = torch.cat(drawn)
            k_hat.append(pareto_k(log_weights))
            sizes.append(effective_sample_size(log_weights))
    return WeightDiagnostics(torch.cat(k_hat), torch.cat(sizes), num_particles)


@torch.no_grad()
def pareto_k(log_weights: Tensor) -> Tensor:
    r"""Return the PSIS k̂ of every example: the shape of the generalized Pareto distribution of its largest weights.

    Weights have finite moments of order below 1/k only: importance sampling is good below 0.5, usable up to 0.7 and
    unreliable above. ArviZ fits; it shrinks k̂ towards 0.5 by ten pseudo-observations. Where nothing can be fitted it is

    * 0 where all log weights are equal (to 10⁻⁶ nats): q is the posterior, the weights have no tail;
    * ∞ where at least a quarter of the tail's weights underflow float64 relative to the largest;
    * NaN, undefined, where the smallest quarter of the tail's weights are tied, as with discrete latents.

    Sources: Vehtari et al., Pareto Smoothed Importance Sampling, arXiv 1507.02646; Yao, Vehtari, Simpson and Gelman,
    Yes, but Did It Work?, ICML 2018.

    Args:
        log_weights: (K, B), nats.

    Returns:
        (B,), float64, on the device of the weights.

    Raises:
        InputError: fewer than 30 particles; a log weight that is NaN or +∞, or an example whose weights are all 0.

    Example:
        >>> pareto_k(torch.zeros(100, 2))
        tensor([0., 0.], dtype=torch.float64)
    """
    _check_weights(log_weights)
    rows = [_pareto_k_of_rows(part.T.double().cpu()) for part in log_weights.split(ROWS_AT_ONCE, dim=1)]
    return torch.cat(rows).to(log_weights.device)


@torch.no_grad()
def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of every example, (B,), from log weights (K, B).

    Between 1 and K; K where the weights are equal. Too large where k̂ is above 0.7.

    Source: Kong, A note on importance sampling using standardized weights, 1992.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0, 0.0], [0.0, -99.0]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    values = log_weights.double()
    return (2 * values.logsumexp(0) - (2 * values).logsumexp(0)).exp()


def _check_weights(log_weights: Tensor) -> None:
    if log_weights.ndim != 2 or len(log_weights) < FEWEST_PARTICLES:
        expected = f"log weights of shape (K, B), K at least {FEWEST_PARTICLES}"
        raise InputError(expected, f"shape {tuple(log_weights.shape)}", "num_particles=1000")
    if not (log_weights < math.inf).all() or (log_weights.amax(0) == -math.inf).any():
        raise InputError(
            "log weights below infinity, not all of an example minus infinity",
            "others",
            "weight_diagnostics on fewer examples to find which; a likelihood with a larger scale",
        )


def _pareto_k_of_rows(rows: Tensor) -> Tensor:
    """Return k̂ of log weights (B, K) on the CPU, float64."""
    relative = rows - rows.amax(1, keepdim=True)
    num_particles = rows.shape[1]
    tail_length = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    tail = relative.topk(tail_length).values.flip(1).exp()
    quartile = tail[:, int(tail_length / 4 + 0.5) - 1]  # ArviZ's fit starts from it: it must exceed the smallest
    equal = relative.amin(1) > -EQUAL_WEIGHTS
    underflowed = ~equal & (quartile < torch.finfo(torch.float64).tiny)
    tied = ~equal & ~underflowed & (quartile <= tail[:, 0])
    found = torch.zeros(len(rows), dtype=torch.float64)
    found[underflowed] = math.inf
    found[tied] = math.nan
    to_fit = ~(equal | underflowed | tied)
    if to_fit.any():
        found[to_fit] = torch.from_numpy(pareto_shape(relative[to_fit].numpy()))
    return found
