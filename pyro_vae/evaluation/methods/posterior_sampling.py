r"""log p(x) from samples of the posterior: the estimator of AEVB's Appendix D, with Pyro's own HMC or NUTS."""

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

from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.evaluation.chunking import state_chunks
from pyro_vae.evaluation.methods.log_evidence import LogEvidence
from pyro_vae.program.contexts import evaluating, frozen
from pyro_vae.program.joint import Joint
from pyro_vae.program.protocol import Program

Sampler = Literal["nuts", "hmc"]
MAX_DIMENSIONS = 5
INSIDE = 0.9  # mass of the fitted normal that is kept
TRAJECTORY = 1.5  # about a quarter of a period where masses fit: the next sample owes least to the last

KERNELS: dict[str, Callable[[Callable[[dict[str, Tensor]], Tensor]], HMC]] = {
    "nuts": lambda potential: NUTS(potential_fn=potential),
    "hmc": lambda potential: HMC(potential_fn=potential, trajectory_length=TRAJECTORY),
}


@torch.no_grad()
def posterior_log_evidence(
    program: Program,
    x: Tensor,
    *,
    chains: int = 20,
    num_samples: int = 200,
    warmup_steps: int = 200,
    sampler: Sampler = "nuts",
    seed: int = 0,
) -> LogEvidence:
    r"""Return log p(x) of every example from samples of p(z|x), by a density fitted to half of them.

    For any density q that is 0 wherever p(z|x) is,

    .. math::

        \frac{1}{p(x)} = \frac{\int q(z)\, dz}{p(x)} = \int \frac{q(z)}{p(x, z)} \frac{p(x, z)}{p(x)}\, dz
        = E_{p(z|x)} \frac{q(z)}{p(x, z)}
        \quad\text{so that}\quad
        \log p(x) \approx -\log \frac1L \sum_l \frac{q(z_l)}{p(x, z_l)}, \quad z_l \sim p(z|x)

    The nearer q is to the posterior, the less the terms vary: at q(z) = p(z|x) each is 1/p(x). They vary without limit
    where q has heavier tails than the posterior. So q is a normal with mean and covariance of the samples, cut off
    outside the ellipsoid that holds 0.9 of it (Geweke, 1999) and divided by that 0.9: the terms are bounded as long
    as p(x, z) does not vanish within. Half of the chains serve to fit q, the other half are put into the sum, so that
    q is independent of what it weighs. All in unconstrained latents u, with the Jacobian of z = T(u) in p(x, z).

    A posterior of several modes far apart is out of its reach, as it is out of the sampler's; so are many dimensions,
    where no fitted density is near. All chains of all data are one state of Pyro's sampler (the potential is their
    sum), which shares the step size and adapts the masses of each. The standard error is over the chains, so that it
    holds what successive samples have in common. In expectation the value is an upper bound, close where L is large.

    Source: Kingma and Welling, `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_, Appendix D.

    Args:
        program: a program whose latents are continuous, and 5 numbers or fewer.
        x: data, (B, *event_shape), binarized where the likelihood is binary, on the program's device.
        chains: for every example; 4 or more.
        num_samples: of each chain, after warm-up; with few, q is fitted badly.
        warmup_steps: in which step size and masses are adapted.
        sampler: ``nuts``, or ``hmc`` with trajectories of length 1.5 in units of the adapted masses.
        seed: of the noise.

    Returns:
        Value and standard error (B,); log weights (chains/2, B), each of one chain; the largest R-hat of latents (B,):
        where it is above 1.05, chains have not found the same posterior, and neither value nor error can be trusted.

    Raises:
        InputError: more than 5 latent numbers; discrete latents; fewer than 4 chains; an unknown sampler.

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
    """Draw unconstrained latents from the posterior with one of Pyro's kernels, (S, K, B, n); it starts from q."""

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
    r"""Log-density of the normal fitted to samples (N, B, n) and cut off, at (..., B, n); −∞ outside.

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
            f"at most {MAX_DIMENSIONS} latent numbers: no density fitted to samples is near enough in more",
            size,
            "annealed_log_evidence, or importance sampling",
        )
