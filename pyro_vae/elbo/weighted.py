"""The KL's weight, as arithmetic on terms: KL warm-up and β-VAE for any estimator for which it holds."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import Draw, Function, Latents, Terms
from pyro_vae.elbo.estimator import LATENTS, Bound, Estimator, Weighting
from pyro_vae.elbo.importance import CIWAE, IWAE, MIWAE, Renyi
from pyro_vae.elbo.pathwise import STL, AnalyticKL, SampledKL

# DReG, PIWAE, VIMCO, TVO and wake-sleep are derived for w = p/q itself; with another weight they would not hold.
WEIGHTABLE = (AnalyticKL, SampledKL, STL, IWAE, MIWAE, CIWAE, Renyi)


@dataclass(frozen=True)
class Weighted(Estimator):
    r"""Another estimator with the KL weighted by β.

    .. math:: \log w_\beta = \log p(x|z) + \beta \, (\log p(z) - \log q(z|x))

    takes the place of log w in value and gradient (in the closed form, β KL that of KL). For β < 1 the value is no
    bound; for β > 1 it is one for estimators of the ELBO, but not for importance-weighted ones. Sources: β-VAE: Higgins
    et al., ICLR 2017; warm-up: Bowman et al., arXiv 1511.06349.

    Args:
        estimator: one for which this holds: analytic_kl, sampled_kl, stl, iwae, miwae, ciwae, renyi.
        beta: β, above 0; a scalar tensor is taken as it is, so that no step need wait for its value.

    Raises:
        InputError: an estimator for which it does not hold, a β that is not above 0.

    Example:
        >>> Weighted(IWAE(5), beta=0.5).draws
        5
    """

    estimator: Estimator
    beta: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.estimator, Weighted):
            raise InputError("one weight of the KL", f"another inside: {self.estimator}", "a single one; no kl_warmup")
        if type(self.estimator) not in WEIGHTABLE:
            names = ", ".join(kind.__name__ for kind in WEIGHTABLE)
            hint = "no weight, and no kl_warmup"
            raise InputError(f"an estimator whose KL can be weighted, one of {names}", self.estimator, hint)
        if not isinstance(self.beta, Tensor) and not 0 < self.beta < math.inf:
            raise InputError("a finite beta above 0", self.beta, "beta=1")

    @property
    def num_particles(self) -> int:  # type: ignore[override]
        """K of the estimator inside."""
        return self.estimator.num_particles

    @property
    def draws(self) -> int:
        """As the estimator inside."""
        return self.estimator.draws

    def draw(self, model: Function, guide: Function, args: Any, kwargs: Any, latents: Latents | None = None) -> Draw:
        """Draw as the estimator inside, the terms weighted."""
        latents = latents or LATENTS[self.estimator.form]
        return Draw(model, guide, args, kwargs, self.draws, latents, self.beta)

    def weighting(self, terms: Terms) -> Weighting:
        """As the estimator inside, from terms that are weighted already."""
        return self.estimator.weighting(terms)

    def of_draw(self, draw: Draw) -> Bound:
        """As the estimator inside."""
        return self.estimator.of_draw(draw)

    def value(self, draw: Draw) -> Tensor:
        """As the estimator inside."""
        return self.estimator.value(draw)
