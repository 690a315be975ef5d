r"""When to trust q: importance weights, units that are used, and calibration on data that the model made.

Everything is kept datum by datum or latent dimension by latent dimension, in nats, and computed in chunks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.elbo.draw import Draw, draw_terms
from pyro_vae.errors import InputError
from pyro_vae.evaluation.arviz_adapter import pareto_shape
from pyro_vae.evaluation.chunks import data_chunks, particle_chunks
from pyro_vae.evaluation.context import evaluating
from pyro_vae.predictive import sample_prior
from pyro_vae.program import Program, sample_sites

FEWEST_PARTICLES = 30  # fewer leave a tail that ArviZ cannot fit
EQUAL_WEIGHTS = 1e-6  # log weights that differ by less, in nats, count as equal: importance sampling without variance
ROWS_AT_ONCE = 256
ACTIVE_VARIANCE = 0.01  # Burda et al.
COLLAPSED_KL = 0.01  # nats
CLOSED_FORM, SAMPLED = "closed form", "sampled"


@dataclass(frozen=True, eq=False)
class WeightDiagnostics:
    """What the importance weights of a program say of q, datum by datum.

    ``k_hat`` (B,), as :func:`pareto_k` gives it; ``effective_sample_size`` (B,), between 1 and ``num_particles``.
    """

    k_hat: Tensor
    effective_sample_size: Tensor
    num_particles: int

    def share_over(self, threshold: float) -> float:
        """Return the share of the data whose k̂ is above a threshold, of those that have one; NaN if none has."""
        defined = self.k_hat[~self.k_hat.isnan()]
        return (defined > threshold).double().mean().item()

    @property
    def undefined(self) -> int:
        """How many data have no k̂."""
        return int(self.k_hat.isnan().sum())


@torch.no_grad()
def weight_diagnostics(program: Program, x: Tensor, num_particles: int = 1000, seed: int = 0) -> WeightDiagnostics:
    """Draw K particles for every datum and return what their weights say.

    Args:
        program: the program.
        x: the data, (B, *event_shape).
        num_particles: K, at least 30; k̂ is biased towards 0.5 and noisy (about ± 0.2) below a few hundred.
        seed: fixes the noise.

    Raises:
        InputError: too few particles, log weights that are not numbers.

    Example:
        >>> from pyro_vae import VAE
        >>> found = weight_diagnostics(VAE((4,), latent_dim=2), torch.ones(10, 4), num_particles=100)
        >>> found.k_hat.shape, 0 <= found.share_over(0.7) <= 1
        (torch.Size([10]), True)
    """
    k_hat, sizes = [], []
    with evaluating(program, x.device, seed):
        for part in data_chunks(x, num_particles):
            drawn = [draw_terms(program, part, count).log_weight for count in particle_chunks(num_particles)]
            log_weights = torch.cat(drawn)
            k_hat.append(pareto_k(log_weights))
            sizes.append(effective_sample_size(log_weights))
    return WeightDiagnostics(torch.cat(k_hat), torch.cat(sizes), num_particles)


@torch.no_grad()
def pareto_k(log_weights: Tensor) -> Tensor:
    r"""Return the PSIS k̂ of every datum: the shape of the generalized Pareto distribution of its largest weights.

    Weights have moments of order below 1/k only: below 0.5 importance sampling is good, up to 0.7 usable, above not to
    be trusted. ArviZ fits; it shrinks k̂ towards 0.5 by ten pseudo-observations. Where there is nothing to fit:

    * 0 where all log weights are equal (to 10⁻⁶ nats): q is the posterior, the weights have no tail;
    * ∞ where the tail spans more than float64 holds: fewer than a quarter of its weights are not 0 beside the largest;
    * NaN, undefined, where the tail is made of ties, as discrete latents make them.

    Sources: Vehtari et al., Pareto Smoothed Importance Sampling, arXiv 1507.02646; Yao, Vehtari, Simpson and Gelman,
    Yes, but Did It Work?, ICML 2018.

    Args:
        log_weights: (K, B), nats.

    Returns:
        (B,), float64, on the device of the weights.

    Raises:
        InputError: fewer than 30 particles; a log weight that is NaN or +∞, or a datum whose weights are all 0.

    Example:
        >>> pareto_k(torch.zeros(100, 2))
        tensor([0., 0.], dtype=torch.float64)
    """
    _check_weights(log_weights)
    rows = [_pareto_k_of_rows(part.T.double().cpu()) for part in log_weights.split(ROWS_AT_ONCE, dim=1)]
    return torch.cat(rows).to(log_weights.device)


@torch.no_grad()
def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of every datum, (B,), from log weights (K, B).

    Between 1 and K; K where the weights are equal. Source: Kong, 1992. Where k̂ is above 0.7 it is too large itself.

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
            "log weights below infinity, not all of a datum minus infinity",
            "others",
            "weight_diagnostics on fewer data to find which; a likelihood with a larger scale",
        )


def _pareto_k_of_rows(rows: Tensor) -> Tensor:
    """k̂ of log weights (B, K) on the CPU, float64."""
    relative = rows - rows.amax(1, keepdim=True)
    num_particles = rows.shape[1]
    tail_length = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    tail = relative.topk(tail_length).values.flip(1).exp()
    quartile = tail[:, int(tail_length / 4 + 0.5) - 1]  # the fit starts from it: it must stand off from the smallest
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


@dataclass(frozen=True, eq=False)
class LatentDiagnostics:
    """How much one latent site is used, over the data; its event shape is written S.

    ``mean_variance``, S: variance over the data of the mean of q, Var E[z|x], with its standard error; NaN for a
    categorical site, whose class numbers have no mean. ``mean_from`` says how the mean was had.
    ``kl``, S, or () where it does not come apart into dimensions: KL(q‖p) in nats, averaged over the data, with its
    standard error over the data; ``kl_from`` says how it was had. A sampled figure holds the noise of the particles in
    its error too.
    """

    mean_variance: Tensor
    mean_variance_error: Tensor
    mean_from: str
    kl: Tensor
    kl_error: Tensor
    kl_from: str

    @property
    def active(self) -> Tensor:
        """Which dimensions are active, S: the variance of their posterior mean is above 0.01."""
        return self.mean_variance > ACTIVE_VARIANCE

    @property
    def active_units(self) -> int:
        """How many dimensions are active."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> Tensor:
        """Which dimensions (or whether the site) have collapsed to the prior: a KL below 0.01 nats on average."""
        return self.kl < COLLAPSED_KL


@torch.no_grad()
def latent_diagnostics(
    program: Program, x: Tensor, num_particles: int = 10, seed: int = 0
) -> dict[str, LatentDiagnostics]:
    r"""Return which latent dimensions are active and which have collapsed, site by site.

    .. math:: A = \mathrm{Var}_x\, E_{q(z|x)}[z], \qquad
        \frac1N \sum_n KL(q(z_j|x_n) \,\|\, p(z_j))

    The posterior mean is the distribution's own where the first site of the guide has one; elsewhere it is the mean of
    the K particles, and the variance that their number adds to A is taken off. The KL is in closed form where both
    distributions have one and the guide draws its sites in the model's order (then it is given what was drawn before);
    else it is sampled, log q − log p.

    Source: Burda, Grosse and Salakhutdinov, arXiv 1509.00519.

    Args:
        program: the program.
        x: the data, (B, *event_shape).
        num_particles: K, at least 2.
        seed: fixes the noise.

    Example:
        >>> from pyro_vae import VAE
        >>> found = latent_diagnostics(VAE((4,), latent_dim=2), torch.ones(10, 4))["z"]
        >>> found.kl.shape, found.kl_from, found.active_units
        (torch.Size([2]), 'closed form', 0)
    """
    if num_particles < 2:
        raise InputError("at least 2 particles, which show their own spread", num_particles, "num_particles=10")
    parts: dict[str, list[_SitePart]] = {}
    with evaluating(program, x.device, seed):
        for part in data_chunks(x, num_particles):
            for name, of_site in _site_parts(program, part, num_particles):
                parts.setdefault(name, []).append(of_site)
    return {name: _joined(of_site, num_particles) for name, of_site in parts.items()}


@dataclass(frozen=True, eq=False)
class _SitePart:
    """One site, some data: means (B, *S), variance of the particles (B, *S) or None, KL (B, *S) or (B,)."""

    mean: Tensor
    particle_variance: Tensor | None
    kl: Tensor
    kl_from: str


def _site_parts(program: Program, x: Tensor, num_particles: int) -> Iterable[tuple[str, _SitePart]]:
    draw = Draw(program.model, program.guide, (x,), {}, num_particles, "fixed")
    guide = {n: s for n, s in sample_sites(draw.guide_trace) if not s["infer"].get("is_auxiliary")}
    model = {n: s for n, s in sample_sites(draw.model_trace) if not s["is_observed"]}
    same_order = list(guide) == list(model)
    first = next(iter(dict(sample_sites(draw.guide_trace))))
    for name, site in guide.items():
        mean, variance = posterior_mean(site, depends_on_x_alone=name == first)
        kl, kl_from = _site_kl(site, model[name], same_order)
        yield name, _SitePart(mean, variance, kl.double().mean(0), kl_from)


