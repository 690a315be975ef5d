"""Effect handlers: the Pyro messengers that programs run under."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, cast, get_args

import torch
from pyro.distributions import Normal, TorchDistribution
from pyro.distributions.relaxed_straight_through import QuantizeBernoulli, QuantizeCategorical
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict, Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError

Kind = Literal["values", "unconstrained"]
Seen = Literal["attached", "leaves", "fixed"]
Strategy = Literal["pathwise", "score", "enumerate", "measure_valued"]
SampleMessage: TypeAlias = "Message[..., Tensor]"


class Unobserve(UnconditionMessenger):
    """Sample what the model observes, as ``poutine.uncondition`` does, and leave ``pyro.deterministic`` alone."""

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if not (msg["infer"] or {}).get("_deterministic"):
            super()._pyro_sample(msg)


class GivenNoise(Messenger):
    """Sample site ``z`` as μ + σ ε from given noise ε, so that two devices sample the same z."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if msg["name"] == "z" and msg["value"] is None:
            normal = cast(Normal, innermost(cast(Distribution, msg["fn"])))
            msg["value"] = normal.loc + normal.scale * self.noise
            msg["done"] = True


class Substitute(Messenger):
    """Set latent sites to given values, or to given unconstrained values mapped to the site's support."""

    def __init__(self, latents: Mapping[str, Tensor], kind: Kind) -> None:
        super().__init__()
        self.latents, self.kind = latents, kind

    def _pyro_sample(self, msg: SampleMessage) -> None:
        name = msg["name"] or ""
        if name in self.latents:
            given, fn = self.latents[name], cast(Distribution, msg["fn"])
            msg["value"] = support_transform(name, fn)(given) if self.kind == "unconstrained" else given
            msg["done"] = True


def support_transform(name: str, fn: Distribution) -> Transform:
    """Return the transform from unconstrained numbers to the support of a site's distribution.

    Raises:
        InputError: a discrete latent, or one without real coordinates, as on a sphere.
    """
    try:
        transform: Transform = biject_to(fn.support)
    except NotImplementedError:
        if fn.support is not None and not fn.support.is_discrete:
            expected = f"a latent at site {name!r} that is a function of real numbers"
            raise InputError(expected, type(fn).__name__, "importance sampling") from None
        hint = "importance sampling, or enumeration"
        raise InputError(f"a continuous latent at site {name!r}", type(fn).__name__, hint) from None
    return transform


class Sampled(Messenger):
    """Samples a guide's latents, and decides what the rest of the program sees of them.

    ``attached``: the samples, differentiable where their distribution is. ``leaves``: detached copies whose own
    gradient can be taken; :attr:`drawn` keeps the samples. ``fixed``: detached. A site marked
    ``infer={"gradient": "score"}``, and one without reparameterization, is detached in every case.

    A sample without a gradient stays the same object: a flow without an inverse scores only its own samples.

    Args:
        see: one of the three.
        enumeration: where the values of enumerated sites go; None: such sites are sampled.
        strategies: of sites by name, in the place of their own marks.
    """

    def __init__(
        self, see: Seen, enumeration: "Enumeration | None" = None, strategies: Mapping[str, Strategy] | None = None
    ) -> None:
        super().__init__()
        self.see, self.enumeration, self.strategies = see, enumeration, strategies or {}
        self.drawn: dict[str, Tensor] = {}  # with their gradient, in the order of sampling
        self.leaves: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if msg["name"] in self.strategies:
            msg["infer"] = cast(InferDict, {**(msg["infer"] or {}), "gradient": self.strategies[str(msg["name"])]})
        if self.enumeration is not None and not msg["done"] and not msg["is_observed"]:
            self.enumeration.give(msg)

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        value, name = msg["value"], str(msg["name"])
        if msg["is_observed"] or site_is_subsample(msg) or (msg["infer"] or {}).get("_deterministic"):
            return
        if not isinstance(value, Tensor):
            return
        pathwise = is_pathwise(msg)
        if self.see == "fixed" or not pathwise:
            msg["value"] = _detached(value) if value.requires_grad else value
        elif self.see == "leaves":
            soft = getattr(value, "_unquantize", value)  # of a straight-through distribution
            self.drawn[name], self.leaves[name] = soft, soft.detach().requires_grad_()
            msg["value"] = _requantized(value, self.leaves[name])


class Unplanned(Exception):
    """An enumerated site where no dimensions are planned for its values."""


