"""What a program generates, and the method ``simulate`` by which it may do so itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.program.explain import explained

Simulated = Tensor | tuple[Tensor, Mapping[str, Tensor]]


@runtime_checkable
class Simulator(Protocol):
    """A program that simulates by itself, since its model looks at x: an autoregressive decoder, for example."""

    def simulate(self, num_examples: int) -> Simulated:
        """Return examples (num_examples, *event_shape) sampled from p(x), or a pair of them and their latents.

        Latents are a mapping, {site: (num_examples, *event_shape of the site)}; calibration and the sandwich need them.
        Noise is torch's global; tensors are on the program's device.
        """


@dataclass(frozen=True, eq=False)
class Generated:
    """Examples that a program generated, (n, *event_shape): the mean of p(x|z), and a sample from it.

    ``mean`` is None where there is none; ``no_mean`` says why. ``by_simulate``: by the program's own ``simulate``.
    """

    mean: Tensor | None
    sample: Tensor
    latents: dict[str, Tensor]
    no_mean: str = field(default="", kw_only=True)
    by_simulate: bool = field(default=False, kw_only=True)

    @property
    def shown(self) -> tuple[Tensor, str]:
        """What a picture shows, and its name: the mean, or the sample where there is no mean."""
        if self.mean is not None:
            return self.mean, "mean of p(x|z)"
        return self.sample, "sample by simulate" if self.by_simulate else "sample of p(x|z), which has no mean"


@torch.no_grad()
def simulated(program: object, like: Tensor) -> Generated:
    """Generate by the program's own method ``simulate``.

    Args:
        program: with a method ``simulate(num_examples)``.
        like: (n, *event_shape), for number and shape; the values are not used.

    Raises:
        InputError: no such method, or one that returns something else.
    """
    if not isinstance(program, Simulator):
        raise InputError("a program with a method simulate(num_examples)", "none", "defining it")
    with explained("whose simulate(num_examples) runs"):
        made = program.simulate(len(like))
    x, latents = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    _check_simulated(x, latents, like)
    drawn = {name: z.detach().cpu() for name, z in latents.items()}
    why = "Expected a distribution p(x|z) for a mean; got samples of the program's simulate"
    return Generated(None, x.detach().cpu(), drawn, no_mean=why, by_simulate=True)


def check_latents_made(made: Generated, sites: Iterable[str]) -> None:
    """Check that every latent site has a value: ``simulate`` may have returned x alone.

    Raises:
        InputError: a site without one.
    """
    missing = sorted(set(sites) - made.latents.keys())
    if missing:
        fix = "simulate(num_examples) that returns (x, {site: latents})"
        raise InputError("latents beside the simulated x", f"none for {missing}", fix)


def _check_simulated(x: object, latents: object, like: Tensor) -> None:
    if not isinstance(x, Tensor) or x.shape != like.shape:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x of shape {tuple(like.shape)} from simulate({len(like)})", got, "num_examples examples")
    if not isinstance(latents, Mapping) or not all(
        isinstance(z, Tensor) and len(z) == len(x) for z in latents.values()
    ):
        got = type(latents).__name__ if not isinstance(latents, Mapping) else "others"
        raise InputError(f"latents by site, {len(x)} each, from simulate({len(x)})", got, "(x, {'z': z})")
