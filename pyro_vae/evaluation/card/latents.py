"""The part of the card on latent usage: active units and posterior collapse."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import Entry, count_entry
from pyro_vae.evaluation.card.part import Part, PerLatent
from pyro_vae.evaluation.methods.latent_usage import (
    ACTIVE_VARIANCE,
    COLLAPSED_KL,
    SAMPLED,
    LatentDiagnostics,
    latent_diagnostics,
)
from pyro_vae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class LatentUsage:
    """The diagnostics of every latent site."""

    sites: dict[str, LatentDiagnostics]


def usage(subject: Subject, where: slice, seed: int) -> LatentUsage:
    """Return variance of the posterior means and KL of every latent dimension."""
    plate = subject.options.vectorize_particles
    return LatentUsage(latent_diagnostics(subject.program, subject.x[where], seed=seed, vectorize_particles=plate))


def usage_entries(subject: Subject, found: LatentUsage) -> list[Entry]:
    """Return active units and collapsed dimensions, site by site."""
    count = subject.num_examples
    entries = []
    for site, usage in found.sites.items():
        of = "" if len(found.sites) == 1 else f" of {site}"
        total = usage.kl.numel()
        if not usage.mean_variance.isnan().any():
            how = f"dimensions whose posterior mean varies by more than {ACTIVE_VARIANCE} over the examples"
            how += "; means of particles" if usage.mean_from == SAMPLED else ""
            caveat = "the threshold is a convention and depends on the scale of z"
            active, all_units = float(usage.active_units), usage.mean_variance.numel()
            entries.append(
                count_entry(f"active_units_{site}", f"active units{of}", active, all_units, count, how, caveat)
            )
        how = f"KL(q ‖ p) below {COLLAPSED_KL} nats per example, {usage.kl_from}"
        collapsed = float(usage.collapsed.sum())
        entries.append(count_entry(f"collapsed_{site}", f"collapsed dimensions{of}", collapsed, total, count, how))
    return entries


def usage_per_latent(found: LatentUsage) -> PerLatent:
    """Return variance of the posterior mean and KL of every latent dimension, with errors, site by site."""
    return {
        site: {
            "mean_variance": _listed(usage.mean_variance),
            "mean_variance_error": _listed(usage.mean_variance_error),
            "kl_by_dimension": _listed(usage.kl),
            "kl_by_dimension_error": _listed(usage.kl_error),
        }
        for site, usage in found.sites.items()
    }


def _listed(values: Tensor) -> list[float]:
    found: list[float] = values.double().flatten().tolist()
    return found


LATENTS = Part(
    what="active units, posterior collapse",
    result=LatentUsage,
    count=lambda subject: subject.num_examples,
    chunk=lambda subject: subject.num_examples,
    work=usage,
    entries=usage_entries,
    per_latent=usage_per_latent,
)
