"""Compiled evaluation: the terms of K particles for a batch, from a program traced once."""

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.base.batch import Batch, layout, splitter, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.terms import Terms
from pyro_vae.engines.compiled.compare import check_same, on_fixed_noise
from pyro_vae.engines.compiled.inductor import Flat, compile_graph, has_compiler
from pyro_vae.engines.compiled.shapes import refuse_varying_shapes
from pyro_vae.engines.compiled.step import held_tensors, swapped
from pyro_vae.engines.compiled.trace import refusing
from pyro_vae.program.protocol import Program


def can_be_compiled(program: Program, x: Batch) -> bool:
    """Whether the terms of a program can be traced and a compiler is available; the program's store must be active."""
    try:
        with isolated_rng(x.device):
            CompiledTerms(program)(x, 2)
    except InputError:
        return False
    return has_compiler(x.device)


class CompiledTerms:
    """:func:`~pyro_vae.elbo.draw_terms` of one program, compiled: the same numbers on the same noise.

    Only ``compiled_shape`` is compiled. Other shapes (a smaller last chunk) run as traced, so that the graph of a chunk
    does not depend on the chunks before it. Every graph is compared with the eager program before its first use.

    Args:
        program: the program, on its device, in evaluation mode; its store must be active in every call.
        compiled_shape: (examples, particles) of the draws that are compiled; None: none.

    Raises:
        InputError: when called, a program that cannot be traced, or a trace that differs from the program.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.program import evaluating
        >>> vae, x = VAE((4,), latent_dim=2), torch.ones(10, 4)
        >>> with evaluating(vae, x.device, seed=0):
        ...     CompiledTerms(vae)(x, 7).log_weight.shape
        torch.Size([7, 10])
    """

    def __init__(self, program: Program, compiled_shape: tuple[int, int] | None = None) -> None:
        self._program, self._compiled_shape = program, compiled_shape
        self._tensors = held_tensors(program)
        self._values = [t.detach() for t in self._tensors.values()]
        self._graphs: dict[object, Flat] = {}

    @torch.no_grad()
    def __call__(self, x: Batch, num_particles: int) -> Terms:
        """Sample K particles for a batch and score them, (K, B)."""
        key = *layout(x), num_particles
        if key not in self._graphs:
            self._graphs[key] = self._graph(x, num_particles)
        return Terms(*self._graphs[key](*tensors_of(x), *self._values))

    def _graph(self, x: Batch, num_particles: int) -> Flat:
        split = splitter(x)

        def score(*inputs: Tensor) -> list[Tensor]:
            batch, tensors = split(inputs)

            def terms() -> list[Tensor]:
                found = draw_terms(self._program, batch, num_particles)
                return [found.log_px_z, found.log_pz, found.log_qz]

            with pyro.validation_enabled(False):
                return swapped(self._program, dict(zip(self._tensors, tensors, strict=True)), terms)

        reference = on_fixed_noise(lambda *t: score(*tensors_of(x.roll(1, 0)), *t), self._values)
        graph = _traced(score, [*tensors_of(x), *self._values])
        self._check(graph, x, reference)
        if (len(x), num_particles) != self._compiled_shape:
            return graph
        with isolated_rng(x.device):
            call = compile_graph(graph, [*tensors_of(x), *self._values])
        self._check(call, x, reference)
        return call

    def _check(self, graph: Flat, x: Batch, reference: list[Tensor]) -> None:
        names = ["log p(x|z)", "log p(z)", "log q(z|x)", *self._tensors]
        with refusing(lambda: "whose graph runs on other data and noise than those of its trace"):
            found = on_fixed_noise(lambda *t: graph(*tensors_of(x.roll(1, 0)), *t), self._values)
        check_same(found, reference, names)


def _traced(score: Flat, inputs: list[Tensor]) -> GraphModule:
    with isolated_rng(inputs[0].device), refusing(lambda: "that can be traced once"):
        graph: GraphModule = make_fx(score)(*inputs)
    refuse_varying_shapes(graph, range(1, len(inputs)))
    return graph
