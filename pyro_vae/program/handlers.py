"""Effect handlers: every Pyro messenger of this package."""

from collections.abc import Mapping
from typing import Any, Literal

from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.base.errors import InputError


class Unobserve(UnconditionMessenger):
    """Draw what the model observes, as ``poutine.uncondition`` does, and leave ``pyro.deterministic`` alone."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


class GivenNoise(Messenger):
    """Draw site ``z`` as μ + σ ε from noise that is handed in, so that two devices draw alike."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z" and msg["value"] is None:
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self.noise
            msg["done"] = True


Kind = Literal["values", "unconstrained"]


class Place(Messenger):
    """Give latent sites values, or the values that unconstrained numbers stand for under the site's own support."""

    def __init__(self, latents: Mapping[str, Tensor], kind: Kind) -> None:
        super().__init__()
        self.latents, self.kind = latents, kind

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.latents:
            given = self.latents[name]
            msg["value"] = support_transform(name, msg)(given) if self.kind == "unconstrained" else given
            msg["done"] = True


def support_transform(name: str, site: Any) -> Any:
    """Return the transform from unconstrained numbers to the support of a site."""
    try:
        return biject_to(site["fn"].support)
    except NotImplementedError:
        raise InputError(
            f"a continuous latent at site {name!r}: it is moved along gradients",
            type(site["fn"]).__name__,
            "importance sampling, or enumeration",
        ) from None


class DetachSamples(Messenger):
    """Cut every sample off from what drew it, as it is drawn: what comes after it in the guide sees a constant.

    A sample without a gradient stays the same object: a flow without an inverse scores only what it has drawn itself.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and msg["value"].requires_grad:
            msg["value"] = msg["value"].detach()


class LastSite(Messenger):
    """Remembers the last sample site that a program reached."""

    name = ""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self.name = msg["name"]


class WeightLatents(Messenger):
    """Multiply the log-density of every latent site by a weight: KL warm-up inside stock Pyro.

    Around model and guide alike it makes ``Trace_ELBO`` compute log p(x|z) + β (log p(z) − log q(z|x)), and
    ``TraceMeanField_ELBO``, which reads the guide's scale alone, log p(x|z) − β KL.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight
