"""Sizes of families: counts, and the hidden layers of their networks."""

from collections.abc import Sequence

from pyro_vae.base.errors import InputError
from pyro_vae.models.networks.network import check_sizes


def check_count(name: str, value: object, default: int) -> int:
    """Return a whole number of at least 1, and refuse anything else.

    Example:
        >>> check_count("components", 0, 10)
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected components as a whole number of at least 1; got 0. Try components=10.
    """
    if type(value) is not int or value < 1:
        raise InputError(f"{name} as a whole number of at least 1", repr(value), f"{name}={default}")
    return value


def check_dims(latent_dim: int, least: int, why: str, instead: str) -> None:
    """Refuse fewer latent dimensions than a family has a meaning for.

    Example:
        >>> check_dims(1, 2, "with one it is a normal", "diagonal_normal")
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected a latent_dim of at least 2 (with one it is a normal); got 1. \
Try diagonal_normal.
    """
    if latent_dim < least:
        raise InputError(f"a latent_dim of at least {least} ({why})", latent_dim, instead)


def hidden_units(hidden: Sequence[int] | None, latent_dim: int, least: int = 1) -> list[int]:
    """Return the hidden units of a flow's networks; by default one layer of 64, or of 2 Z if that is more.

    Args:
        hidden: of each layer, the last of which is not the output; None: the default.
        latent_dim: Z.
        least: the narrowest layer that the network can have.

    Example:
        >>> hidden_units(None, 20), hidden_units((16, 16), 2)
        ([64], [16, 16])
    """
    if hidden is None:
        return [max(64, 2 * latent_dim)]
    check_sizes("hidden", hidden)
    if not hidden or min(hidden) < least:
        expected = f"hidden as layers of at least {least} units (each has to know of every latent dimension)"
        raise InputError(expected if least > 1 else "hidden as at least one layer", repr(hidden), "hidden=[64]")
    return list(hidden)
