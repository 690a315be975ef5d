r"""Inference gaps: log p(x) − ELBO as the limit of the variational family plus the suboptimality of the encoder.

.. math::

    \log p(x) - \mathcal L[q] =
    \underbrace{\log p(x) - \mathcal L[q^*]}_{\text{approximation gap}} +
    \underbrace{\mathcal L[q^*] - \mathcal L[q]}_{\text{amortization gap}}

where q* is the best member of a family for one example, found by optimising parameters of that example alone.

Source: Cremer, Li and Duvenaud, Inference Suboptimality in Variational Autoencoders, arXiv 1801.03558.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.statistics import chunk_sizes, log_mean_exp
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.chunking import example_chunks
from pyro_vae.program.contexts import evaluating, frozen
from pyro_vae.program.joint import Joint
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import sample_sites, trace_program

LEARNING_RATES = (0.05, 0.01, 0.002)  # in units of the standard deviation of q(z|x), in this order
ROUND = 50  # steps whose mean objective is compared with the best round so far
PATIENCE = 2  # rounds without improvement that end a learning rate
PLANAR_LAYERS = 8
INITIAL_DRAWS = 100  # for the moments of a q that is not one diagonal normal


@dataclass(frozen=True, eq=False)
class Gaps:
    """The gaps of every example for one family of local q, nats, each (B,).

    ``log_evidence`` is the argument. ``local_elbo`` is L[q*] and ``amortized_elbo`` L[q], means over particles that the
    optimisation has not used, with standard errors. ``local_evidence`` is the log of the mean weight of particles from
    q*, another lower bound of log p(x): where it is far above ``log_evidence``, that is too low, and
    ``dataclasses.replace(gaps, log_evidence=...)`` gives the gaps to a better one. ``steps`` is the number of steps of
    the example's chunk, ``converged`` whether it stopped because the objective no longer improved.
    """

    family: str
    log_evidence: Tensor
    local_elbo: Tensor
    local_elbo_error: Tensor
    local_evidence: Tensor
    amortized_elbo: Tensor
    amortized_elbo_error: Tensor
    steps: Tensor
    converged: Tensor

    @property
    def approximation(self) -> Tensor:
        """Log p(x) − L[q*], (B,): the limit of the variational family; its error is that of ``local_elbo``."""
        return self.log_evidence - self.local_elbo

    @property
    def amortization(self) -> Tensor:
        """L[q*] − L[q], (B,): the suboptimality of the amortised encoder; below 0 where its family is richer."""
        return self.local_elbo - self.amortized_elbo

    @property
    def amortization_error(self) -> Tensor:
        """The standard error of the amortization gap, (B,): the two ELBOs have independent noise."""
        return (self.local_elbo_error.square() + self.amortized_elbo_error.square()).sqrt()

    @property
    def total(self) -> Tensor:
        """Log p(x) − L[q], (B,): the sum of the two."""
        return self.log_evidence - self.amortized_elbo


class Local(Protocol):
    """A family of distributions, one member for each of B examples: transformed standard normal noise."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What is optimised; the first or the second dimension is the examples."""

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed noise, (K, B, D), and the log of its Jacobian determinant, (K, B)."""


class Diagonal:
    """The diagonal normal: m + exp(s) ε."""

    def __init__(self, like: Tensor) -> None:
        self.loc, self.log_scale = torch.zeros_like(like), torch.zeros_like(like)
        self.parameters = [self.loc, self.log_scale]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        return self.loc + self.log_scale.exp() * noise, self.log_scale.sum(-1).expand(noise.shape[:-1])


class Flow:
    r"""Planar layers and then a full-covariance normal: m + T f(ε), T lower triangular.

    Each layer is :math:`f(y) = y + \hat u \tanh(w \cdot y + b)` with :math:`\hat u` such that it is invertible (Rezende
    and Mohamed, arXiv 1505.05770, appendix). It starts as the identity; the family contains every normal.

    The layers equal Pyro's ``ConditionedPlanar``, at half the time: no matrix products with one row.
    """

    def __init__(self, like: Tensor) -> None:
        examples, dims = like.shape
        self.loc, self.log_scale = torch.zeros_like(like), torch.zeros_like(like)
        self.lower = like.new_zeros(examples, dims, dims)
        direction = torch.randn_like(like.expand(PLANAR_LAYERS, examples, dims)) / math.sqrt(dims)
        identity = math.log(math.e - 1) / direction.square().sum(-1, keepdim=True)  # where û is 0
        self.direction, self.push = direction, identity * direction
        self.offset = like.new_zeros(PLANAR_LAYERS, examples)
        self.parameters = [self.loc, self.log_scale, self.lower, self.direction, self.push, self.offset]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the planar layers, then the triangular matrix and the shift."""
        y, log_det = noise, self.log_scale.sum(-1).expand(noise.shape[:-1])
        for w, u, b in zip(self.direction, self.push, self.offset, strict=True):
            along = (w * u).sum(-1, keepdim=True)
            u_hat = u + (F.softplus(along) - 1 - along) * w / w.square().sum(-1, keepdim=True)
            bent = torch.tanh((w * y).sum(-1) + b)
            y = y + u_hat * bent[..., None]
            log_det = log_det + ((1 - bent.square()) * (w * u_hat).sum(-1)).log1p()
        turned = torch.einsum("bij,kbj->kbi", self.lower.tril(-1), y)
        return self.loc + self.log_scale.exp() * y + turned, log_det


