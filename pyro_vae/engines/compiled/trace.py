"""Tracing a step: Pyro's handlers run while it is traced, never after."""

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.engines.compiled.step import STOCK, StepFunction
from pyro_vae.program.explain import explained, program_error
from pyro_vae.program.handlers import LastSite


@torch.no_grad()
def traced(function: StepFunction, x: Tensor, kl_weight: Tensor) -> GraphModule:
    """Trace the step on a batch; the arguments of distributions are validated once, eagerly, before.

    The caller's noise is not used up, and every global switch is as it was afterwards.

    Raises:
        InputError: the program cannot be traced (it branches on a drawn value, asks for a number with ``.item()``),
            with the place and the site; what estimator or validation refuse.
    """
    visited = LastSite()
    buffers = [t.clone() for t in function.constants.values()]
    try:
        with isolated_rng(x.device), visited:
            with pyro.validation_enabled(True), explained("whose distributions get valid arguments"):
                function(x, kl_weight, *function.inputs())
            with pyro.validation_enabled(False):
                graph: GraphModule = make_fx(function)(x, kl_weight, *function.inputs())
    except InputError:
        raise
    except Exception as error:  # make_fx raises whatever the program's own code raises
        site = f"; this one got as far as site {visited.name!r}" if visited.name else ""
        what = f"that can be traced once (no branch on a drawn value, no .item()){site}"
        raise program_error(error, what, STOCK) from error
    finally:
        for tensor, value in zip(function.constants.values(), buffers, strict=True):
            tensor.copy_(value)  # running statistics do not count a trial
    return graph
