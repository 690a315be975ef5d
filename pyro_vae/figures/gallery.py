"""The pictures of a run: which there are, of which data, under which file names."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.base.random import isolated_rng
from pyro_vae.data import DataSet, Images
from pyro_vae.figures import images
from pyro_vae.figures.curves import plot_latent_means, plot_training_curves
from pyro_vae.program.predictive import decode, latent_shapes, posterior_means, reconstruct, sample_prior
from pyro_vae.program.protocol import Program
from pyro_vae.training.loop import EpochRecord

SAMPLES, PAIRS, SCATTER, SIDE = 64, 10, 5000, 20


def plot_all(
    folder: Path,
    program: Program,
    data: DataSet,
    history: list[EpochRecord],
    device: torch.device,
    seed: int = 0,
) -> list[Path]:
    """Plot every picture that suits the program, and return the files.

    Samples, reconstructions of test images and training curves; with a single latent site of two dimensions also
    the manifold and the scatter of posterior means.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test = data.test.to(device)
    files = [
        plot_reconstructions(folder / "reconstructions.png", program, test, PAIRS, seed),
        plot_samples(folder / "samples.png", program, test, SAMPLES, seed),
    ]
    if history:
        files.append(plot_training_curves(folder / "curves.png", history))
    planar = planar_latent(program, test)
    if planar is not None:
        files.append(plot_manifold(folder / "manifold.png", program, test, planar, seed))
        files.append(plot_latents(folder / "latent.png", program, test, planar, seed))
    return files


def plot_reconstructions(path: Path, program: Program, test: Images, count: int, seed: int) -> Path:
    """Plot the first test images above their reconstructions."""
    x = test.binarized(seed)[:count]
    with isolated_rng(x.device, seed):
        return images.plot_pairs(path, x.cpu(), reconstruct(program, x).mean)


def plot_samples(path: Path, program: Program, test: Images, count: int, seed: int) -> Path:
    """Plot the means of p(x|z) for z from the prior."""
    with isolated_rng(test.device, seed):
        means = sample_prior(program, like(test, count)).mean
    return images.plot_grid(path, means, "samples: mean of p(x|z), z ~ p(z)")


def plot_manifold(path: Path, program: Program, test: Images, site: str, seed: int) -> Path:
    """Plot p(x|z)'s mean on the grid of normal quantiles of a two-dimensional latent space (AEVB, figure 4)."""
    z = quantile_grid(SIDE).to(test.device)
    with isolated_rng(test.device, seed):
        means = decode(program, {site: z}, like(test, len(z))).mean
    return images.plot_grid(path, means, "p(x|z)'s mean on the grid of the prior's quantiles", columns=SIDE)


def plot_latents(path: Path, program: Program, test: Images, site: str, seed: int) -> Path:
    """Plot the posterior means of test images in a two-dimensional latent space."""
    x = test.binarized(seed)[:SCATTER]
    labels = None if test.labels is None else test.labels[:SCATTER].cpu()
    return plot_latent_means(path, posterior_means(program, x)[site].cpu(), labels)


def planar_latent(program: Program, test: Images) -> str | None:
    """Return the name of the latent site if there is a single one, of two dimensions."""
    shapes = latent_shapes(program, test.binarized(0)[:2])
    name, shape = next(iter(shapes.items()))
    return name if len(shapes) == 1 and shape == (2,) else None


def quantile_grid(side: int) -> Tensor:
    r"""Return the grid :math:`\Phi^{-1}((i - \tfrac12)/n)`, (side², 2), rows from top to bottom.

    Equal areas of the unit square, sent through the inverse cumulative distribution function of the standard normal, so
    that each tile has equal prior probability.

    Example:
        >>> quantile_grid(2)
        tensor([[-0.6745,  0.6745],
                [ 0.6745,  0.6745],
                [-0.6745, -0.6745],
                [ 0.6745, -0.6745]])
    """
    quantiles = Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    vertical, horizontal = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([horizontal, vertical], dim=-1).reshape(-1, 2)


def like(images: Images, count: int) -> Tensor:
    """Return a tensor shaped like ``count`` examples: only shape, dtype and device matter."""
    return images.batch(slice(0, 1)).new_zeros((count, *images.event_shape))
