"""The values of enumerated sites in the terms of a draw: every particle with every value."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.program.enumeration import frames
from pyro_vae.program.handlers import Enumeration

MOST = 2**16  # combinations of values: the terms have as many columns for every example


class Values:
    r"""All combinations of the values of K particles, C to a particle: C^K.

    An objective of K particles is summed over all of them, each with its probability: the exact expectation over the
    enumerated sites. Model and guide are run with the C values alone.

    Args:
        enumerations: of each run.
        num_particles: K.

    Raises:
        InputError: runs that enumerate different sites; more than 65,536 combinations.
    """

    def __init__(self, enumerations: Sequence[Enumeration], num_particles: int) -> None:
        self.sizes = enumerations[0].sizes
        other = next((each.sizes for each in enumerations if each.sizes != self.sizes), None)
        if other is not None:
            got = f"{other} beside {self.sizes}"
            raise InputError("the same enumerated sites for every particle", got, 'infer={"gradient": "score"}')
        self.frames = frames(enumerations[0])
        self.dims = [frame.dim for frame in self.frames if frame.dim is not None]
        self.num_particles, self.count = num_particles, math.prod(self.sizes.values())
        if self.count**num_particles > MOST:
            raise InputError(
                f"at most {MOST:,} combinations of enumerated values",
                f"{self.count} values of {', '.join(self.sizes)} for each of {num_particles} particles",
                f'fewer particles, or infer={{"gradient": "score"}} at one of {", ".join(self.sizes)}',
            )

    def combined(self, terms: Tensor) -> Tensor:
        """Return terms (K, C B) as (K, C^K B): in column block m particle k has the k-th value of combination m."""
        if len(terms) == 1:
            return terms
        each = terms.reshape(len(terms), self.count, -1)
        block = torch.arange(self.count ** len(terms), device=terms.device)
        chosen = torch.stack([block // self.count**k % self.count for k in range(len(terms))])
        return each.gather(1, chosen.unsqueeze(-1).expand(-1, -1, each.shape[-1])).reshape(len(terms), -1)
