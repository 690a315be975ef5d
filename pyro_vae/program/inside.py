"""Particles of the sites inside some plates alone, in a plate or in runs one by one; they share what is outside."""

from typing import TypeAlias

from pyro.poutine.messenger import Messenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.program.handlers import SampleMessage
from pyro_vae.program.tracing import Site

Names: TypeAlias = frozenset[str]
EVERYWHERE: Names = frozenset()  # every site is inside


def is_inside(site: "Site | Message[..., Tensor]", plates: Names) -> bool:
    """Whether a site is inside all plates of these names that are dimensions of tensors."""
    return not plates or plates <= {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


class PlateInside(PlateMessenger):
    """A plate of particles that only the sites inside other plates are in.

    Args:
        inside: the names of those plates.
        name: of the plate.
        size: K.
        dim: its dimension.
    """

    def __init__(self, inside: Names, name: str, size: int, dim: int) -> None:
        super().__init__(name, size, dim=dim)
        self.inside = inside

    def _process_message(self, msg: "Message[..., Tensor]") -> None:
        if is_inside(msg, self.inside):
            super()._process_message(msg)


class SharedOutside(Messenger):
    """Around a guide that runs for K particles in turn: each has the first one's samples outside the plates.

    Args:
        inside: the names of the plates.
        num_particles: K; after K runs the samples are new.
    """

    def __init__(self, inside: Names, num_particles: int) -> None:
        super().__init__()
        self.inside, self.num_particles = inside, num_particles
        self.run = -1
        self.held: dict[str, Tensor] = {}

    def __enter__(self) -> "SharedOutside":
        self.run += 1
        if self.run % self.num_particles == 0:
            self.held = {}
        super().__enter__()
        return self

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if str(msg["name"]) in self.held and not msg["is_observed"]:
            msg["value"], msg["done"] = self.held[str(msg["name"])], True

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        latent = not msg["is_observed"] and not site_is_subsample(msg)
        if latent and isinstance(msg["value"], Tensor) and not is_inside(msg, self.inside):
            self.held[str(msg["name"])] = msg["value"]
