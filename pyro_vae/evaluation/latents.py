"""The parts of the card that judge q as a distribution of latents: units in use, surgery of the KL, calibration."""

import math
from typing import Any

import torch

from pyro_vae.evaluation.card import NATS, Entry, over_data
from pyro_vae.evaluation.diagnostics import (
    ACTIVE_VARIANCE,
    CLOSED_FORM,
    COLLAPSED_KL,
    Calibration,
    latent_diagnostics,
    simulation_based_calibration,
)
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.resuming import Values
from pyro_vae.evaluation.subject import Subject
from pyro_vae.evaluation.surgery import SATURATED, elbo_surgery

SHALLOW = 0.01  # a p-value below which calibration is called rejected


def use(subject: Subject, where: slice, seed: int) -> Values:
    """Variance of the posterior means and KL, latent dimension by latent dimension."""
    found = latent_diagnostics(subject.program, subject.x[where], seed=seed)
    values: Values = {}
    for site, of_site in found.items():
        values[f"{site}.mean_variance"] = of_site.mean_variance
        values[f"{site}.mean_variance_error"] = of_site.mean_variance_error
        values[f"{site}.kl_by_dimension"] = of_site.kl
        values[f"{site}.kl_by_dimension_error"] = of_site.kl_error
        values[f"{site}.closed"] = torch.tensor(of_site.kl_from == CLOSED_FORM)
    return values


def per_dimension(values: Values) -> dict[str, dict[str, list[float]]]:
    """Return the variance of the posterior mean and the KL of every latent dimension, with errors, site by site."""
    found: dict[str, dict[str, list[float]]] = {}
    for key, value in values.items():
        site, _, name = key.rpartition(".")
        if name != "closed":
            found.setdefault(site, {})[name] = value.double().flatten().tolist()
    return found


def use_entries(subject: Subject, values: Values) -> list[Entry]:
    """Active units and collapsed dimensions, site by site."""
    count = min(_all(subject), len(subject))
    entries = []
    for site in subject.latents:
        variance, kl = values[f"{site}.mean_variance"].flatten(), values[f"{site}.kl_by_dimension"].flatten()
        of = "" if len(subject.latents) == 1 else f" of {site}"
        if not variance.isnan().any():
            how = f"dimensions whose posterior mean varies by more than {ACTIVE_VARIANCE} over the data"
            active, of_all = float((variance > ACTIVE_VARIANCE).sum()), len(variance)
            trust = "the threshold is a convention; a guide that rescales z moves units over it"
            entries.append(_count(f"active_units_{site}", f"active units{of}", active, of_all, count, how, trust))
        how = f"KL(q ‖ p) below {COLLAPSED_KL} nats a datum, {'closed form' if values[f'{site}.closed'] else 'sampled'}"
        collapsed = float((kl < COLLAPSED_KL).sum())
        entries.append(_count(f"collapsed_{site}", f"collapsed dimensions{of}", collapsed, len(kl), count, how, ""))
    return entries


def surgery(subject: Subject, where: slice, seed: int) -> Values:
    """Mutual information and marginal KL, each (B,): the KL of these data in two."""
    found = elbo_surgery(subject.program, subject.x[where], seed=seed)
    return {"mutual_information": found.mutual_information, "marginal_kl": found.marginal_kl}


def surgery_entries(subject: Subject, values: Values) -> list[Entry]:
    """How much a code tells of its datum, and how far all codes together are from the prior."""
    information, marginal = values["mutual_information"], values["marginal_kl"]
    limit, n = math.log(len(information)), len(information)
    how = f"q(z) the mixture over these {n} data, 1 code each"
    trust = f"the information cannot exceed log {n} = {limit:.2f} nats"
    if limit - information.mean().item() < SATURATED:
        trust += (
            " and is there: it speaks of the number of data and not of the program, "
            "and what it lacks stands in the marginal KL; more surgery_data move both"
        )
    return [
        over_data("mutual_information", "mutual information of x and z", information, NATS, how, trust),
        over_data("marginal_kl", "marginal KL(q(z) ‖ p(z))", marginal, NATS, how, trust),
    ]


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
            _count(f"miscalibrated_{site}", f"miscalibrated dimensions{of}", rejected, len(p_values), count, how, trust)
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


def _count(name: str, label: str, value: float, of: int, count: int, how: str, trust: str) -> Entry:
    return Entry(name, label, value, float("nan"), f"of {of}", count, how, trust)


def _all(subject: Subject) -> int:
    return subject.options.num_data or len(subject)


LATENTS = Part(
    what="latent units in use, posterior collapse",
    count=_all,
    chunk=_all,
    work=use,
    entries=use_entries,
)
SURGERY = Part(
    what="mutual information of x and z, KL of the aggregate posterior to the prior",
    count=lambda subject: subject.options.surgery_data,
    chunk=lambda subject: subject.options.surgery_data,
    work=surgery,
    entries=surgery_entries,
    per_datum=True,
)
CALIBRATION = Part(
    what="simulation-based calibration of q",
    count=lambda subject: 1,
    chunk=lambda subject: 1,
    work=calibrate,
    entries=calibration_entries,
    options=("simulations",),
)
