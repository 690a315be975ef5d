"""log p(x) of each example from weights, with its standard error: what every estimator of log p(x) returns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.evaluation.chunking import sample_chunks, state_chunks
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.joint import Joint
from pyro_vae.program.protocol import Program


@dataclass(frozen=True, eq=False)
class LogEvidence:
    r"""An estimate of log p(x) for each of B examples, in nats.

    The standard error comes from the spread of the weights by the delta method. Where few weights dominate the sum,
    both value and standard error are too small.
    """

    value: Tensor  # (B,)
    standard_error: Tensor  # (B,)
    log_weights: Tensor  # (K, B)
    acceptance: Tensor | None = None  # (B,), mean acceptance rate of annealed chains
    r_hat: Tensor | None = None  # (B,), of the chains of a posterior sampler; near 1 where they agree

    @classmethod
    def of_weights(cls, log_weights: Tensor, acceptance: Tensor | None = None) -> "LogEvidence":
        r"""Return :math:`\log \frac1K \sum_k w_k`: a lower bound in expectation where each w is unbiased for p(x).

        Example:
            >>> LogEvidence.of_weights(torch.tensor([[1.0], [3.0]]).log()).value.exp()
            tensor([2.])
        """
        value = log_mean_exp(log_weights)
        return cls(value, _relative_error(log_weights - value), log_weights, acceptance)

    @classmethod
    def of_reciprocals(cls, log_weights: Tensor, acceptance: Tensor | None = None) -> "LogEvidence":
        r"""Return :math:`-\log \frac1K \sum_k 1/w_k`: an upper bound in expectation where E 1/w = 1/p(x).

        Example:
            >>> LogEvidence.of_reciprocals(torch.tensor([[1.0], [3.0]]).log()).value.exp()
            tensor([1.5000])
        """
        value = -log_mean_exp(-log_weights)
        return cls(value, _relative_error(value - log_weights), log_weights, acceptance)

    @classmethod
    def cat(cls, parts: "list[LogEvidence]") -> "LogEvidence":
        """Join the estimates of several chunks of examples."""
        whole = {n: _cat([getattr(part, n) for part in parts]) for n in ("acceptance", "r_hat")}
        value, error = (torch.cat([getattr(part, n) for part in parts]) for n in ("value", "standard_error"))
        return cls(value, error, torch.cat([part.log_weights for part in parts], 1), **whole)


@torch.no_grad()
def prior_log_evidence(program: Program, x: Batch, *, num_particles: int = 1000, seed: int = 0) -> LogEvidence:
    r"""Return log p(x) from samples of the prior, which shows why a guide is needed.

    .. math:: \log p(x) \approx \log \frac1K \sum_k p(x|z_k), \quad z_k \sim p(z)

    Hardly any sample of the prior resembles x, so that a few terms dominate the sum: for any affordable K the estimate
    is far too low, and so is its standard error.

    Source: Doersch, `Tutorial on Variational Autoencoders <https://arxiv.org/abs/1606.05908>`_, section 2.

    Args:
        program: the program.
        x: examples, (B, *event_shape), binarized where the likelihood is binary, on the program's device.
        num_particles: K.
        seed: fixes the noise.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian
        >>> oracle = LinearGaussian(4, 1)
        >>> x = oracle.simulate(3)
        >>> estimate = prior_log_evidence(oracle, x, num_particles=5000)
        >>> bool(((estimate.value - oracle.log_evidence(x)).abs() < 5 * estimate.standard_error).all())
        True
    """
    with evaluating(program, x.device, seed):
        return LogEvidence.cat([_from_prior(program, part, num_particles) for part in state_chunks(x, 1)])


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _from_prior(program: Program, x: Batch, num_particles: int) -> LogEvidence:
    joint = Joint(program, x)
    counts = sample_chunks(x, num_particles)
    return LogEvidence.of_weights(torch.cat([joint.draw_prior(count)[1] for count in counts]))


def _relative_error(log_ratio: Tensor) -> Tensor:
    """Return the standard error of a mean of ratios whose mean is 1, (B,); NaN for a single ratio."""
    ratios = log_ratio.exp()
    spread = ratios.std(0, correction=1) if len(ratios) > 1 else torch.full_like(ratios[0], math.nan)
    return spread / math.sqrt(len(ratios))
