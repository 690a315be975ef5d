"""The weights of the three gradient terms, and the surrogates whose gradients are their weighted sums."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn, Self, TypeAlias

import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import log_share_of_others, mean_of_others
from pyro_vae.elbo.draw import Draw, Latents
from pyro_vae.elbo.local import LocalAdvantage
from pyro_vae.elbo.measured import MeasuredAdvantage
from pyro_vae.elbo.sums import is_each, weighted_sum
from pyro_vae.elbo.terms import Run, Terms, carries_density, is_score

Advantage: TypeAlias = Tensor | LocalAdvantage | MeasuredAdvantage


@dataclass(frozen=True, eq=False)
class Weighting(ABC):
    """The value of a bound, (B,), in nats, and the weights of its gradient terms, each (K, B)."""

    latents: ClassVar[Latents]  # how the draw must sample its latents
    value: Tensor

    @property
    def needs_independence(self) -> bool:
        """Whether an example's terms are weighted by its own bound alone, so that none may depend on other examples."""
        return False

    @property
    def of_log_q(self) -> Tensor:
        """The weight of −log q of a site without a pathwise gradient, (K, B), beside its advantage."""
        raise TypeError(f"{type(self).__name__} has no weight of log q beside the advantage")

    @classmethod
    @abstractmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the weighting by which every term that this class keeps has the weight of Σ weight log w."""

    @abstractmethod
    def surrogate(self, draw: Draw, terms: Terms, advantage: Advantage | None = None) -> Tensor:
        """Return a scalar whose gradient is the weighted sum of the terms.

        Args:
            draw: of the particles.
            terms: of the draw, differentiable.
            advantage: (K, B), what each particle adds to the bound: the weight of the score of the sites without
                reparameterization; None if there are none.
        """

    def scaled(self, scale: Tensor | float) -> Self:
        """Return the weights times a scale for each example, (B,); one number is left to the loss."""
        if not is_each(scale):
            return self
        weights = {name: w * scale for name, w in vars(self).items() if name != "value" and isinstance(w, Tensor)}
        return replace(self, **weights)


@dataclass(frozen=True, eq=False)
class TotalDerivative(Weighting):
    r"""The total derivative of :math:`\sum_k a_k \log w_k`: all three terms, weighted a, a and −a."""

    latents: ClassVar[Latents] = "attached"
    theta: Tensor

    @property
    def of_log_q(self) -> Tensor:
        """The weight a of log w."""
        return self.theta

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the total derivative of Σ weight log w."""
        return cls(value, weight)

    def surrogate(self, draw: Draw, terms: Terms, advantage: Advantage | None = None) -> Tensor:
        """Return Σ a log w, and Σ advantage log q of the sites without reparameterization."""
        surrogate = weighted_sum(self.theta, terms.log_weight)
        return surrogate if advantage is None else surrogate + scored(draw, advantage)

    def three_terms(self) -> "ThreeTerms":
        """Return the weights of the three terms."""
        return ThreeTerms(self.value, self.theta, self.theta, -self.theta)


@dataclass(frozen=True, eq=False)
class PathDerivative(Weighting):
    r"""The total derivative without the score term (sticking the landing): weights a, a and 0.

    log q is scored at detached leaves, so that of its gradient :math:`\nabla_z \log q` alone is kept. Sites without
    reparameterization keep their score.
    """

    latents: ClassVar[Latents] = "path"
    theta: Tensor

    @property
    def of_log_q(self) -> Tensor:
        """The weight a of log w: the score of these sites is kept."""
        return self.theta

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the path derivative of Σ weight log w."""
        return cls(value, weight)

    def surrogate(self, draw: Draw, terms: Terms, advantage: Advantage | None = None) -> Tensor:
        """Return Σ a log p(x, z) − Σ a ∇z log q · z(φ)."""
        surrogate = weighted_sum(self.theta, terms.log_joint)
        if draw.model_attached:  # one pass through the model serves both terms
            return surrogate - pathwise(draw, weighted_sum(self.theta, terms.log_qz))
        score = scored(draw, advantage)
        surrogate = surrogate + score + pathwise(draw, weighted_sum(self.theta, terms.log_weight) + score)
        kept = [part for part in map(draw.log_q_of, (is_score, carries_density)) if part is not None]
        return surrogate - sum(weighted_sum(self.theta, part) for part in kept)

    def three_terms(self) -> "ThreeTerms":
        """Return the weights of the three terms."""
        return ThreeTerms(self.value, self.theta, self.theta, None)


@dataclass(frozen=True, eq=False)
class ThreeTerms(Weighting):
    """A weight of its own for each term, None for none; the draw's latents are leaves, so that the terms never mix."""

    latents: ClassVar[Latents] = "leaves"
    theta: Tensor
    path: Tensor | None
    score: Tensor | None

    @property
    def of_log_q(self) -> Tensor:
        """The weight a where there is no score term, else −c."""
        return self.theta if self.score is None else -self.score

    @property
    def needs_independence(self) -> bool:
        """Without a score term: the identity that replaces it holds for each example by itself."""
        return self.score is None

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> Self:
        """Return the total derivative of Σ weight log w, term by term."""
        return cls(value, weight, weight, -weight)

    def surrogate(self, draw: Draw, terms: Terms, advantage: Advantage | None = None) -> Tensor:
        """Return Σ a log p(x, z) + Σ b ∇z log w · z(φ) + Σ c log q(z|x).

        Without a score term (c None) the identity that replaces it leaves −Σ a log q of the sites without
        reparameterization, as a whole, beside their advantage (:doc:`/estimators`).

        Raises:
            InputError: no score term, and a ``Delta`` of the guide's own parameters, or a straight-through site.
        """
        if self.score is None:
            _check_split(draw)
        parts = [] if self.path is None else [weighted_sum(self.path, terms.log_weight)]
        surrogate = weighted_sum(self.theta, terms.log_joint)
        if advantage is not None:
            score = scored(draw, advantage)
            score = score - scored(draw, self.theta) if self.score is None else score
            surrogate, parts = surrogate + score, [*parts, score]
        if parts and draw.runs[0].leaves:
            surrogate = surrogate + pathwise(draw, sum(parts[1:], parts[0]))
        return surrogate if self.score is None else surrogate + weighted_sum(self.score, terms.log_qz)


