r"""What every estimator shares: one draw, three log-densities, and weights that say what is differentiated how.

Noise is drawn in one place (:class:`Draw`); all the rest is arithmetic on tensors of shape (K, B). An estimator is a
function from the :class:`Terms` of a draw to a :class:`Weighting`: the value of its bound, and for every particle

======  =========================================================================
theta   weight of :math:`\nabla_\theta \log p(x, z)` at fixed z
path    weight of :math:`\nabla_z \log w`, carried through :math:`z(\varphi)`
score   weight of :math:`\nabla_\varphi \log q(z|x)` at fixed z
======  =========================================================================

The total gradient of log w is ``theta = path = a`` and ``score = −a``; sticking the landing leaves the score out;
DReG takes another power of the weights for the path; REINFORCE and VIMCO have no path at all.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import Draw, Function, Latents, Terms
from pyro_vae.program.protocol import Program

Form = Literal["total", "sticking", "parts", "fixed"]


@dataclass(frozen=True, eq=False)
class Weighting:
    """The value of a bound, (B,), in nats, and the weights of its gradient, each (K, B) or None for none."""

    value: Tensor
    theta: Tensor
    path: Tensor | None
    score: Tensor | None

    @classmethod
    def total(cls, value: Tensor, weight: Tensor) -> "Weighting":
        """Return the weighting of the whole gradient of log w: nothing dropped, nothing doubled."""
        return cls(value, weight, weight, -weight)


@dataclass(frozen=True, eq=False)
class Bound:
    """What an estimator makes of a draw.

    ``value`` (B,), nats per datum, is what is printed; ``surrogate``, a scalar, is what is differentiated (upwards)
    and never printed: its gradient is the estimator's, its value means nothing.
    """

    value: Tensor
    surrogate: Tensor


Rule = Callable[[Terms], Weighting]


class Estimator(ELBO):
    """The one abstract estimator; a frozen value that is a ``pyro.infer.ELBO``.

    Subclasses are frozen dataclasses. They say which :data:`Form` their gradient has and define :meth:`weighting`, a
    pure function of (K, B) tensors; the few that need more than the three terms define :meth:`of_draw` instead.
    """

    form: ClassVar[Form] = "total"
    num_particles: int
    vectorize_particles = True
    max_plate_nesting = 2  # particles, data

    @property
    def draws(self) -> int:
        """How many particles a step draws in all, K."""
        return self.num_particles

    @abstractmethod
    def weighting(self, terms: Terms) -> Weighting:
        """Return the value and the gradient's weights from detached terms."""

    def draw(self, model: Function, guide: Function, args: Any, kwargs: Any, latents: Latents | None = None) -> Draw:
        """Draw the particles of one step; the latents are as the estimator's form needs them, or as asked for."""
        return Draw(model, guide, args, kwargs, self.draws, latents or LATENTS[self.form])

    def of_draw(self, draw: Draw) -> Bound:
        """Return value and surrogate of one draw."""
        return ASSEMBLE[self.form](draw, self.weighting)

    def bound(self, program: Program, x: Tensor) -> Bound:
        """Draw particles for a batch x (B, *event_shape) and return the bound; the program's store must be active."""
        return self.of_draw(self.draw(program.model, program.guide, (x,), {}))

    def loss(self, model: Function, guide: Function, *args: Any, **kwargs: Any) -> float:
        """Return minus the bound, summed over the batch and scaled as the program scales it."""
        with torch.no_grad():
            draw = self.draw(model, guide, args, kwargs, "fixed")
            return float(-draw.scale * self.value(draw).sum())

    def value(self, draw: Draw) -> Tensor:
        """Return the bound alone, (B,), nats per datum."""
        return self.weighting(draw.terms.detach()).value

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return what the estimator remembers between steps: nothing, but for running baselines."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        """Put back what it remembered."""

    def losses(self, model: Function, guide: Function, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the loss, cut off, and the surrogate loss, whose gradient is the estimator's."""
        draw = self.draw(model, guide, args, kwargs)
        found = self.of_draw(draw)
        return -draw.scale * found.value.detach().sum(), -draw.scale * found.surrogate

    def differentiable_loss(self, model: Function, guide: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, with the gradient of the surrogate."""
        loss, surrogate_loss = self.losses(model, guide, *args, **kwargs)
        return loss + (surrogate_loss - surrogate_loss.detach())

    def loss_and_grads(self, model: Function, guide: Function, *args: Any, **kwargs: Any) -> float:
        """Return the loss, and add its gradient to ``.grad`` of every parameter."""
        loss, surrogate_loss = self.losses(model, guide, *args, **kwargs)
        if surrogate_loss.requires_grad:
            surrogate_loss.backward()
        return float(loss)

    def _get_trace(self, *args: Any) -> Any:  # Pyro's base class asks for it; nothing here calls it
        raise TypeError("estimators draw by pyro_vae.elbo.Draw")


def _total_gradient(draw: Draw, weighting: Rule) -> Bound:
    """The ordinary gradient of Σ theta log w, along every way at once."""
    terms = draw.terms
    weights = weighting(terms.detach())
    return Bound(weights.value, (weights.theta * terms.log_weight).sum())


def _sticking_gradient(draw: Draw, weighting: Rule) -> Bound:
    """The total gradient without the score of log q: of q only ∇z log q is kept, taken at leaves."""
    terms = draw.terms
    weights = weighting(terms.detach())
    leaves = {name: z.detach().requires_grad_() for name, z in draw.drawn.items()}
    along_path = _carried(draw, (weights.theta * draw.log_q(leaves)).sum(), leaves)
    return Bound(weights.value, (weights.theta * terms.log_joint).sum() - along_path)


def _gradient_by_parts(draw: Draw, weighting: Rule) -> Bound:
    """Every part with its own weight; the draw's latents are leaves, so that the parts never mix."""
    terms = draw.terms
    weights = weighting(terms.detach())
    surrogate = (weights.theta * terms.log_joint).sum()
    if weights.path is not None:
        surrogate = surrogate + _carried(draw, (weights.path * terms.log_weight).sum(), draw.latents)
    if weights.score is not None:
        surrogate = surrogate + (weights.score * terms.log_qz).sum()
    return Bound(weights.value, surrogate)


def _gradient_at_fixed_latents(draw: Draw, weighting: Rule) -> Bound:
    """No way through z: log p(x, z) and log q(z|x) at latents that were cut off while drawn."""
    terms = draw.terms
    weights = weighting(terms.detach())
    surrogate = (weights.theta * terms.log_joint).sum()
    if weights.score is not None:
        surrogate = surrogate + (weights.score * terms.log_qz).sum()
    return Bound(weights.value, surrogate)


def _carried(draw: Draw, of_leaves: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
    """Return Σ g · z(φ), g the gradient of a function of the leaves: what the chain rule carries through z."""
    names = list(leaves)
    found = torch.autograd.grad(of_leaves, [leaves[n] for n in names], retain_graph=True, materialize_grads=True)
    parts = [(g.detach() * draw.drawn[n]).sum() for n, g in zip(names, found, strict=True)]
    return torch.stack(parts).sum()


LATENTS: dict[Form, Latents] = {"total": "attached", "sticking": "attached", "parts": "leaves", "fixed": "fixed"}
ASSEMBLE: dict[Form, Callable[[Draw, Rule], Bound]] = {
    "total": _total_gradient,
    "sticking": _sticking_gradient,
    "parts": _gradient_by_parts,
    "fixed": _gradient_at_fixed_latents,
}


def at_least_one(name: str, value: object) -> None:
    """Refuse a count that is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"a {name} that is a whole number of at least 1", repr(value), f"{name}=1")
