"""Effect handlers: the Pyro messengers that programs run under."""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, cast

from pyro.distributions import Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to

from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError

Kind = Literal["values", "unconstrained"]
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
        InputError: a discrete latent.
    """
    try:
        transform: Transform = biject_to(fn.support)
    except NotImplementedError:
        raise InputError(
            f"a continuous latent at site {name!r}",
            type(fn).__name__,
            "importance sampling, or enumeration",
        ) from None
    return transform


class DetachSamples(Messenger):
    """Detach every sample as it is taken: later sites of the guide see a constant.

    A sample without a gradient stays the same object: a flow without an inverse scores only its own samples.
    """

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        if isinstance(msg["value"], Tensor) and msg["value"].requires_grad:
            msg["value"] = msg["value"].detach()


class LastSite(Messenger):
    """Keep the name of the last sample site that a program reached."""

    name = ""

    def _process_message(self, msg: SampleMessage) -> None:
        if msg["type"] == "sample":
            self.name = msg["name"] or ""


class EachSample(Messenger):
    """Calls a function with the name and the message of every sample site that a program meets."""

    def __init__(self, look: Callable[[str, SampleMessage], None]) -> None:
        super().__init__()
        self.look = look

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        if not site_is_subsample(msg) and not (msg["infer"] or {}).get("_deterministic"):
            self.look(str(msg["name"]), msg)


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
