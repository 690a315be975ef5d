"""Evaluation compiled: the terms of K draws for a batch, from a program traced once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.elbo.draw import Terms, draw_terms
from pyro_vae.engines.compiled.compare import check_same
from pyro_vae.engines.compiled.inductor import compiled, has_compiler
from pyro_vae.engines.compiled.step import STOCK, held_tensors, swapped
from pyro_vae.program.explain import program_error
from pyro_vae.program.protocol import Program


def can_be_compiled(program: Program, x: Tensor) -> bool:
    """Whether the terms of a program can be traced, and there is a compiler; its store must be active."""
    try:
        with isolated_rng(x.device):
            CompiledTerms(program)(x, 2)
    except InputError:
        return False
    return has_compiler(x.device)


class CompiledTerms:
    """:func:`~pyro_vae.elbo.draw_terms` of one program, compiled: the same numbers on the same noise.

    One shape is compiled, which the caller names; others (the last, smaller chunk) run as they were traced, so that
    what a chunk is computed by does not depend on those before it. Every graph is compared with the eager program
    before its first use.

    Args:
        program: the program, on its device, in evaluation mode; its store active when this is called.
        compiled: (data, particles) of the draws that are compiled; None compiles nothing.

    Raises:
        InputError: when called, a program that cannot be traced, or a trace that differs from it.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.program import evaluating
        >>> vae, x = VAE((4,), latent_dim=2), torch.ones(10, 4)
        >>> with evaluating(vae, x.device, seed=0):
        ...     CompiledTerms(vae)(x, 7).log_weight.shape
        torch.Size([7, 10])
    """

    def __init__(self, program: Program, compiled: tuple[int, int] | None = None) -> None:
        self._program, self._compiled = program, compiled
        self._tensors = held_tensors(program)
        self._values = [t.detach() for t in self._tensors.values()]
        self._graphs: dict[Any, Callable[..., Any]] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, num_particles: int) -> Terms:
        """Draw K particles for a batch and score them, (K, B)."""
        key = x.shape, x.dtype, num_particles
        if key not in self._graphs:
            self._graphs[key] = self._graph(x, num_particles)
        return Terms(*self._graphs[key](x, *self._values))

    def _graph(self, x: Tensor, num_particles: int) -> Callable[..., Any]:
        def score(x: Tensor, *tensors: Tensor) -> list[Tensor]:
            def terms() -> list[Tensor]:
                found = draw_terms(self._program, x, num_particles)
                return [found.log_px_z, found.log_pz, found.log_qz]

            with pyro.validation_enabled(False):
                return swapped(self._program, dict(zip(self._tensors, tensors, strict=True)), terms)

        with isolated_rng(x.device):
            try:
                graph = make_fx(score)(x, *self._values)
            except InputError:
                raise
            except Exception as error:
                raise program_error(error, "that can be traced once", STOCK) from error
        names = ["log p(x|z)", "log p(z)", "log q(z|x)", *self._tensors]
        reference = partial(score, x.roll(1, 0))
        check_same(partial(graph, x.roll(1, 0)), reference, self._values, names)
        if (len(x), num_particles) != self._compiled:
            return graph
        with isolated_rng(x.device):
            call = compiled(graph, [x, *self._values])
        check_same(partial(call, x.roll(1, 0)), reference, self._values, names)
        return call
