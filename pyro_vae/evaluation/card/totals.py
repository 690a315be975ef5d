"""Figures over all data, and paired differences, made of several parts."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.gaps import LOCAL_TRUST
from pyro_vae.evaluation.card.importance import k_hat_trust
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


def paired_entries(found: dict[str, Values]) -> list[tuple[str, Entry]]:
    """Return what two estimates of log p(x) of the same data differ by, with the part that each belongs to."""
    entries = []
    for part, name, label in PAIRED:
        if part in found and "importance" in found:
            there = found["importance"]["log_evidence"]
            n = min(len(there), len(found[part][name]))
            difference = found[part][name][:n].double() - there[:n]
            entries.append((part, over_data(f"{name}_paired", label, difference, NATS, "the same data, paired")))
    return entries


PAIRED = (
    ("gaps", "local_evidence", "local q − L_K"),
    ("annealing", "annealed", "AIS − L_K"),
    ("prior", "from_prior", "prior alone − L_K"),
    ("hmc", "from_posterior", "HMC − L_K"),
)


def all_data_entry(name: str, label: str, elbo: Tensor, gap: Tensor, of: str, trust: str) -> Entry:
    r"""Return log p(x) over all data: their mean ELBO, and the mean gap to a better estimate where that is known.

    .. math:: \frac1N \sum_{n \le N} e_n + \frac1m \sum_{n \le m} g_n, \qquad
        \frac{\mathrm{var}(e)}{N} + \frac{\mathrm{var}(g)}{m} + 2 \frac{\mathrm{cov}(e, g)}{N}

    The gap varies less between data than log p(x) does, so the error is near that of all N data. The subset is a random
    one and the beginning of all, so that the covariance counts once.

    Args:
        name: of the entry.
        label: of the entry.
        elbo: e of all data, (N,).
        gap: g, the better estimate minus an ELBO, of the first of them, (m,).
        of: the better estimate, and how the pixels were had, in words.
        trust: when not to trust it.

    Example:
        >>> elbo, gap = torch.tensor([-3.0, -2.0, -4.0]), torch.tensor([0.5, 1.0])
        >>> all_data_entry("all", "log p(x), all data", elbo, gap, "L_50", "").mean
        -2.25
    """
    elbo, gap = elbo.double(), gap.double()[: len(elbo)]
    n, m = len(elbo), len(gap)
    covariance = torch.cov(torch.stack([elbo[:m], gap]))[0, 1].item()
    variance = elbo.var().item() / n + gap.var().item() / m + 2 * covariance / n
    how = f"ELBO of {n} data + gap of {m} of them to {of}"
    return Entry(name, label, (elbo.mean() + gap.mean()).item(), math.sqrt(max(variance, 0.0)), NATS, n, how, trust)


def all_data_entries(subject: Subject, found: Mapping[str, Values]) -> list[tuple[str, Entry]]:
    """Return log p(x) over all data by what was computed on a subset, with the part that each figure belongs to."""
    entries = []
    if "bounds" in found and "importance" in found:
        values = found["importance"]
        gap = values["log_evidence"] - values["evidence_elbo"]
        of = f"L_{subject.options.num_particles}; {subject.pixels}"
        trust = k_hat_trust(values["k_hat"])
        entry = all_data_entry("log_evidence_all", "log p(x), all data", found["bounds"]["elbo"], gap, of, trust)
        entries.append(("importance", entry))
    if "bounds" in found and "gaps" in found:
        elbo, local = found["bounds"]["elbo"], found["gaps"]["local_evidence"]
        m = min(len(elbo), len(local))
        of = f"weights of a local flow; {subject.pixels}"
        label = "log p(x), all data, local q"
        entry = all_data_entry("local_evidence_all", label, elbo, local[:m] - elbo[:m], of, LOCAL_TRUST)
        entries.append(("gaps", entry))
    return entries
