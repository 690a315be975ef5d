"""The part of the card on latent units in use."""

import torch

from pyro_vae.evaluation.card.entry import Entry, count_entry
from pyro_vae.evaluation.card.part import Part, all_data
from pyro_vae.evaluation.methods.latent_usage import ACTIVE_VARIANCE, CLOSED_FORM, COLLAPSED_KL, latent_diagnostics
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


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
    count = min(all_data(subject), len(subject))
    entries = []
    for site in subject.latents:
        variance, kl = values[f"{site}.mean_variance"].flatten(), values[f"{site}.kl_by_dimension"].flatten()
        of = "" if len(subject.latents) == 1 else f" of {site}"
        if not variance.isnan().any():
            how = f"dimensions whose posterior mean varies by more than {ACTIVE_VARIANCE} over the data"
            active, of_all = float((variance > ACTIVE_VARIANCE).sum()), len(variance)
            trust = "the threshold is a convention; a guide that rescales z moves units over it"
            entries.append(count_entry(f"active_units_{site}", f"active units{of}", active, of_all, count, how, trust))
        how = f"KL(q ‖ p) below {COLLAPSED_KL} nats a datum, {'closed form' if values[f'{site}.closed'] else 'sampled'}"
        collapsed = float((kl < COLLAPSED_KL).sum())
        entries.append(
            count_entry(f"collapsed_{site}", f"collapsed dimensions{of}", collapsed, len(kl), count, how, "")
        )
    return entries


LATENTS = Part(
    what="latent units in use, posterior collapse",
    count=all_data,
    chunk=all_data,
    work=use,
    entries=use_entries,
)
