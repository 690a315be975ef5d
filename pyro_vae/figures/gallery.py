"""The pictures of a run: which there are, of which data, under which file names."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.data import DataSet, Images
from pyro_vae.figures import images
from pyro_vae.figures.curves import plot_latent_means, plot_training_curves
from pyro_vae.program.predictive import (
    decode,
    latent_shapes,
    normal_prior,
    posterior_means,
    reconstruct,
    sample_prior,
)
from pyro_vae.program.protocol import Program
from pyro_vae.training.loop import EpochRecord

SAMPLES, PAIRS, SCATTER, SIDE = 64, 10, 5000, 20
TRIED = 10  # examples whose priors are compared
MEAN_SAMPLES = 50  # samples of a q without a mean that are averaged


class Pictures(NamedTuple):
    """The files of the pictures, and why others were left out, by the names of their files."""

    files: list[Path]
    left_out: dict[str, str]


def plot_all(
    folder: Path,
    program: Program,
    data: DataSet,
    history: list[EpochRecord],
    device: torch.device,
    seed: int = 0,
) -> Pictures:
    """Plot every picture that suits the program, and return the files, and why others are left out.

    Samples, reconstructions of test images and training curves; with a single latent site of two dimensions also
    the scatter of posterior means and, if its prior is a normal of independent latents, the manifold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test, found = data.test.to(device), Pictures([], {})

    def picture(name: str, plot: Callable[[Path], Path]) -> None:
        try:
            found.files.append(plot(folder / name))
        except InputError as error:
            found.left_out[name] = str(error)

    picture("reconstructions.png", lambda path: plot_reconstructions(path, program, test, PAIRS, seed))
    picture("samples.png", lambda path: plot_samples(path, program, test, SAMPLES, seed))
    if history:
        picture("curves.png", lambda path: plot_training_curves(path, history))
    planar = planar_latent(program, test)
    if planar is not None:
        picture("manifold.png", lambda path: plot_manifold(path, program, test, planar, seed))
        picture("latent.png", lambda path: plot_latents(path, program, test, planar, seed))
    return found


def plot_reconstructions(path: Path, program: Program, test: Images, count: int, seed: int) -> Path:
    """Plot the first test images above their reconstructions, means of p(x|z), or samples where it has no mean."""
    x = test.binarized(seed)[:count]
    with isolated_rng(x.device, seed):
        shown, what = reconstruct(program, x).shown
    return images.plot_pairs(path, x.cpu(), shown, what)


def plot_samples(path: Path, program: Program, test: Images, count: int, seed: int) -> Path:
    """Plot the means of p(x|z) for z from the prior; samples, where it has no mean or the program simulates itself."""
    with isolated_rng(test.device, seed):
        shown, what = sample_prior(program, like(test, count)).shown
    return images.plot_grid(path, shown, f"samples: {what}, z ~ p(z)")


def plot_manifold(path: Path, program: Program, test: Images, site: str, seed: int) -> Path:
    """Plot p(x|z)'s mean on the grid of the prior's quantiles of a two-dimensional latent space (AEVB, figure 4).

    Raises:
        InputError: a prior other than one normal of independent latents, which has no such grid.
    """
    loc, scale = normal_prior(program, test.binarized(seed)[:TRIED], site)
    z = loc + scale * quantile_grid(SIDE).to(loc)
    with isolated_rng(test.device, seed):
        shown, what = decode(program, {site: z}, like(test, len(z))).shown
    return images.plot_grid(path, shown, f"{what}, on the grid of the prior's quantiles", columns=SIDE)


def plot_latents(path: Path, program: Program, test: Images, site: str, seed: int) -> Path:
    """Plot the posterior means of test images in a two-dimensional latent space."""
    x = test.binarized(seed)[:SCATTER]
    labels = None if test.labels is None else test.labels[:SCATTER].cpu()
    try:
        means, how = posterior_means(program, x), ""
    except InputError:  # said in the title
        with isolated_rng(test.device, seed):
            means, how = posterior_means(program, x, MEAN_SAMPLES), f" (of {MEAN_SAMPLES} samples: q has no mean)"
    return plot_latent_means(path, means[site].cpu(), labels, how)


def planar_latent(program: Program, test: Images) -> str | None:
    """Return the name of the latent site if there is a single one, of two dimensions."""
    shapes = latent_shapes(program, test.binarized(0)[:2])
    return next((name for name, shape in shapes.items() if shape == (2,)), None) if len(shapes) == 1 else None


def quantile_grid(side: int) -> Tensor:
    r"""Return the grid :math:`\Phi^{-1}((i - \tfrac12)/n)`, (side², 2), rows from top to bottom.

    Equal areas of the unit square, sent through the inverse cumulative distribution function of the standard normal, so
    that each tile has equal prior probability; of another normal, the grid is scaled and shifted.

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
