"""The protocol of a program: the interface that estimators, engines, evaluation and plots use."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from pyro import poutine
from torch import nn

from pyro_vae.base.types import PyroFunction, State

Trace = poutine.Trace
PARTICLES = "num_particles_vectorized"  # the name that Pyro gives its plate over particles
MODULE_DIVIDER = "$$$"  # what pyro.module puts between a module's name and its parameter's


@runtime_checkable
class Program(Protocol):
    """A model, a guide and their parameters; an ``nn.Module`` with two methods satisfies it.

    Both are called with the tensors of a batch: ``model(x)``, or as :class:`~pyro_vae.base.batch.Arguments` says.
    """

    @property
    def model(self) -> PyroFunction:
        """p(x, z) for a batch x of shape (B, *event_shape), x observed."""

    @property
    def guide(self) -> PyroFunction:
        """q(z|x) for the same batch; samples every latent site of the model."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trainable tensor."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trainable tensor with its name."""

    def state_dict(self) -> State:
        """Parameters and buffers by name."""

    def load_state_dict(self, state_dict: State) -> object:
        """Copy parameters and buffers by name."""

    def to(self, device: torch.device) -> object:
        """Move parameters and buffers in place: they remain the same objects."""

    def train(self, mode: bool = True) -> object:
        """Set training mode (dropout, batch normalisation)."""
