"""Latent dimensions: which are active and which have collapsed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.information import closed_form_kl
from pyro_vae.elbo.draw import Draw, draw_particles
from pyro_vae.evaluation.chunking import example_chunks
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import Site, sample_sites

ACTIVE_VARIANCE = 0.01  # Burda et al.
COLLAPSED_KL = 0.01  # nats
CLOSED_FORM, SAMPLED = "closed form", "sampled"


@dataclass(frozen=True, eq=False)
class LatentDiagnostics:
    """The usage of one latent site of event shape S.

    ``mean_variance``, S: variance over examples of the mean of q, Var E[z|x], with its standard error; NaN for a
    categorical site, whose class numbers have no mean. ``kl``, S, or () where it is not a sum over dimensions: KL(q‖p)
    in nats, averaged over examples, with its standard error. ``mean_from`` and ``kl_from`` say how mean and KL were
    computed: closed form, or sampled, where the standard error includes the noise of the particles.
    """

    mean_variance: Tensor
    mean_variance_error: Tensor
    mean_from: str
    kl: Tensor
    kl_error: Tensor
    kl_from: str

    @property
    def active(self) -> Tensor:
        """Whether each dimension is active, S: the variance of its posterior mean is above 0.01."""
        return self.mean_variance > ACTIVE_VARIANCE

    @property
    def active_units(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> Tensor:
        """Whether each dimension (or the site) has collapsed to the prior: a mean KL below 0.01 nats."""
        return self.kl < COLLAPSED_KL


@torch.no_grad()
def latent_diagnostics(
    program: Program, x: Batch, num_particles: int = 10, seed: int = 0, *, vectorize_particles: bool = True
) -> dict[str, LatentDiagnostics]:
    r"""Return the usage of every latent site: which dimensions are active, which have collapsed.

    .. math:: A = \mathrm{Var}_x\, E_{q(z|x)}[z], \qquad
        \frac1N \sum_n KL(q(z_j|x_n) \,\|\, p(z_j))

    The posterior mean is in closed form for the guide's first site, if its distribution has a mean; otherwise it is the
    mean of K particles, whose variance / K is subtracted from A. The KL is in closed form where torch has a formula and
    the guide samples its sites in the model's order (conditional on the earlier sites); otherwise it is sampled,
    log q − log p.

    Source: Burda, Grosse and Salakhutdinov, arXiv 1509.00519.

    Args:
        program: the program.
        x: examples, (B, *event_shape).
        num_particles: K, at least 2.
        seed: fixes the noise.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Example:
        >>> from pyro_vae import VAE
        >>> found = latent_diagnostics(VAE((4,), latent_dim=2), torch.ones(10, 4))["z"]
        >>> found.kl.shape, found.kl_from, found.active_units
        (torch.Size([2]), 'closed form', 0)
    """
    if num_particles < 2:
        raise InputError("at least 2 particles, for their variance", num_particles, "num_particles=10")
    parts: dict[str, list[_SitePart]] = {}
    with evaluating(program, x.device, seed):
        for part in example_chunks(x, num_particles):
            draw = draw_particles(program, part, num_particles, vectorize_particles=vectorize_particles)
            for name, of_site in _site_parts(draw):
                parts.setdefault(name, []).append(of_site)
    return {name: _joined(of_site, num_particles) for name, of_site in parts.items()}


@dataclass(frozen=True, eq=False)
class _SitePart:
    """One site, a chunk of examples: means (B, *S), variance of particles (B, *S) or None, KL (B, *S) or (B,)."""

    mean: Tensor
    particle_variance: Tensor | None
    kl: Tensor
    kl_from: str


def _site_parts(draw: Draw) -> Iterable[tuple[str, _SitePart]]:
    runs = [(dict(sample_sites(run.guide_trace)), dict(sample_sites(run.model_trace))) for run in draw.runs]
    guide, model = runs[0]
    names = [name for name, site in guide.items() if not site["infer"].get("is_auxiliary")]
    same_order = names == [name for name, site in model.items() if not site["is_observed"]]
    for name in names:
        mean, variance = posterior_mean(draw, guide[name], depends_on_x_alone=name == next(iter(guide)))
        found = [_site_kl(q[name], p[name], same_order) for q, p in runs]
        kl = draw.of_runs([values for values, _ in found])
        yield name, _SitePart(mean, variance, kl.double().mean(0), found[0][1])


def posterior_mean(draw: Draw, site: Site, depends_on_x_alone: bool) -> tuple[Tensor, Tensor | None]:
    """Return the mean of q at one site of the guide, of the first run, from a draw of K particles, (B, S), float64.

    In closed form, with None for the variance, where the site depends on x alone and its distribution has a mean;
    otherwise mean and variance of the particles. NaN for a categorical site, whose class numbers have no mean.
    """
    particles = draw.drawn[site["name"]].double()
    if isinstance(innermost(site["fn"]), dist.Categorical):
        return torch.full_like(particles[0], math.nan), None
    if depends_on_x_alone:
        try:
            return site["fn"].mean.expand_as(particles)[0].double(), None
        except NotImplementedError:  # a flow
            pass
    return particles.mean(0), particles.var(0)


def _site_kl(q: Site, p: Site, same_order: bool) -> tuple[Tensor, str]:
    """Return the KL of one site, (K, B, *S) or (K, B), and how it was computed."""
    apart = [innermost(q["fn"]), innermost(p["fn"])]
    whole = any(fn.event_shape for fn in apart)
    q_fn, p_fn = (q["fn"], p["fn"]) if whole else apart
    exact = closed_form_kl(q_fn, p_fn) if same_order else None
    if exact is not None:
        return _masked(exact, q), CLOSED_FORM
    return _masked(q_fn.log_prob(q["value"]), q) - _masked(p_fn.log_prob(q["value"]), p), SAMPLED


def _masked(values: Tensor, site: Site) -> Tensor:
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - len(site["fn"].batch_shape)))
    masked: Tensor = scale_and_mask(values, scale=1.0, mask=mask)
    return masked


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
    """Return the standard error of the mean along the first dimension; NaN for a single term."""
    if len(terms) < 2:
        return torch.full_like(terms[0], math.nan)
    return terms.std(0) / math.sqrt(len(terms))
