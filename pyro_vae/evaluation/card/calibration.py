"""The part of the card on calibration."""

from typing import Any

import torch

from pyro_vae.evaluation.card.entry import Entry, count_entry
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject

SHALLOW = 0.01  # a p-value below which calibration is called rejected


def calibrate(subject: Subject, where: slice, seed: int) -> Values:
    """Simulation-based calibration: p-value, shift and dispersion of the ranks, site by site."""
    sizes = {"num_simulations": subject.options.simulations, "seed": seed}
    found = simulation_based_calibration(subject.program, subject.x, **sizes)
    return {f"{site}.{name}": value for site, c in found.items() for name, value in _figures(c).items()}


def calibration_entries(subject: Subject, values: Values) -> list[Entry]:
    """The share of dimensions whose ranks are not uniform, and how too narrow q is on average."""
    count = subject.options.simulations
    trust = (
        "of q on data that the model made, not on the held-out data; uniform ranks do not prove q right: "
        "the prior passes, too"
    )
    entries = []
    for site in subject.latents:
        of = "" if len(subject.latents) == 1 else f" of {site}"
        p_values = values[f"{site}.p_values"]
        rejected = float((p_values < SHALLOW).sum())
        how = f"ranks not uniform at p < {SHALLOW}, Bonferroni; simulated data, 99 draws each"
        entries.append(
            count_entry(
                f"miscalibrated_{site}", f"miscalibrated dimensions{of}", rejected, len(p_values), count, how, trust
            )
        )
        dispersion = values[f"{site}.dispersion"]
        how = "spread of the ranks over its value were q the posterior, mean over dimensions; above 1: q too narrow"
        error = values[f"{site}.dispersion_error"].item()
        label = f"rank dispersion{of}"
        entries.append(Entry(f"dispersion_{site}", label, dispersion.mean().item(), error, "ratio", count, how, trust))
    return entries


def _figures(found: Calibration) -> dict[str, Any]:
    p_values = torch.minimum(found.chi_square_p, found.ecdf_p).flatten()
    scaled = (found.ranks.double().reshape(len(found.ranks), -1) + 0.5) / (found.num_draws + 1) - 0.5
    relative = scaled.square() * (found.dispersion.flatten() / scaled.square().mean(0))
    return {
        "p_values": (p_values * 2 * len(p_values)).clamp(max=1.0),
        "shift": found.shift.flatten(),
        "dispersion": found.dispersion.flatten(),
        "dispersion_error": relative.mean(1).std()
        / len(relative) ** 0.5,  # one simulation's dimensions belong together
    }


CALIBRATION = Part(
    what="simulation-based calibration of q",
    count=lambda subject: 1,
    chunk=lambda subject: 1,
    work=calibrate,
    entries=calibration_entries,
    options=("simulations",),
)
