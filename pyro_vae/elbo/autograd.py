"""The plain estimator of any bound: its value, differentiated by autograd."""

from dataclasses import dataclass
from typing import ClassVar

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.coupled import CoupledDraw
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Bound, Estimator, Group
from pyro_vae.elbo.sums import is_each, scaled_sum
from pyro_vae.elbo.weighting import scored
from pyro_vae.elbo.wrapper import Wrapper


@dataclass(frozen=True)
class ByAutograd(Wrapper):
    r"""The total derivative of another estimator's value, by autograd instead of by weights.

    .. math:: \nabla = \nabla_{\theta, \varphi} \, \mathcal L(\log w_1, \ldots, \log w_K), \qquad z_k = z_k(\varphi)

    Unbiased for the gradient of the value's expectation, whatever the weights of the estimator inside: the reference
    of a bound that no other estimator maximises. It has no weights, so wrong ones show as a bias. Sites without
    reparameterization have their score, weighted by the advantage.

    Args:
        estimator: an estimator whose value is differentiable in log w.

    Raises:
        InputError: when used, scales that the estimator inside refuses; an estimator that couples its particles, as
            :class:`~pyro_vae.elbo.DisARM` does, on a program with Bernoulli latents.

    Example:
        >>> from pyro_vae.elbo import CIWAE
        >>> ByAutograd(CIWAE(5)).total_particles
        5
    """

    kl_weightable: ClassVar[bool] = True
    closed: ClassVar[bool] = True

    def reference(self, group: Group) -> Estimator:
        """Return the same derivative."""
        return ByAutograd(self.estimator)

    def of_draw(self, draw: Draw) -> Bound:
        """Return the value of the estimator inside; it is its own surrogate, but for the score of discrete sites."""
        self.check(draw)
        _check_independent(draw, self.estimator)
        terms = draw.terms
        value, weight = self.weighting(terms).value, draw.weight
        surrogate = scaled_sum(weight, value) if is_each(weight) else value.sum()
        return Bound(draw.marginal(value), surrogate + scored(draw, self.advantage_of(draw, terms)))


def _check_independent(draw: Draw, estimator: Estimator) -> None:
    """Refuse particles that share noise, or are relaxed: their scores have other weights."""
    if isinstance(draw, CoupledDraw) and draw.coupled.names:
        raise InputError(
            f"independent particles for the derivative of a value (those of {type(estimator).__name__} are coupled)",
            f"Bernoulli latent {next(iter(draw.coupled.names))!r}",
            "ByAutograd(SampledKL())",
        )
