"""Contexts to run a program in: its own parameter store, evaluation mode, frozen parameters, isolated random states."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction, State
from pyro_vae.program.adapter import FunctionProgram, modules_of
from pyro_vae.program.protocol import Program


@contextmanager
def frozen(program: Program) -> Iterator[None]:
    """Run a block in which no gradient is kept for the program's parameters; flags are restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in program.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def own_store(program: Program) -> Iterator[None]:
    """Run a block in a parameter store that holds only this program's parameters."""
    state = program.store_state() if isinstance(program, FunctionProgram) else None
    with pyro.get_param_store().scope(state):
        yield


def load_parameters(program: nn.Module | Program, state: State) -> None:
    """Copy parameters and buffers by name.

    Raises:
        InputError: the state is another program's.
    """
    try:
        program.load_state_dict(state)
    except RuntimeError as error:
        got = str(error).splitlines()[-1].strip().rstrip(".")
        raise InputError("a state of this program", got, "the program whose state was saved") from None


@contextmanager
def evaluating(program: Program, device: torch.device, seed: int) -> Iterator[None]:
    """Run a block in evaluation mode, with isolated random states; mode and random states are restored afterwards.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((4,), latent_dim=2)
        >>> with evaluating(vae, torch.device("cpu"), seed=0):
        ...     vae.training
        False
        >>> vae.training
        True
    """
    was_training = getattr(program, "training", True)
    program.train(False)
    try:
        with isolated_rng(device, seed), own_store(program):
            yield
    finally:
        program.train(was_training)


@contextmanager
def quiet(*functions: PyroFunction) -> Iterator[None]:
    """Run a block with dropout off in the modules that functions reach; modes and buffers are restored afterwards.

    Normalisation stays in its mode: its statistics are part of what is compared. Running statistics differ between
    channels in the block: fresh ones, all 0 and 1, would hide that another dimension is taken for the channels.
    """
    found = {id(m): m for f in functions for top in modules_of(f) for m in top.modules()}
    modes = [(module, module.training) for module in found.values()]
    buffers = [(m, name, b) for m in found.values() for name, b in m._buffers.items() if b is not None]
    try:
        for module, _ in modes:
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                module.training = False
        for module, name, buffer in buffers:  # the buffers themselves may belong to a graph still to be differentiated
            module._buffers[name] = _telling(buffer.clone(), name)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def _telling(buffer: Tensor, name: str) -> Tensor:
    """Return running statistics in which every channel is another; any other buffer as it is."""
    if name == "running_mean":
        return buffer + torch.linspace(0.1, 1.0, buffer.numel()).to(buffer)
    if name == "running_var":
        return buffer * torch.linspace(0.5, 2.0, buffer.numel()).to(buffer)
    return buffer