@dataclass(frozen=True, eq=False)
class ScoreFunction(Weighting):
    """No pathwise term: log p(x, z) and log q(z|x) at latents that are detached as they are sampled."""

    latents: ClassVar[Latents] = "fixed"
    theta: Tensor
    score: Tensor | None = None

    @property
    def needs_independence(self) -> bool:
        """Where log q has a weight: it is that of its own example's bound."""
        return self.score is not None

    @classmethod
    def of(cls, value: Tensor, weight: Tensor) -> NoReturn:
        """Refuse: without a pathwise term the score term's weight does not follow from that of log w."""
        raise TypeError("a score function has a weight for each term: return ScoreFunction(value, theta, score)")

    def surrogate(self, draw: Draw, terms: Terms, advantage: Advantage | None = None) -> Tensor:
        """Return Σ a log p(x, z) + Σ c log q(z|x); log q is the density of the samples, neither scaled nor masked."""
        return weighted_sum(self.theta, terms.log_joint) + scored(draw, self.score if advantage is None else advantage)


def scored(draw: Draw, weight: Advantage | None) -> Tensor:
    """Return Σ weight log q of the sites that have a score function, a scalar."""
    if isinstance(weight, LocalAdvantage | MeasuredAdvantage):
        return weight.scored(draw)
    log_score = None if weight is None else draw.log_score
    return (
        torch.zeros((), device=_device(draw))
        if weight is None or log_score is None
        else weighted_sum(weight, log_score)
    )


def pathwise(draw: Draw, of_leaves: Tensor) -> Tensor:
    """Return Σ g · z(φ), g the detached gradient of a function of the leaves: the chain rule through z.

    Samples depend on the leaves of earlier sites, so g is gathered from the last site to the first.
    """
    parts = [_through(run, of_leaves) for run in draw.runs]
    return torch.stack([part for each in parts for part in each] or [torch.zeros((), device=_device(draw))]).sum()


def _through(run: Run, of_leaves: Tensor) -> list[Tensor]:
    names = list(run.leaves)
    found = dict(zip(names, _gradients(of_leaves, [run.leaves[n] for n in names]), strict=True))
    parts = []
    for number, name in reversed(list(enumerate(names))):
        gradient, z = found[name].detach(), run.drawn[name]
        if not z.requires_grad:
            continue
        parts.append((gradient * z).sum())
        earlier = names[:number]
        for other, more in zip(earlier, _gradients(z, [run.leaves[n] for n in earlier], gradient), strict=True):
            found[other] = found[other] + more
    return parts


def _gradients(output: Tensor, leaves: list[Tensor], weight: Tensor | None = None) -> list[Tensor]:
    """Return the gradient of an output for each leaf; zero where it does not depend on it."""
    if not leaves or not output.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(output, leaves, weight, retain_graph=True, materialize_grads=True))


def _device(draw: Draw) -> torch.device:
    return next((site["value"].device for site in draw.runs[0].sites), torch.device("cpu"))


def _check_split(draw: Draw) -> None:
    """Refuse samples whose gradient cannot be split into one at fixed z and one through z."""
    leaves = {id(leaf) for run in draw.runs for leaf in run.leaves.values()}
    for run in draw.runs:
        for site in run.guide_latents:
            fn = innermost(site["fn"])
            if isinstance(fn, Delta):
                parts = [part for part in (fn.v, fn.log_density) if isinstance(part, Tensor)]
                if any(id(variable) not in leaves for part in parts for variable in _variables(part)):
                    raise InputError(
                        f"log q(z) as a function of z at site {site['name']!r} (this estimator splits its gradient)",
                        "a Delta of the guide's own parameters",
                        "iwae or sampled_kl, which differentiate it as a whole",
                    )
            if "StraightThrough" in type(fn).__name__:
                raise InputError(
                    f"an exact gradient through z at site {site['name']!r} (this estimator rests on it)",
                    f"{type(fn).__name__}, whose gradient is biased",
                    "iwae, stl or sampled_kl, which take it as it is; or the distribution itself, by its score",
                )


def _variables(tensor: Tensor) -> list[Tensor]:
    """Return the leaves of the graph behind a tensor; itself, if it is one."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    seen, waiting, found = set(), [tensor.grad_fn], []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions if following is not None)
    return found


def added_by_each(log_w: Tensor) -> Tensor:
    r"""Return what each particle adds to the importance-weighted bound, :math:`\mathcal L - \mathcal L_{-k}`, (K, B).

    In :math:`\mathcal L_{-k}` its weight is the geometric mean of the others. Memory is that of log w.

    Args:
        log_w: (K, B), K at least 2.
    """
    geometric = mean_of_others(log_w.log_softmax(0))
    return -bounded_share(torch.logaddexp(log_share_of_others(log_w), geometric))


def bounded_share(log_share: Tensor) -> Tensor:
    """Return the log of a share of the sum of weights, for a share of 0 that of the smallest normal number."""
    return log_share.masked_fill(log_share == -math.inf, math.log(torch.finfo(log_share.dtype).tiny))
