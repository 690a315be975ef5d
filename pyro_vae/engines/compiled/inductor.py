"""Compiling a traced graph by Inductor, and finding out whether a compiler is available."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch._inductor
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing
from torch.fx import GraphModule
from torch.utils._triton import has_triton

from pyro_vae.base.errors import InputError
from pyro_vae.engines.compiled.step import STOCK
from pyro_vae.program.explain import program_error

Flat = Callable[..., list[Tensor]]
NO_COMPILER = (InvalidCxxCompiler, CppCompileError, TritonMissing, GPUTooOldForTriton)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Flat:
    """Compile a traced graph by Inductor for inputs of these shapes; noise comes from torch's default generator.

    Inductor gets the graph directly: ``torch.compile`` would evaluate Dynamo's guards in every step, which a graph
    without Python does not need.

    Raises:
        InputError: no compiler, one that does not work, or a graph that Inductor cannot compile.
    """
    try:
        call: Flat = torch._inductor.compile(graph, list(inputs), options={"fallback_random": True})
    except Exception as error:
        lacking = [cause for cause in _causes(error) if isinstance(cause, NO_COMPILER)]
        if lacking:
            got = (str(lacking[0]).strip().splitlines() or [type(lacking[0]).__name__])[0].rstrip(".")
            hint = f"installing g++ (CXX may name another compiler), {STOCK}, or engine='compiled:inductor=false'"
            raise InputError("a C++ compiler (on CUDA, Triton) for engine compiled", got, hint) from error
        raise program_error(error, "that Inductor compiles", f"engine='compiled:inductor=false', or {STOCK}") from error
    return call


def has_compiler(device: torch.device) -> bool:
    """Whether torch finds the compilers that Inductor needs for a device."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return device.type != "cuda" or bool(has_triton())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
