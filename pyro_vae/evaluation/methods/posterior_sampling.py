r"""log p(x) from samples of the posterior: the estimator of AEVB's Appendix D, with Pyro's HMC or NUTS."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pyro
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.evaluation.chunking import state_chunks
from pyro_vae.evaluation.methods.log_evidence import LogEvidence
from pyro_vae.program.contexts import evaluating, frozen
from pyro_vae.program.joint import Joint
from pyro_vae.program.protocol import Program

Sampler = Literal["nuts", "hmc"]
MAX_DIMENSIONS = 5
INSIDE = 0.9  # mass of the fitted normal inside the ellipsoid
TRAJECTORY = 1.5  # about a quarter of a period if the masses fit: successive samples are least correlated

KERNELS: dict[str, Callable[[Callable[[dict[str, Tensor]], Tensor]], HMC]] = {
    "nuts": lambda potential: NUTS(potential_fn=potential),
    "hmc": lambda potential: HMC(potential_fn=potential, trajectory_length=TRAJECTORY),
}


@torch.no_grad()
def posterior_log_evidence(
    program: Program,
    x: Batch,
    *,
    chains: int = 20,
    num_samples: int = 200,
    warmup_steps: int = 200,
    sampler: Sampler = "nuts",
    seed: int = 0,
) -> LogEvidence:
    r"""Return log p(x) of every example from samples of p(z|x), by a density fitted to half of them.

    For any density q whose support lies in that of p(z|x),

    .. math::

        \frac{1}{p(x)} = \frac{\int q(z)\, dz}{p(x)} = \int \frac{q(z)}{p(x, z)} \frac{p(x, z)}{p(x)}\, dz
        = E_{p(z|x)} \frac{q(z)}{p(x, z)}
        \quad\text{so that}\quad
        \log p(x) \approx -\log \frac1L \sum_l \frac{q(z_l)}{p(x, z_l)}, \quad z_l \sim p(z|x)

    At q(z) = p(z|x) every term is 1/p(x); where q has heavier tails than the posterior, the variance may be infinite.
    So q is a normal with mean and covariance of the samples, truncated to the ellipsoid that contains 0.9 of its mass
    (Geweke, 1999): the terms are bounded unless p(x, z) vanishes inside. Half of the chains fit q, the sum is over the
    other half, so that q is independent of the samples it is evaluated at. Computed in unconstrained latents u, with
    the Jacobian of z = T(u) in p(x, z).

    In expectation the value is an upper bound, tight for large L. It fails for posteriors with separated modes, which
    the sampler misses, and in many dimensions, where no fitted density is close. All chains of all examples are one
    state of Pyro's sampler (the potential is their sum): they share the step size; each has its own masses. The
    standard error is over chains and so includes the autocorrelation within them.

    Source: Kingma and Welling, `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_, Appendix D.

    Args:
        program: a program with at most 5 latent dimensions, all continuous.
        x: examples, (B, *event_shape), binarized where the likelihood is binary, on the program's device.
        chains: per example; at least 4.
        num_samples: of each chain, after warm-up; with few, q fits badly.
        warmup_steps: steps that adapt step size and masses.
        sampler: ``nuts``, or ``hmc`` with trajectories of length 1.5 in units of the adapted masses.
        seed: fixes the noise.

    Returns:
        Value and standard error (B,); log weights (chains/2, B), one per averaged chain; the largest R-hat of the
        latents (B,). Above 1.05 the chains have not converged to one distribution: value and error are invalid.

    Raises:
        InputError: more than 5 latent dimensions; discrete latents; fewer than 4 chains; an unknown sampler.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian
        >>> oracle = LinearGaussian(4, 1)
        >>> x = oracle.simulate(3)
        >>> found = posterior_log_evidence(oracle, x, num_samples=100, warmup_steps=50)
        >>> bool(((found.value - oracle.log_evidence(x)).abs() < 0.1).all())
        True
    """
    make = lookup(KERNELS, sampler, "sampler")
    if chains < 4 or num_samples < 10:
        got = f"{chains} chains of {num_samples}"
        raise InputError("at least 4 chains of 10 samples", got, "chains=20, num_samples=200")
    with evaluating(program, x.device, seed), frozen(program), pyro.validation_enabled(False):
        parts = []
        for part in state_chunks(x, chains):
            joint = Joint(program, part)
            _check_size(joint.size)
            u = sample_posterior(joint, make, chains, num_samples, warmup_steps)
            found = _reciprocal(joint, *u.split([chains // 2, chains - chains // 2], 1))
            parts.append(replace(found, r_hat=split_gelman_rubin(u, chain_dim=1, sample_dim=0).amax(-1)))
        return LogEvidence.cat(parts)


def sample_posterior(
    joint: Joint,
    make: Callable[[Callable[[dict[str, Tensor]], Tensor]], HMC],
    chains: int,
    num_samples: int,
    warmup_steps: int,
) -> Tensor:
    """Sample unconstrained latents from the posterior with one of Pyro's kernels, (S, K, B, n); chains start from q."""

    def potential(state: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            return -joint.of_unconstrained(state["u"]).log_joint.sum()

    start = joint.unconstrain(joint.draw_guide(chains))
    mcmc = MCMC(
        make(potential),
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        initial_params={"u": start},
        disable_progbar=True,
    )
    with torch.enable_grad():
        mcmc.run()
    samples: Tensor = mcmc.get_samples()["u"]
    return samples


def _reciprocal(joint: Joint, fitted_to: Tensor, summed: Tensor) -> LogEvidence:
    """Fit q to the first samples, (S, K, B, n), and return log p(x) from the others."""
    log_q = truncated_normal(fitted_to.flatten(0, 1), summed)
    log_joint = torch.stack([joint.of_unconstrained(u).log_joint for u in summed])
    return LogEvidence.of_reciprocals(-log_mean_exp(log_q - log_joint))


def truncated_normal(samples: Tensor, at: Tensor) -> Tensor:
    r"""Return the log-density at (..., B, n) of the normal fitted to samples (N, B, n) and truncated; −∞ outside.

    .. math:: q(u) = \frac{1}{0.9} N(u; m, C) \; [(u - m)^\top C^{-1} (u - m) \le \chi^2_{n; 0.9}]

    Example:
        >>> samples = torch.randn(4000, 1, 1, dtype=torch.float64)
        >>> grid = torch.linspace(-4, 4, 4001).double().reshape(-1, 1, 1)
        >>> density = truncated_normal(samples, grid).exp().flatten()
        >>> round(torch.trapezoid(density, grid.flatten()).item(), 2)
        1.0
    """
    mean = samples.mean(0)
    centred = samples - mean
    covariance = torch.einsum("nbi,nbj->bij", centred, centred) / (len(samples) - 1)
    normal = MultivariateNormal(mean, covariance)
    whitened = torch.linalg.solve_triangular(normal.scale_tril, (at - mean).unsqueeze(-1), upper=False)
    outside = whitened.square().sum((-2, -1)) > float(chi2.ppf(INSIDE, samples.shape[-1]))
    log_density: Tensor = normal.log_prob(at) - torch.tensor(INSIDE, dtype=at.dtype).log()
    return log_density.masked_fill(outside, -torch.inf)


def _check_size(size: int) -> None:
    if size > MAX_DIMENSIONS:
        raise InputError(
            f"at most {MAX_DIMENSIONS} latent dimensions: in more, no density fitted to samples is close enough",
            size,
            "annealed_log_evidence, or importance sampling",
        )
