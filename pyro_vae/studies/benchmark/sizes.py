"""Programs of published sizes, with their batches, estimators and synthetic images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.base.random import generator, isolated_rng
from pyro_vae.elbo.catalogue import trace_elbo
from pyro_vae.elbo.importance import IWAE
from pyro_vae.models.vae import VAE

SIDE = 28
CHANNELS = (32, 64)  # of the convolutional encoder; the decoder has them in reverse
PROTOTYPES = 10


@dataclass(frozen=True)
class Size:
    """A program's size with its batch and number of particles; the scaling series vary one field.

    Args:
        batch_size: B, examples per step.
        num_particles: K; the bound is the ELBO for K = 1 and the importance-weighted bound for K > 1.
        latent_dim: Z.
        hidden: units of the encoder's hidden layers; the decoder mirrors them.
        activation: of the networks.
        convolutional: start the encoder with two strided convolutions, and end the decoder with their transposes.
        replicates: R, programs trained at once; more than one only with engine ``compiled``.
    """

    batch_size: int = 128
    num_particles: int = 1
    latent_dim: int = 20
    hidden: tuple[int, ...] = (400,)
    activation: str = "relu"
    convolutional: bool = False
    replicates: int = 1

    @property
    def title(self) -> str:
        """A line for tables and figures."""
        layers = "-".join(map(str, (SIDE**2, *self.hidden, self.latent_dim)))
        network = f"convolutions {CHANNELS[0]}-{CHANNELS[1]}, then {layers}" if self.convolutional else layers
        more = {"K": self.num_particles, "R": self.replicates}
        counts = [f", {letter} = {count}" for letter, count in more.items() if count > 1]
        return f"{network}, batch {self.batch_size}" + "".join(counts)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return (1, SIDE, SIDE) if self.convolutional else (SIDE**2,)

    def build(self, device: torch.device, seed: int = 0) -> VAE:
        """Return the program, with its parameters initialised from the seed."""
        with isolated_rng(device, seed):
            if self.convolutional:
                encoder = ConvolutionalEncoder(self.hidden, self.latent_dim)
                decoder = ConvolutionalDecoder(self.hidden, self.latent_dim)
                vae = VAE(self.event_shape, self.latent_dim, encoder=encoder, decoder=decoder)
            else:
                vae = VAE(self.event_shape, self.latent_dim, self.hidden, activation=self.activation)
        return vae.to(device)

    def images(self, count: int, device: torch.device, seed: int = 0) -> Tensor:
        """Return binary images, (count, *event_shape): noisy copies of ten random prototypes.

        They replace MNIST, so that nothing is downloaded: no time depends on what the images show. About a fifth of
        the pixels is white.
        """
        source = generator(torch.device("cpu"), seed, count)
        white = torch.rand(PROTOTYPES, SIDE**2, generator=source) < 0.2
        chosen = torch.randint(PROTOTYPES, (count,), generator=source)
        probability = 0.02 + 0.9 * white[chosen]
        pixels = torch.bernoulli(probability, generator=source)
        return pixels.reshape(count, *self.event_shape).to(device)

    def estimator(self) -> ELBO:
        """Return the estimator for the engines."""
        return trace_elbo() if self.num_particles == 1 else IWAE(self.num_particles)


class ConvolutionalEncoder(nn.Module):
    """Two strided convolutions and an MLP: (..., 1, 28, 28) -> (..., 2, Z)."""

    def __init__(self, hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        first, second = CHANNELS
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1), nn.ReLU(), nn.Flatten()),
            *_dense((second * (SIDE // 4) ** 2, *hidden, 2 * latent_dim)),
        )
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the two heads of the posterior."""
        leading = x.shape[:-3]
        flat: Tensor = self.layers(x.reshape(-1, *x.shape[-3:]))
        return flat.reshape(*leading, 2, self.latent_dim)


class ConvolutionalDecoder(nn.Module):
    """An MLP and two transposed convolutions: (..., Z) -> (..., 1, 1, 28, 28)."""

    def __init__(self, hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        first, second = CHANNELS
        side = SIDE // 4
        self.layers = nn.Sequential(
            *_dense((latent_dim, *hidden[::-1], second * side**2)),
            *(nn.ReLU(), nn.Unflatten(-1, (second, side, side))),
            *(nn.ConvTranspose2d(second, first, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(first, 1, 4, 2, 1)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the one head of the Bernoulli: logits."""
        leading = z.shape[:-1]
        flat: Tensor = self.layers(z.reshape(-1, z.shape[-1]))
        return flat.reshape(*leading, 1, 1, SIDE, SIDE)


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return layers[:-1]


_IWAE = Size(batch_size=20, latent_dim=50, hidden=(200, 200), activation="tanh")

SIZES: dict[str, Size] = {
    "mlp": Size(),
    "iwae-1": _IWAE,
    "iwae-5": Size(20, 5, 50, (200, 200), "tanh"),
    "iwae-50": Size(20, 50, 50, (200, 200), "tanh"),
    "conv": Size(hidden=(256,), convolutional=True),
}
"""Sizes by name. ``mlp`` is 784-400-20 at batch size 128; ``iwae-K`` is 784-200-200-50 at batch size 20."""