FAMILIES: dict[str, Callable[[Tensor], Local]] = {"diagonal": Diagonal, "flow": Flow}


@torch.no_grad()
def inference_gaps(
    program: Program,
    x: Batch,
    log_evidence: Tensor,
    family: str = "diagonal",
    num_particles: int = 8,
    num_evaluation: int = 1000,
    max_steps: int = 3000,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Gaps:
    r"""Return approximation and amortization gap of every example.

    For each example, Adam maximises the ELBO over one member of the family, from mean and standard deviation of q(z|x);
    the program does not change. The objective is averaged over rounds of 50 steps and over the examples of a chunk.
    After two rounds without an improvement of ``tolerance`` the learning rate drops; after the last learning rate the
    optimisation has converged. Both ELBOs are then estimated with fresh noise. An optimisation that falls short makes
    the approximation gap too large and the amortization gap too small; a log p(x) that is itself a lower bound makes
    the approximation gap too small.

    Args:
        program: the program; its latents, any number of sites, must be continuous. For bounded latents the local q is
            defined on the unconstrained space (:class:`pyro_vae.program.Joint`).
        x: examples, (B, *event_shape).
        log_evidence: log p(x) of every example, (B,), nats: exact, or by importance sampling or annealing.
        family: ``diagonal`` or ``flow`` (:class:`Flow`).
        num_particles: particles per step, an even number, in antithetic pairs ε, −ε.
        num_evaluation: particles of each final ELBO, at least 2.
        max_steps: the largest number of steps.
        tolerance: nats per example.
        seed: fixes the noise.

    Raises:
        InputError: a discrete latent; an unknown family; shapes or counts that do not fit.

    Example:
        >>> from pyro_vae import VAE
        >>> vae, x = VAE((4,), latent_dim=2), torch.ones(3, 4)
        >>> gaps = inference_gaps(vae, x, log_evidence=torch.full((3,), -2.7), max_steps=100)
        >>> bool(torch.allclose(gaps.approximation + gaps.amortization, gaps.total))
        True
    """
    make = lookup(FAMILIES, family, "family")
    _check_arguments(x, log_evidence, num_particles, num_evaluation)
    found = []
    with evaluating(program, x.device, seed):
        for part in example_chunks(x, num_particles):
            found.append(_of_chunk(program, part, make, num_particles, num_evaluation, max_steps, tolerance))
    return Gaps(family, log_evidence.to(x.device).double(), *(torch.cat(values) for values in zip(*found, strict=True)))


def _of_chunk(
    program: Program,
    x: Batch,
    make: Callable[[Tensor], Local],
    num_particles: int,
    num_evaluation: int,
    max_steps: int,
    tolerance: float,
) -> tuple[Tensor, ...]:
    target = _Target(program, x, num_particles)
    local = make(target.loc)
    with frozen(program):
        steps, converged = _optimise(target, local, num_particles, max_steps, tolerance)
    counts = chunk_sizes(num_evaluation, num_particles)
    of_local = torch.cat([target.log_weight(local, _noise(target, count)) for count in counts]).double()
    of_guide = torch.cat([draw_terms(program, x, count).log_weight for count in counts]).double()
    taken = torch.full((len(x),), steps, device=x.device)
    return (
        of_local.mean(0),
        of_local.std(0) / math.sqrt(num_evaluation),
        log_mean_exp(of_local),
        of_guide.mean(0),
        of_guide.std(0) / math.sqrt(num_evaluation),
        taken,
        torch.full_like(taken, converged, dtype=torch.bool),
    )


class _Target:
    """Log p(x, z) of a chunk of examples in one real vector, in units of the standard deviation of q(z|x)."""

    def __init__(self, program: Program, x: Batch, num_particles: int) -> None:
        self.joint = Joint(program, x)
        self.loc, self.scale = _own_moments(program, x) or self._drawn_moments(num_particles)

    def log_weight(self, local: Local, noise: Tensor) -> Tensor:
        """Return log p(x, z) − log q(z), (K, B), at z = local(noise) for standard normal noise (K, B, D)."""
        y, log_det = local(noise)
        log_noise = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)
        log_q = log_noise - log_det - self.scale.log().sum(-1)
        return self.joint.of_unconstrained(self.loc + self.scale * y).log_joint - log_q

    def _drawn_moments(self, num_particles: int) -> tuple[Tensor, Tensor]:
        chunks = chunk_sizes(INITIAL_DRAWS, num_particles)  # the last is drawn whole, too
        u = torch.cat([self.joint.unconstrain(self.joint.draw_guide(num_particles)) for _ in chunks])
        return u.mean(0), u.std(0)


