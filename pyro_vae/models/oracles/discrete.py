"""A program of bits and a class, whose log p(x) is a finite sum."""

from typing import cast

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.random import isolated_rng
from pyro_vae.models.networks import MLP
from pyro_vae.models.oracles.integration import log_evidence_by_enumeration
from pyro_vae.models.oracles.oracle import simulated
from pyro_vae.program.protocol import Program


class DiscretePrior(nn.Module):
    """The logits of independent bits and of one class."""

    def __init__(self, bits: int, classes: int) -> None:
        super().__init__()
        self.bits = nn.Parameter(torch.randn(bits))
        self.kind = nn.Parameter(torch.randn(classes))


class DiscreteLatents(nn.Module):
    r"""Two discrete latent sites, bits and a class, and a neural decoder to binary data; log p(x) is a finite sum.

    .. math::

        c \sim \mathrm{Cat}(\pi), \quad b_h \sim \mathrm{Bernoulli}(\rho_h), \quad
        x_d \sim \mathrm{Bernoulli}(\sigma(\mathrm{decoder}(b, c)_d)), \quad
        \log p(x) = \log \sum_{b, c} p(b)\, p(c)\, p(x|b, c)

    The guide is factorised; its logits are a neural network of x.

    Args:
        data_dim: D.
        bits: number of bits.
        classes: number of classes.
        hidden: units of the hidden layer of decoder and encoder.
        gain: factor of the decoder's initial weights.
        seed: seed of the initial parameters.

    Example:
        >>> from pyro_vae.models.oracles import DiscreteLatents
        >>> oracle = DiscreteLatents(data_dim=5)
        >>> oracle.log_evidence(oracle.simulate(3)).shape
        torch.Size([3])
    """

    def __init__(
        self, data_dim: int, bits: int = 3, classes: int = 4, hidden: int = 16, gain: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.event_shape = (data_dim,)
        self.bits, self.classes = bits, classes
        with isolated_rng(torch.device("cpu"), seed):
            self.prior = DiscretePrior(bits, classes)
            self.decoder = MLP((bits + classes,), (data_dim,), hidden=(hidden,), activation="tanh")
            self.encoder = MLP((data_dim,), (bits + classes,), hidden=(hidden,), activation="tanh")
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.mul_(gain)
        self.double()

    def model(self, x: Tensor) -> None:
        """p(c) p(b) p(x|b, c) for a batch x, (B, D)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(logits=self.prior.kind))
            bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior.bits).to_event(1))
            one_hot = nn.functional.one_hot(kind, self.classes).to(bits.dtype)
            shape = torch.broadcast_shapes(one_hot.shape[:-1], bits.shape[:-1])
            code = torch.cat([bits.expand(*shape, -1), one_hot.expand(*shape, -1)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(code).squeeze(-2)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(c|x) q(b|x) for a batch x, (B, D)."""
        pyro.module("encoder", self.encoder)
        logits = self.encoder(x).squeeze(-2)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Categorical(logits=logits[..., self.bits :]))
            pyro.sample("bits", dist.Bernoulli(logits=logits[..., : self.bits]).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats, by :func:`log_evidence_by_enumeration`."""
        return log_evidence_by_enumeration(cast(Program, self), x)

    def simulate(self, count: int, seed: int = 0) -> Tensor:
        """Return examples sampled from the model, (count, D)."""
        return simulated(self, self.prior.bits.new_zeros(count, *self.event_shape), seed)
