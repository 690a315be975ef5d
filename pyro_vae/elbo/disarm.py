"""DisARM: the gradient of Bernoulli latents from pairs of samples at opposite noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.coupled import CoupledDraw, check_latents
from pyro_vae.elbo.coupling import coupled, of_all_examples
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.estimator import Bound, Estimator, Group
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.elbo.sums import weighted_sum
from pyro_vae.program.bernoulli import Antithetic, bernoulli_latents


@dataclass(frozen=True)
class DisARM(SampledKL):
    r"""The ELBO, Bernoulli latents by DisARM: an antithetic pair, its noise integrated out where it does not matter.

    .. math:: \nabla_{\alpha_i} = \tfrac12 \bigl(\log w(b) - \log w(\tilde b)\bigr) (b_i - \tilde b_i)\,
        \sigma(|\alpha_i|), \qquad b = 1[u > 1 - \sigma(\alpha)], \ \tilde b = 1[1 - u > 1 - \sigma(\alpha)]

    α are the logits of a Bernoulli latent of the guide. Unbiased. T Bernoulli latents, each given those before it, take
    T + 1 particles: one chain, and for each latent another that shares with it what comes before, has :math:`\tilde b`
    there, and shares the uniform noise of what comes after. So K is a multiple of T + 1, and the estimate the mean over
    such groups. Reparameterized latents beside them have the pathwise gradient; the score of b, of mean zero, is left
    out. Within one latent all elements are flipped together, whatever its plates.

    Sources: Dong, Mnih and Tucker, arXiv 2006.10680; the same estimator for one latent is U2G of Yin, Ho, Yan, Qian and
    Zhou, arXiv 2006.06448. Several latents: as in the authors' code, which samples two more chains for each latent
    where here the first chain is in every pair, and shares the later noise only if asked to.

    Args:
        num_particles: K, a multiple of T + 1: of 2 with one Bernoulli latent.

    Raises:
        InputError: when used, another K; a latent that is neither Bernoulli nor reparameterized, or one that is marked;
            another number of Bernoulli latents than at the first call.

    Example:
        >>> DisARM().num_particles
        2
    """

    num_particles: int = 2

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by score functions."""
        return SampledKL(self.num_particles)

    def draw(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Latents | None = None,
    ) -> Draw:
        """Sample chains."""
        number = bernoulli_latents(model, guide, args, kwargs)
        if self.num_particles % (number + 1):
            raise InputError(
                f"num_particles a multiple of {number + 1} (a chain, and one for each of the Bernoulli latents)",
                self.num_particles,
                f"num_particles={number + 1}",
            )
        chains, seen = Antithetic(self.num_particles, number), latents or self.gradient.latents
        call, many = (model, guide, args, kwargs), self.vectorize_particles
        return CoupledDraw(chains, *call, seen, vectorize_particles=many, strategies=self.strategies)

    def check(self, draw: Draw) -> None:
        """Refuse latents that are neither Bernoulli nor reparameterized."""
        super().check(draw)
        check_latents(draw, type(self).__name__)

    def of_draw(self, draw: Draw) -> Bound:
        """Return the bound; the surrogate has the logits times the weights of the pairs."""
        self.check(draw)
        chains = cast(CoupledDraw, draw)
        terms, scale = chains.terms, chains.scale
        log_w = terms.log_weight.detach()
        scale = scale if isinstance(scale, Tensor) and scale.dim() else 1.0
        even = torch.full_like(log_w, 1 / len(log_w)) * scale
        surrogate = weighted_sum(even, terms.log_joint - chains.log_q_others)
        signal = pair_differences(log_w * scale, cast(Antithetic, chains.coupled).latents + 1)
        signal = of_all_examples(signal) if coupled(chains) else signal
        return Bound(log_w.mean(0), surrogate + weighted_sum(signal, chains.recorded))


def pair_differences(log_w: Tensor, chains: int) -> Tensor:
    """Return half of what the first of a group has more than each of its particles, over the number of groups, (K, B).

    Args:
        log_w: (K, B), K a multiple of the number of chains in a group.
        chains: in a group.

    Example:
        >>> import torch
        >>> pair_differences(torch.tensor([[3.0], [1.0]]), 2).flatten()
        tensor([0., 1.])
    """
    groups = log_w.unflatten(0, (-1, chains))
    more: Tensor = (groups[:, :1] - groups) / (2 * len(groups))
    return more.flatten(0, 1)
