"""A draw whose particles share the noise of its Bernoulli latents, and which programs estimators on it take."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.terms import Run, score_function
from pyro_vae.program.bernoulli import Coupled, marked
from pyro_vae.program.handlers import Enumeration, Strategy
from pyro_vae.program.protocol import Trace


class CoupledDraw(Draw):
    """Particles whose Bernoulli latents a messenger samples; all else is a :class:`~pyro_vae.elbo.Draw`.

    Args:
        coupled: the messenger, new for each draw.
        model: p(x, z), x observed.
        guide: q(z|x).
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        latents: how the densities see the latents.
        vectorize_particles: several particles in a plate; False: in runs one by one.
        strategies: of sites by name, none of them a Bernoulli latent.

    Raises:
        InputError: as a draw; a mark at a Bernoulli latent.
    """

    def __init__(
        self,
        coupled: Coupled,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents,
        *,
        vectorize_particles: bool,
        strategies: Mapping[str, Strategy],
    ) -> None:
        self.coupled = coupled
        call, many = (model, guide, args, kwargs), vectorize_particles
        super().__init__(*call, coupled.count, latents, vectorize_particles=many, strategies=strategies)

    def _run(self, enumeration: Enumeration | None) -> Run:
        self.coupled.start(self.particles_dim)
        return super()._run(enumeration)

    def _trace(self, function: PyroFunction) -> Trace:
        with self.coupled:
            trace = super()._trace(function)
        if not self.coupled.in_model:  # a run traces the guide, then the model
            self.coupled.finish()
            for name in self.coupled.names:
                if name in self.strategies:
                    raise marked(name, self.strategies[name])
        return trace

    @property
    def recorded(self) -> Tensor:
        """The sum over Bernoulli latents of what the messenger records, (K, B); 0 without any."""
        found = [[self.kept(part) for part in parts] for parts in self.coupled.records]
        return torch.cat([sum(parts[1:], parts[0]) if parts else self._zero() for parts in found])

    @property
    def log_q_others(self) -> Tensor:
        """Log q of the latents that are not Bernoulli, given those before them, (K, B)."""
        names, scale = self.coupled.names, self.scales.latent
        each = [[site for site in run.guide_latents if site["name"] not in names] for run in self.runs]
        return torch.cat([self.total(sites, scale) for sites in each])

    @property
    def whole(self) -> Run:
        """All runs as one: a sample may depend on the leaves of an earlier run."""
        runs = list(enumerate(self.runs))
        drawn = {f"{number} {name}": value for number, run in runs for name, value in run.drawn.items()}
        leaves = {f"{number} {name}": value for number, run in runs for name, value in run.leaves.items()}
        return Run(self.runs[0].guide_trace, self.runs[0].model_trace, drawn, leaves)


def check_latents(draw: Draw, estimator: str) -> None:
    """Refuse latents for which an estimator of Bernoulli latents has no gradient, where gradients are taken.

    In a draw that is not coupled Bernoulli latents are refused, too.

    Raises:
        InputError: a latent or a factor of the guide that needs a score, or a straight-through sample.
    """
    if not torch.is_grad_enabled():
        return
    own = draw.coupled.names if isinstance(draw, CoupledDraw) else []
    for site in (*draw.runs[0].guide_latents, *draw.runs[0].guide_factors):
        kind = type(site["fn"]).__name__
        if site["name"] not in own and (score_function(site) is not None or "StraightThrough" in kind):
            raise InputError(
                f"Bernoulli or reparameterized latents ({estimator} has no gradient for others)",
                f"site {site['name']!r}, {kind}",
                "sampled_kl or reinforce, which take any latent",
            )