def _own_moments(program: Program, x: Batch) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation, (B, D), of a guide that is one diagonal normal; None for others."""
    sites = [site for _, site in sample_sites(trace_program(program, x)[0])]
    fn = innermost(sites[0]["fn"])
    if len(sites) > 1 or not isinstance(fn, dist.Normal):
        return None
    shape = sites[0]["value"].shape
    return fn.mean.expand(shape).reshape(len(x), -1), fn.stddev.expand(shape).reshape(len(x), -1)


def _noise(target: _Target, count: int) -> Tensor:
    return torch.randn(count, *target.loc.shape, dtype=target.loc.dtype, device=target.loc.device)


def _optimise(target: _Target, local: Local, num_particles: int, max_steps: int, tolerance: float) -> tuple[int, bool]:
    """Maximise until the objective no longer improves; return the number of steps, and whether it converged."""
    steps = 0
    for learning_rate in LEARNING_RATES:
        optimizer = torch.optim.Adam(local.parameters, lr=learning_rate)
        best, stale = -math.inf, 0
        while stale < PATIENCE:
            if steps >= max_steps:
                return steps, False
            number = min(ROUND, max_steps - steps)
            objective = (
                torch.stack([_step(target, local, optimizer, num_particles) for _ in range(number)]).mean().item()
            )
            steps += number
            improved = objective > best + tolerance
            stale = 0 if improved else stale + 1
            best = max(best, objective)
    return steps, True


def _step(target: _Target, local: Local, optimizer: torch.optim.Optimizer, num_particles: int) -> Tensor:
    """Take one step for every example; return the mean objective before it, nats per example."""
    half = _noise(target, num_particles // 2)
    with torch.enable_grad():
        for parameter in local.parameters:
            parameter.requires_grad_()
        objective = target.log_weight(local, torch.cat([half, -half])).mean(0)
        gradients = torch.autograd.grad(-objective.sum(), list(local.parameters))
    for parameter, gradient in zip(local.parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return objective.detach().mean()


def _check_arguments(x: Batch, log_evidence: Tensor, num_particles: int, num_evaluation: int) -> None:
    if log_evidence.shape != (len(x),):
        raise InputError(f"log_evidence of shape ({len(x)},)", tuple(log_evidence.shape), "log p(x) of every example")
    if num_particles < 2 or num_particles % 2:
        raise InputError("an even number of particles, at least 2", num_particles, "num_particles=8")
    if num_evaluation < 2:
        raise InputError("at least 2 particles for the evaluation", num_evaluation, "num_evaluation=1000")