class Enumeration:
    """Gives every enumerated site all the values of its support, each site in a dimension of its own.

    The dimensions lie to the left of all plates, as in Pyro's parallel enumeration, and are never used twice.

    Args:
        first: the first dimension, the others follow to the left; None: an enumerated site raises :class:`Unplanned`.
    """

    def __init__(self, first: int | None) -> None:
        self.first = first
        self.sizes: dict[str, int] = {}  # by site, in the order of sampling

    def dim(self, name: str) -> int:
        """Return the dimension of a site's values."""
        assert self.first is not None
        return self.first - list(self.sizes).index(name)

    def give(self, msg: SampleMessage) -> None:
        """Set the value of an enumerated site to all values of its support."""
        if strategy(msg) != "enumerate":
            return
        if self.first is None:
            raise Unplanned
        name, fn = str(msg["name"]), cast(TorchDistribution, msg["fn"])
        support = _support(name, fn, msg["infer"] or {})
        self.sizes[name] = len(support)
        missing = -1 - self.dim(name) - len(fn.batch_shape)
        msg["value"] = support.reshape(len(support), *(1,) * missing, *support.shape[1:])
        msg["done"] = True


def _support(name: str, fn: TorchDistribution, infer: Mapping[str, object]) -> Tensor:
    if infer.get("num_samples") is not None:
        raise InputError(f"a sum over all values at site {name!r}", "infer={'num_samples': ...}", "no num_samples")
    try:
        support: Tensor = fn.enumerate_support(expand=False)
    except NotImplementedError:
        raise InputError(
            f"a finite support at site {name!r}, for a sum over its values",
            f"{type(innermost(fn)).__name__}{', event shape ' + str(tuple(fn.event_shape)) if fn.event_shape else ''}",
            'infer={"gradient": "score"}, or an event of one variable',
        ) from None
    return support


def strategy(site: SampleMessage) -> Strategy:
    """Return how a latent gets its gradient: pathwise where it is reparameterized, unless it is marked otherwise."""
    infer, able = site["infer"] or {}, bool(getattr(site["fn"], "has_rsample", False))
    marked = infer.get("gradient")
    if marked is None:
        return "enumerate" if infer.get("enumerate") else "pathwise" if able else "score"
    if marked not in get_args(Strategy) or (marked == "pathwise" and not able):
        kind = type(innermost(cast(Distribution, site["fn"]))).__name__
        got = f"{marked!r}" if marked != "pathwise" else f"'pathwise' of {kind}, which is not reparameterized"
        expected = f"one of {', '.join(repr(each) for each in get_args(Strategy))} as gradient of site {site['name']!r}"
        raise InputError(expected, got, 'infer={"gradient": "score"}')
    return cast(Strategy, marked)


def is_pathwise(site: SampleMessage) -> bool:
    """Whether a site's gradient passes through its sample."""
    return strategy(site) == "pathwise"


def _detached(value: Tensor) -> Tensor:
    """Return a sample without its gradient; one of a straight-through distribution keeps its relaxed value."""
    found = value.detach()
    if hasattr(value, "_unquantize"):
        found._unquantize = value._unquantize.detach()  # type: ignore[attr-defined]
    return found


def _requantized(value: Tensor, leaf: Tensor) -> Tensor:
    """Return a leaf as the program must see it: quantized again, if the sample was."""
    if not hasattr(value, "_unquantize"):
        return leaf
    for quantize in (QuantizeCategorical, QuantizeBernoulli):
        found: Tensor = quantize.apply(leaf)
        if torch.equal(found.detach(), value.detach()):
            found._unquantize = leaf  # type: ignore[attr-defined]
            return found
    raise InputError("a straight-through sample of Pyro's own distributions", "another", "sampled_kl or iwae")


class Untraced(Messenger):
    """Records the samples that Pyro keeps out of traces (of ``ConjugateReparam``, say), or gives them again."""

    def __init__(self, given: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.given = given or {}
        self.seen: dict[str, SampleMessage] = {}

    def _pyro_sample(self, msg: SampleMessage) -> None:
        name = str(msg["name"])
        if (msg["infer"] or {}).get("_do_not_trace") and name in self.given and not msg["done"]:
            msg["value"], msg["done"] = self.given[name], True

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        if (msg["infer"] or {}).get("_do_not_trace") and isinstance(msg["value"], Tensor):
            self.seen[str(msg["name"])] = msg.copy()


class LastSite(Messenger):
    """Keep the name of the last sample site that a program reached."""

    name = ""

    def _process_message(self, msg: SampleMessage) -> None:
        if msg["type"] == "sample":
            self.name = msg["name"] or ""


class WeightLatents(Messenger):
    r"""Multiply the log-density of every latent site by a weight β: KL warm-up for Pyro's own estimators.

    With model and guide both under this handler, ``Trace_ELBO`` estimates
    :math:`E_q[\log p(x|z) + \beta (\log p(z) - \log q(z|x))]`, and ``TraceMeanField_ELBO``, which reads only the
    guide's scale, :math:`E_q \log p(x|z) - \beta\, \mathrm{KL}(q \| p)`.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


class Hold(Messenger):
    """Give every sample site, latent or observed, the value that it is given here; plates and factors too."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: SampleMessage) -> None:
        name = msg["name"] or ""
        if name in self.values and not (msg["infer"] or {}).get("_deterministic"):
            msg["value"] = self.values[name]
            msg["done"] = True