def posterior_mean(site: Any, depends_on_x_alone: bool) -> tuple[Tensor, Tensor | None]:
    """Return the mean of q at one site of a guide's trace with K particles, (B, S), float64.

    It is the distribution's own where the site depends on x alone and has one (the second part is then None); else the
    mean of the particles, and their variance. NaN for a categorical site, whose class numbers have no mean.
    """
    particles = site["value"].double()
    if isinstance(_elementary(site["fn"]), dist.Categorical):
        return torch.full_like(particles[0], math.nan), None
    if depends_on_x_alone:
        try:
            return site["fn"].mean.expand_as(particles)[0].double(), None
        except NotImplementedError:  # a flow
            pass
    return particles.mean(0), particles.var(0)


def _site_kl(q: Any, p: Any, same_order: bool) -> tuple[Tensor, str]:
    """The KL of one site, (K, B, *S) or (K, B), and how it was had."""
    apart = [_elementary(q["fn"]), _elementary(p["fn"])]
    whole = any(fn.event_shape for fn in apart)
    q_fn, p_fn = (q["fn"], p["fn"]) if whole else apart
    if same_order:
        shape = torch.broadcast_shapes(q_fn.batch_shape, p_fn.batch_shape)  # torch's own do not all broadcast
        try:
            return _masked(kl_divergence(q_fn.expand(shape), p_fn.expand(shape)), q), CLOSED_FORM
        except NotImplementedError:
            pass
    return _masked(q_fn.log_prob(q["value"]), q) - _masked(p_fn.log_prob(q["value"]), p), SAMPLED


def _masked(values: Tensor, site: Any) -> Tensor:
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - len(site["fn"].batch_shape)))
    masked: Tensor = scale_and_mask(values, scale=1.0, mask=mask)
    return masked


def _elementary(fn: Any) -> Any:
    """The distribution inside any number of ``to_event``."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _joined(parts: list[_SitePart], num_particles: int) -> LatentDiagnostics:
    mean = torch.cat([part.mean for part in parts])
    kl = torch.cat([part.kl for part in parts])
    squares = (mean - mean.mean(0)).square() * len(mean) / max(1, len(mean) - 1)
    sampled = parts[0].particle_variance is not None
    if sampled:
        noise = torch.cat([part.particle_variance for part in parts if part.particle_variance is not None])
        squares = squares - noise / num_particles
    return LatentDiagnostics(
        squares.mean(0), _error(squares), SAMPLED if sampled else CLOSED_FORM, kl.mean(0), _error(kl), parts[0].kl_from
    )


def _error(terms: Tensor) -> Tensor:
    """The standard error of the mean along the first dimension; NaN of a single term."""
    if len(terms) < 2:
        return torch.full_like(terms[0], math.nan)
    return terms.std(0) / math.sqrt(len(terms))


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of true latents among draws of q, for one latent site of event shape S.

    ``ranks``, (simulations, S): how many of the ``num_draws`` draws lie below the true value, 0 … num_draws, ties
    broken at random. If q were the posterior they would be uniform. ``chi_square`` and ``ecdf_distance``, both S, are
    Pearson's statistic over ``bins`` equal bins and the largest distance of the ranks' distribution function from the
    uniform one; ``chi_square_p`` and ``ecdf_p`` are the probabilities of more, were q calibrated.
    """

    ranks: Tensor
    num_draws: int
    bins: int
    chi_square: Tensor
    chi_square_p: Tensor
    ecdf_distance: Tensor
    ecdf_p: Tensor

    @property
    def shift(self) -> Tensor:
        """Mean of the scaled rank − ½, S: above 0 where q lies too low; standard error 1/√(12 simulations)."""
        return (self._scaled() - 0.5).mean(0)

    @property
    def dispersion(self) -> Tensor:
        """Mean squared distance of the scaled rank from ½, over its value when calibrated, S.

        Above 1 where q is too narrow (or shifted from datum to datum), below where it is too wide.
        """
        uniform = (1 - 1 / (self.num_draws + 1) ** 2) / 12
        return (self._scaled() - 0.5).square().mean(0) / uniform

    @property
    def p_value(self) -> float:
        """The smaller p-value of the worst dimension, times how many were looked at (Bonferroni), at most 1."""
        both = torch.stack([self.chi_square_p, self.ecdf_p])
        return min(1.0, both.min().item() * both.numel())

    def _scaled(self) -> Tensor:
        return (self.ranks.double() + 0.5) / (self.num_draws + 1)


