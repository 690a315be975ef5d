"""What programs made of parts share: their networks, and parameters that start from training examples."""

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.registry import built, takes
from pyro_vae.models.catalogue import NETWORKS
from pyro_vae.models.networks.network import Network, check_sizes

Wanted: TypeAlias = tuple[str | nn.Module, Sequence[int], Sequence[int], int]
"""A network: a specification or a module, in_shape, out_shape, heads."""


def networks(
    encoder: Wanted, decoder: Wanted, hidden: Sequence[int] | None, activation: str | None
) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder.

    Args:
        encoder: as a :data:`Wanted`.
        decoder: likewise.
        hidden: hidden units of networks by name that take them, in reverse order for the decoder; None: their default.
        activation: likewise.

    Raises:
        InputError: ``hidden`` or ``activation`` that neither network takes.
    """
    if hidden is not None:
        check_sizes("hidden", hidden)
    for name, value in (("hidden", hidden), ("activation", activation)):
        if value is not None and not any(takes(NETWORKS, wanted[0], name) for wanted in (encoder, decoder)):
            raise InputError(f"no {name} for networks that do not take it", repr(value), f"leaving out {name}")
    backwards = None if hidden is None else tuple(hidden)[::-1]
    return _network(encoder, hidden, activation), _network(decoder, backwards, activation)


def _network(wanted: Wanted, hidden: Sequence[int] | None, activation: str | None) -> nn.Module:
    what, in_shape, out_shape, heads = wanted
    given = {"in_shape": tuple(in_shape), "out_shape": tuple(out_shape), "heads": heads}
    defaults = {"hidden": hidden, "activation": activation}
    return built(NETWORKS, what, "network", given, {k: v for k, v in defaults.items() if v is not None})


def check_spaces(prior: nn.Module, posterior: nn.Module) -> None:
    """Refuse a prior and a posterior of latents in different spaces: log p(z) − log q(z|x) would have no meaning.

    Raises:
        InputError: real vectors beside unit vectors.
    """
    ours, theirs = getattr(prior, "space", "real"), getattr(posterior, "space", "real")
    if ours is not None and ours != theirs:
        got = f"{type(prior).__name__}, {ours}, and {type(posterior).__name__}, {theirs}"
        hint = "prior='uniform_sphere' with posterior='projected_normal', or neither"
        raise InputError("a prior and a posterior of latents in one space", got, hint)


def check_examples(x: Tensor, event_shape: Sequence[int]) -> None:
    """Refuse examples that are not (N, *event_shape)."""
    if x.shape[1:] != tuple(event_shape) or len(x) == 0:
        expected = f"examples of shape (N, {', '.join(map(str, event_shape))})"
        raise InputError(expected, f"shape {tuple(x.shape)}", "training data of the program")


def start_output(decoder: nn.Module, heads: Tensor) -> None:
    """Start the output of a decoder at these heads, (heads, *event_shape).

    Raises:
        InputError: a network that does not say how.
    """
    if not isinstance(decoder, Network):
        got = f"{type(decoder).__name__}, which is no Network"
        raise InputError("a decoder that says how its output is started", got, "output_bias=False")
    decoder.start_output(heads)
