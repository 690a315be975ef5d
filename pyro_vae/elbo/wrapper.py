"""An estimator around another one: what both kinds of it share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import Weighting
from pyro_vae.program.handlers import Strategy


@dataclass(frozen=True)
class Wrapper(Estimator):
    """An estimator that samples and weights as another one does.

    Args:
        estimator: the one inside.
    """

    estimator: Estimator

    @property
    def num_particles(self) -> int:
        """K of the estimator inside."""
        return int(self.estimator.num_particles)

    @property
    def vectorized(self) -> bool:
        """Whether both this one and the estimator inside say so."""
        return self.vectorize_particles and self.estimator.vectorize_particles

    @property
    def by_site(self) -> Mapping[str, Strategy]:
        """Those of both."""
        return {**self.estimator.strategies, **self.strategies}

    @property
    def total_particles(self) -> int:
        """As the estimator inside."""
        return self.estimator.total_particles

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample as the estimator inside, the latents as this one's gradient needs them."""
        inner = self.estimator
        if (inner.vectorize_particles and not self.vectorize_particles) or self.strategies:
            inner = replace(inner, vectorize_particles=self.vectorized, strategies=self.by_site)
        return inner.draw(model, guide, args, kwargs, latents or self.gradient.latents)

    def check(self, draw: Draw) -> None:
        """As the estimator inside."""
        self.estimator.check(draw)

    def weighting(self, terms: Terms) -> Weighting:
        """As the estimator inside."""
        return self.estimator.weighting(terms)
