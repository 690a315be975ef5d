"""The interface of an oracle: log p(x), and examples sampled from its model."""

from typing import Literal, Protocol, cast, get_args, runtime_checkable

from torch import Tensor, nn

from pyro_vae.base.errors import lookup
from pyro_vae.base.random import isolated_rng
from pyro_vae.program.predictive import sample_prior
from pyro_vae.program.protocol import Program

Guide = Literal["encoder", "posterior"]


@runtime_checkable
class Oracle(Program, Protocol):
    """A program whose log p(x) is known."""

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats."""

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Return examples sampled from the model, (count, *event_shape)."""


def simulated(program: nn.Module, like: Tensor, seed: int) -> Tensor:
    """Return examples sampled from a program's model, of the shape of ``like``."""
    with isolated_rng(like.device, seed):
        return sample_prior(cast(Program, program), like).sample.to(like.device)


def is_amortised(guide: str) -> bool:
    """Whether the guide is an encoder, not the exact posterior."""
    known: str = lookup({name: name for name in get_args(Guide)}, guide, "guide")
    return known == "encoder"
