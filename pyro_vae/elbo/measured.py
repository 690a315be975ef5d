r"""Measure-valued gradients: the derivative of a distribution as a difference of two others.

.. math:: \nabla_\varphi E_{q_\varphi(s)}[f(s)] = \sum_j \nabla_\varphi c_j(\varphi) \; E[f(v_j)]

where f is the bound as a function of one particle's site s, the sites after it sampled anew. No derivative of f and no
baseline is needed; guide and model run once for every value of every variable of the site:

============  ==================================================  =========================================
distribution  values v                                            weights c; only one factor is differentiated
============  ==================================================  =========================================
Bernoulli     1; 0                                                p; −p
Categorical   each of its values                                  its probability
Poisson       n + 1; n, with n sampled                            rate; −rate
Normal, mean  μ + σ W; μ − σ W, with W ~ Weibull(2, √2)           ± μ / (σ √(2π))
Normal, scale μ + σ M; μ + σ M U, M Maxwell of both signs         ± σ / σ
============  ==================================================  =========================================

U is uniform, so that M U is standard normal: the two are coupled. All runs of a step share the noise of later sites.
Sources: Pflug, Optimization of Stochastic Models, 1996; Heidergott, Vázquez-Abad and Volk-Makarewicz, EJOR 2008;
Mohamed, Rosca, Figurnov and Mnih, arXiv 1906.10652, section 6.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from types import EllipsisType

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import noise_state, set_noise_state
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.sums import scaled_sum
from pyro_vae.elbo.terms import Run, is_measured
from pyro_vae.program.plates import plates_of
from pyro_vae.program.tracing import Site

Part = tuple[Tensor, Tensor]  # a weight, of which the gradient is taken, and a value; for each variable of a site


class MeasuredAdvantage:
    """The advantage of the sites with a score, and the bound at other values of the measure-valued ones.

    Args:
        advantage: what each particle adds to the bound, (K, B).
        replaced: the bound with a particle's contribution replaced, (K, B), from rows of particles and what stands in
            their place.
        of_particles: the contributions of a draw, (K, B).
        dropped: what takes the derivative of −log q(v) at the sampled v out of the surrogate.
    """

    def __init__(
        self,
        advantage: Tensor,
        replaced: Callable[[slice, Tensor], Tensor],
        of_particles: Callable[[Draw], Tensor],
        dropped: Tensor,
    ) -> None:
        self.advantage, self.replaced, self.of_particles, self.dropped = advantage, replaced, of_particles, dropped

    def scored(self, draw: Draw) -> Tensor:
        """Return Σ advantage log q of the sites with a score, plus Σ c L of the measure-valued ones: a scalar."""
        log_score = draw.log_score_of(lambda site: not is_measured(site))
        total = self.dropped + sum(self._sites(draw))
        return total if log_score is None else total + scaled_sum(self.advantage, log_score)

    def _sites(self, draw: Draw) -> Iterator[Tensor]:
        each = len(draw.runs) > 1
        for number, run in enumerate(draw.runs):
            rows = slice(number, number + 1) if each else slice(0, draw.num_particles)
            for site in (site for site in run.guide_latents if is_measured(site)):
                check_plates(draw, site)
                yield from self._variables(draw, run, rows, site)

    def _variables(self, draw: Draw, run: Run, rows: slice, site: Site) -> Iterator[Tensor]:
        event = site["value"].dim() - len(site["fn"].batch_shape)
        found = parts(site)
        state = noise_state(site["value"].device)  # after the noise of the values, of which the runs' is independent
        for weight, values in found:
            for variable in itertools.product(*map(range, weight.shape[weight.dim() - event :])):
                at: tuple[EllipsisType | int, ...] = (Ellipsis, *variable)
                value = site["value"].detach().clone()
                value[at] = values[at]
                set_noise_state(state, value.device)
                other = self.of_particles(draw.again(run, site["name"], value))
                yield (draw.kept(weight[at]) * self.replaced(rows, other)).sum()


def plainly_measured(draw: Draw) -> bool:
    """Whether log q of the measure-valued sites enters the terms as it is: no mask, no scale, no weight of the KL."""
    sites = [site for run in draw.runs for site in run.guide_latents if is_measured(site)]
    plain = draw.scales.kind == "none" and not isinstance(draw.beta, Tensor) and draw.beta == 1.0
    return plain and all(site["mask"] is None and not isinstance(site["fn"], dist.MaskedDistribution) for site in sites)


def parts(site: Site) -> list[Part]:
    """Return weights and values, each of the shape of the site's value.

    Raises:
        InputError: a distribution without a measure-valued gradient here.
    """
    fn, value = innermost(site["fn"]), site["value"].detach()
    if isinstance(fn, dist.Bernoulli):
        probability = fn.probs.expand(value.shape)
        return [(probability, torch.ones_like(value)), (-probability, torch.zeros_like(value))]
    if isinstance(fn, dist.Categorical):
        return [(fn.probs[..., c].expand(value.shape), torch.full_like(value, c)) for c in range(fn.probs.shape[-1])]
    if isinstance(fn, dist.Poisson):
        rate = fn.rate.expand(value.shape)
        return [(rate, value + 1), (-rate, value)]
    if isinstance(fn, dist.Normal):
        return _normal(fn.loc.expand(value.shape), fn.scale.expand(value.shape))
    raise InputError(
        f"a Bernoulli, Categorical, Poisson or Normal at measure-valued site {site['name']!r}",
        type(fn).__name__,
        'infer={"gradient": "score"}',
    )


def _normal(loc: Tensor, scale: Tensor) -> list[Part]:
    fixed, mean = scale.detach(), loc.detach()
    weibull = (2 * torch.empty_like(mean).exponential_()).sqrt()
    of_mean = loc / (fixed * math.sqrt(2 * math.pi))
    sign = torch.randint_like(mean, 2) * 2 - 1
    maxwell = sign * torch.randn(3, *mean.shape, dtype=mean.dtype, device=mean.device).square().sum(0).sqrt()
    of_scale = scale / fixed
    return [
        (of_mean, mean + fixed * weibull),
        (-of_mean, mean - fixed * weibull),
        (of_scale, mean + fixed * maxwell),
        (-of_scale, mean + fixed * maxwell * torch.rand_like(mean)),
    ]


def check_plates(draw: Draw, site: Site) -> None:
    """Refuse a measure-valued site in a plate that not all sites share, or beside enumerated ones.

    Raises:
        InputError: names the site.
    """
    inside = [plate.name for plate in plates_of(site) if plate not in draw.plates]
    if inside:
        raise InputError(
            f"measure-valued site {site['name']!r} in no plates but those that all sites share",
            f"plate {inside[0]!r} (each of its elements would need runs of its own)",
            'infer={"gradient": "score"}',
        )
    if get_proxy_mode() is not None:
        raise InputError(
            f"a step that is run as it is, for measure-valued site {site['name']!r} (its runs share their noise)",
            "one that is traced",
            'engine="svi"',
        )
    if draw.values is not None:
        raise InputError(
            "measure-valued or enumerated sites, not both",
            f"{site['name']!r} beside {', '.join(draw.values.sizes)}",
            'infer={"gradient": "score"}',
        )
