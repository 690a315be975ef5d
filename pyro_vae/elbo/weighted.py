"""The KL's weight, as arithmetic on terms: KL warm-up and β-VAE for any estimator for which it holds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.estimator import Bound, Estimator, EstimatorState, Group
from pyro_vae.elbo.wrapper import Wrapper


@dataclass(frozen=True)
class Weighted(Wrapper):
    r"""Another estimator with the KL weighted by β.

    .. math:: \log w_\beta = \log p(x|z) + \beta \, (\log p(z) - \log q(z|x))

    replaces log w in value and gradient (in the closed form, β KL replaces KL). For β < 1 the value is no bound; for
    β > 1 it is one for estimators of the ELBO, but not for importance-weighted ones. Sources: β-VAE: Higgins et al.,
    ICLR 2017; warm-up: Bowman et al., arXiv 1511.06349.

    Args:
        estimator: one whose ``kl_weightable`` is true. The others (DReG, PIWAE, VIMCO, TVO, wake-sleep) are derived for
            w = p/q itself.
        beta: β, above 0; a scalar tensor is used as it is, so no step waits for its value.

    Raises:
        InputError: an estimator whose KL cannot be weighted, a β that is not above 0.

    Example:
        >>> from pyro_vae.elbo import IWAE
        >>> Weighted(IWAE(5), beta=0.5).total_particles
        5
    """

    beta: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.estimator, Weighted):
            raise InputError("one weight of the KL", f"another inside: {self.estimator}", "a single one; no kl_warmup")
        _check_weightable(self.estimator)
        if not isinstance(self.beta, Tensor) and not 0 < self.beta < math.inf:
            raise InputError("a finite beta above 0", self.beta, "beta=1")

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample as the estimator inside, the terms weighted."""
        draw = super().draw(model, guide, args, kwargs, latents or self.estimator.gradient.latents)
        draw.beta = self.beta
        return draw

    def reference(self, group: Group) -> Estimator | None:
        """Return the reference of the estimator inside, its KL weighted."""
        inner = self.estimator.reference(group)
        return None if inner is None else Weighted(inner, self.beta)

    def of_draw(self, draw: Draw) -> Bound:
        """As the estimator inside."""
        return self.estimator.of_draw(draw)

    def value(self, draw: Draw) -> Tensor:
        """As the estimator inside."""
        return self.estimator.value(draw)

    def state_dict(self) -> EstimatorState:
        """Return the state of the estimator inside."""
        return self.estimator.state_dict()

    def load_state_dict(self, state: EstimatorState) -> None:
        """Restore the state of the estimator inside."""
        self.estimator.load_state_dict(state)


def _check_weightable(estimator: ELBO) -> None:
    if isinstance(estimator, Estimator) and estimator.kl_weightable:
        return
    names = ", ".join(sorted(kind.__name__ for kind in _subclasses() if kind.kl_weightable))
    ours = isinstance(estimator, Estimator)
    raise InputError(
        f"an estimator whose KL can be weighted, one of {names}",
        estimator if ours else type(estimator).__name__,
        "no weight, and no kl_warmup" if ours else "sampled_kl, or analytic_kl for a KL in closed form",
    )


def _subclasses(kind: type[Estimator] | None = None) -> Iterator[type[Estimator]]:
    for child in Estimator.__subclasses__() if kind is None else kind.__subclasses__():
        yield child
        yield from _subclasses(child)
