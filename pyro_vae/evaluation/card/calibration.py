"""The part of the card on calibration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.statistics import Estimate
from pyro_vae.evaluation.card.entry import Entry, count_entry
from pyro_vae.evaluation.card.part import Part, simulated_pairs
from pyro_vae.evaluation.methods.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.subject import Subject

REJECTED = 0.01  # a p-value below it rejects calibration


@dataclass(frozen=True, eq=False)
class SiteCalibration:
    """p-values, shift and dispersion of the ranks of one site, each flat over its dimensions."""

    p_values: Tensor
    shift: Tensor
    dispersion: Tensor
    dispersion_error: Tensor  # scalar, of the mean over dimensions


@dataclass(frozen=True, eq=False)
class SiteCalibrations:
    """The calibration of every latent site."""

    sites: dict[str, SiteCalibration]


def calibrate(subject: Subject, where: slice, seed: int) -> SiteCalibrations:
    """Run simulation-based calibration."""
    count = subject.options.simulations
    plate = subject.options.vectorize_particles
    found = simulation_based_calibration(
        subject.program, subject.alone, num_simulations=count, seed=seed, vectorize_particles=plate
    )
    return SiteCalibrations({site: _summary(of_site) for site, of_site in found.items()})


def _summary(found: Calibration) -> SiteCalibration:
    p_values = torch.minimum(found.chi_square_p, found.ecdf_p).flatten()
    scaled = (found.ranks.double().reshape(len(found.ranks), -1) + 0.5) / (found.num_draws + 1) - 0.5
    relative = scaled.square() * (found.dispersion.flatten() / scaled.square().mean(0))
    error = relative.mean(1).std() / len(relative) ** 0.5  # the dimensions of one simulation are dependent
    corrected = (p_values * 2 * len(p_values)).clamp(max=1.0)
    return SiteCalibration(corrected, found.shift.flatten(), found.dispersion.flatten(), error)


def calibration_entries(subject: Subject, found: SiteCalibrations) -> list[Entry]:
    """Return the number of dimensions whose ranks are not uniform, and how much too narrow q is on average."""
    count = subject.options.simulations
    caveat = (
        "on simulated examples, not on held-out ones; uniform ranks do not prove that q is the posterior: "
        "the prior has them, too"
    )
    entries = []
    for site, of_site in found.sites.items():
        of = "" if len(found.sites) == 1 else f" of {site}"
        rejected, total = float((of_site.p_values < REJECTED).sum()), len(of_site.p_values)
        how = f"ranks not uniform at p < {REJECTED}, Bonferroni; simulated examples, 99 samples each"
        label = f"miscalibrated dimensions{of}"
        entries.append(count_entry(f"miscalibrated_{site}", label, rejected, total, count, how, caveat))
        how = "variance of the ranks relative to a calibrated q, mean over dimensions; above 1: q too narrow"
        spread = Estimate(of_site.dispersion.mean().item(), of_site.dispersion_error.item(), count)
        entries.append(Entry(f"dispersion_{site}", f"rank dispersion{of}", spread, "ratio", how, caveat))
    return entries


CALIBRATION = Part(
    what="simulation-based calibration of q",
    result=SiteCalibrations,
    count=lambda subject: 1,
    chunk=lambda subject: 1,
    work=calibrate,
    entries=calibration_entries,
    options=("simulations",),
    refuses=simulated_pairs,
)
