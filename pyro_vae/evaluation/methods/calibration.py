"""Simulation-based calibration of q."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import draw_particles
from pyro_vae.evaluation.chunking import example_chunks, particle_chunks
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.predictive import sample_pairs
from pyro_vae.program.protocol import Program


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of true latents among samples of q, for one latent site of event shape S.

    ``ranks``, (simulations, S): the number of the ``num_draws`` samples below the true value, 0 … num_draws, ties
    broken at random; uniform if q is the posterior. ``chi_square``, S, is Pearson's statistic over ``bins`` equal bins,
    ``ecdf_distance``, S, the Kolmogorov-Smirnov distance of the ranks from uniform; ``chi_square_p`` and ``ecdf_p`` are
    their p-values.
    """

    ranks: Tensor
    num_draws: int
    bins: int
    chi_square: Tensor
    chi_square_p: Tensor
    ecdf_distance: Tensor
    ecdf_p: Tensor

    @property
    def shift(self) -> Tensor:
        """Mean of the scaled rank − ½, S: above 0 where q is too low; standard error 1/√(12 simulations)."""
        return (self._scaled() - 0.5).mean(0)

    @property
    def dispersion(self) -> Tensor:
        """Mean squared distance of the scaled rank from ½, relative to its value for a calibrated q, S.

        Above 1 where q is too narrow (or its location errs from example to example), below 1 where it is too wide.
        """
        uniform = (1 - 1 / (self.num_draws + 1) ** 2) / 12
        return (self._scaled() - 0.5).square().mean(0) / uniform

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of p-values (Bonferroni), at most 1."""
        both = torch.stack([self.chi_square_p, self.ecdf_p])
        return min(1.0, both.min().item() * both.numel())

    def _scaled(self) -> Tensor:
        return (self.ranks.double() + 0.5) / (self.num_draws + 1)


@torch.no_grad()
def simulation_based_calibration(
    program: Program,
    like: Tensor,
    num_simulations: int = 1000,
    num_draws: int = 99,
    bins: int = 20,
    seed: int = 0,
    *,
    vectorize_particles: bool = True,
) -> dict[str, Calibration]:
    r"""Compare q with the posterior on simulated examples, by the rank of the true z among samples of q(z|x).

    .. math:: z^* \sim p(z), \quad x \sim p(x|z^*), \quad z_{1 \dots L} \sim q(z|x), \quad
        r = \#\{l: z_l < z^*\}

    is uniform on 0 … L, in each dimension, if q is the posterior. The converse does not hold: the prior, used as q, has
    uniform ranks, too. It judges q on simulated examples; on others q may be better or worse.

    Sources: Talts et al., arXiv 1804.06788; for variational inference Yao, Vehtari, Simpson and Gelman, ICML 2018.

    Args:
        program: the program.
        like: any examples, (n, *event_shape), for shape, type and device; the values are not used.
        num_simulations: number of simulated pairs (z, x).
        num_draws: L, such that ``bins`` divides L + 1.
        bins: of the histogram for chi-square; at least 5 simulations per bin.
        seed: fixes the noise.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Raises:
        InputError: bins that do not divide L + 1, or too few simulations for them; a model that looks at x, in a
            program whose ``simulate`` does not return the latents.

    Example:
        >>> from pyro_vae import VAE
        >>> found = simulation_based_calibration(VAE((4,), latent_dim=2), torch.ones(1, 4), num_simulations=200)
        >>> found["z"].ranks.shape, int(found["z"].ranks.max()) <= 99
        (torch.Size([200, 2]), True)
    """
    if bins < 2 or (num_draws + 1) % bins:
        raise InputError("bins that divide num_draws + 1", f"{bins} bins, {num_draws} draws", "num_draws=99, bins=20")
    if num_simulations < 5 * bins:
        raise InputError(f"at least {5 * bins} simulations, 5 per bin", num_simulations, "num_simulations=1000")
    shape = like[:1].expand(num_simulations, *like.shape[1:])
    ranks: dict[str, list[Tensor]] = {}
    with evaluating(program, like.device, seed):
        for part in example_chunks(shape, num_draws):
            for name, values in _ranks(program, part, num_draws, vectorize_particles):
                ranks.setdefault(name, []).append(values)
        return {name: _calibration(torch.cat(values).cpu(), num_draws, bins) for name, values in ranks.items()}


def _ranks(program: Program, like: Tensor, num_draws: int, plate: bool) -> Iterable[tuple[str, Tensor]]:
    made = sample_pairs(program, like)
    x = made.sample.to(like)
    below: dict[str, Tensor] = {}
    ties: dict[str, Tensor] = {}
    for count in particle_chunks(num_draws):
        drawn = draw_particles(program, x, count, vectorize_particles=plate).drawn
        for name, truth in made.latents.items():
            truth = truth.to(x.device)
            below[name] = below.get(name, 0) + (drawn[name] < truth).sum(0)
            ties[name] = ties.get(name, 0) + (drawn[name] == truth).sum(0)
    for name, count_below in below.items():
        broken = (torch.rand(count_below.shape, device=x.device) * (ties[name] + 1)).long()
        yield name, count_below + broken


def _calibration(ranks: Tensor, num_draws: int, bins: int) -> Calibration:
    flat = ranks.reshape(len(ranks), -1)
    counts = torch.nn.functional.one_hot(flat * bins // (num_draws + 1), bins).sum(0).double()
    chi_square = stats.chisquare(counts.numpy(), axis=-1)
    uniform = (flat.double() + torch.rand(flat.shape, dtype=torch.float64)) / (num_draws + 1)
    tests = [stats.kstest(column, "uniform") for column in uniform.T.numpy()]
    figures = (
        torch.as_tensor(chi_square.statistic),
        torch.as_tensor(chi_square.pvalue),
        torch.tensor([test.statistic for test in tests], dtype=torch.float64),
        torch.tensor([test.pvalue for test in tests], dtype=torch.float64),
    )
    return Calibration(ranks, num_draws, bins, *(figure.reshape(ranks.shape[1:]) for figure in figures))