@torch.no_grad()
def simulation_based_calibration(
    program: Program, like: Tensor, num_simulations: int = 1000, num_draws: int = 99, bins: int = 20, seed: int = 0
) -> dict[str, Calibration]:
    r"""Compare q with the posterior on data that the model made: the rank of the true z among draws from q(z|x).

    .. math:: z^* \sim p(z), \quad x \sim p(x|z^*), \quad z_{1 \dots L} \sim q(z|x), \quad
        r = \#\{l: z_l < z^*\}

    is uniform on 0 … L, dimension by dimension, where q is the posterior. Uniform ranks do not prove that q is: the
    prior itself passes. The figure is of q on the model's own data; on other data q may be better or worse.

    Sources: Talts et al., arXiv 1804.06788; for variational inference Yao, Vehtari, Simpson and Gelman, ICML 2018.

    Args:
        program: the program.
        like: any data, (n, *event_shape), for shape, type and device; the values are not used.
        num_simulations: how many pairs (z, x) are drawn.
        num_draws: L, such that ``bins`` divides L + 1.
        bins: of the histogram that chi-square is made of; at least 5 simulations each.
        seed: fixes the noise.

    Raises:
        InputError: bins that do not divide L + 1, or too few simulations for them.

    Example:
        >>> from pyro_vae import VAE
        >>> found = simulation_based_calibration(VAE((4,), latent_dim=2), torch.ones(1, 4), num_simulations=200)
        >>> found["z"].ranks.shape, int(found["z"].ranks.max()) <= 99
        (torch.Size([200, 2]), True)
    """
    if bins < 2 or (num_draws + 1) % bins:
        raise InputError("bins that divide num_draws + 1", f"{bins} bins, {num_draws} draws", "num_draws=99, bins=20")
    if num_simulations < 5 * bins:
        raise InputError(f"at least {5 * bins} simulations, 5 a bin", num_simulations, "num_simulations=1000")
    shape = like[:1].expand(num_simulations, *like.shape[1:])
    ranks: dict[str, list[Tensor]] = {}
    with evaluating(program, like.device, seed):
        for part in data_chunks(shape, num_draws):
            for name, values in _ranks(program, part, num_draws):
                ranks.setdefault(name, []).append(values)
        return {name: _calibration(torch.cat(values).cpu(), num_draws, bins) for name, values in ranks.items()}


def _ranks(program: Program, like: Tensor, num_draws: int) -> Iterable[tuple[str, Tensor]]:
    made = sample_prior(program, like)
    x = made.draw.to(like)
    below: dict[str, Tensor] = {}
    ties: dict[str, Tensor] = {}
    for count in particle_chunks(num_draws):
        drawn = Draw(program.model, program.guide, (x,), {}, count, "fixed").drawn
        for name, truth in made.latents.items():
            truth = truth.to(x.device)
            below[name] = below.get(name, 0) + (drawn[name] < truth).sum(0)
            ties[name] = ties.get(name, 0) + (drawn[name] == truth).sum(0)
    for name, count_below in below.items():
        broken = (torch.rand(count_below.shape, device=x.device) * (ties[name] + 1)).long()
        yield name, count_below + broken


def _calibration(ranks: Tensor, num_draws: int, bins: int) -> Calibration:
    flat = ranks.reshape(len(ranks), -1)
    counts = torch.nn.functional.one_hot(flat * bins // (num_draws + 1), bins).sum(0).double()
    expected = len(ranks) / bins
    chi_square = ((counts - expected).square() / expected).sum(-1)
    uniform = (flat.double() + torch.rand(flat.shape, dtype=torch.float64)) / (num_draws + 1)
    tests = [stats.kstest(column, "uniform") for column in uniform.T.numpy()]
    figures = (
        chi_square,
        torch.as_tensor(stats.chi2.sf(chi_square.numpy(), bins - 1)),
        torch.tensor([test.statistic for test in tests], dtype=torch.float64),
        torch.tensor([test.pvalue for test in tests], dtype=torch.float64),
    )
    return Calibration(ranks, num_draws, bins, *(figure.reshape(ranks.shape[1:]) for figure in figures))
