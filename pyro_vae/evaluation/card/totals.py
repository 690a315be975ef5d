"""Figures that combine parts: log p(x) over all examples, and paired differences."""

import math

import torch
from torch import Tensor

from pyro_vae.base.statistics import Estimate
from pyro_vae.evaluation.card.annealing import ANNEALING
from pyro_vae.evaluation.card.bounds import BOUNDS
from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.gaps import GAPS, LOCAL_CAVEAT
from pyro_vae.evaluation.card.importance import IMPORTANCE, k_hat_caveat
from pyro_vae.evaluation.card.part import Results
from pyro_vae.evaluation.card.posterior import HMC
from pyro_vae.evaluation.card.prior import PRIOR
from pyro_vae.evaluation.subject import Subject


def all_examples_entry(name: str, label: str, elbo: Tensor, gap: Tensor, of: str, caveat: str) -> Entry:
    r"""Return log p(x) over all examples: their mean ELBO, plus the mean gap to a better estimate on a subset.

    .. math:: \frac1N \sum_{n \le N} e_n + \frac1m \sum_{n \le m} g_n, \qquad
        \frac{\mathrm{var}(e)}{N} + \frac{\mathrm{var}(g)}{m} + 2 \frac{\mathrm{cov}(e, g)}{N}

    The gap varies less between examples than log p(x) does, so the error is near that of all N examples. The subset is
    the beginning of a random order, hence the covariance term.

    Args:
        name: of the entry.
        label: of the entry.
        elbo: e of all examples, (N,).
        gap: g, the better estimate minus an ELBO, of the first of them, (m,).
        of: the better estimate and the binarization, in words.
        caveat: of the entry.

    Example:
        >>> elbo, gap = torch.tensor([-3.0, -2.0, -4.0]), torch.tensor([0.5, 1.0])
        >>> all_examples_entry("all", "log p(x), all", elbo, gap, "L_50", "").value
        -2.25
    """
    elbo, gap = elbo.double(), gap.double()[: len(elbo)]
    n, m = len(elbo), len(gap)
    covariance = torch.cov(torch.stack([elbo[:m], gap]))[0, 1].item()
    variance = elbo.var().item() / n + gap.var().item() / m + 2 * covariance / n
    how = f"ELBO of {n} examples + gap of {m} of them to {of}"
    found = Estimate((elbo.mean() + gap.mean()).item(), math.sqrt(max(variance, 0.0)), n)
    return Entry(name, label, found, NATS, how, caveat)


def total_entries(subject: Subject, results: Results) -> list[tuple[str, Entry]]:
    """Return log p(x) over all examples by what was computed on a subset, with the part that each figure belongs to."""
    entries: list[tuple[str, Entry]] = []
    bounds, importance, gaps = results.of(BOUNDS), results.of(IMPORTANCE), results.of(GAPS)
    if bounds and importance:
        of = f"L_{subject.options.num_particles}; {subject.pixels}"
        name, label, caveat = "log_evidence_all", "log p(x), all examples", k_hat_caveat(importance.k_hat)
        entries.append(("importance", all_examples_entry(name, label, bounds.elbo, importance.gap, of, caveat)))
    if bounds and gaps:
        m = min(len(bounds.elbo), len(gaps.local_evidence))
        gap, of = gaps.local_evidence[:m] - bounds.elbo[:m], f"weights of a local flow; {subject.pixels}"
        name, label = "local_evidence_all", "log p(x), all examples, local q"
        entries.append(("gaps", all_examples_entry(name, label, bounds.elbo, gap, of, LOCAL_CAVEAT)))
    return entries


def paired_entries(results: Results) -> list[tuple[str, Entry]]:
    """Return the differences of two estimates of log p(x) of the same examples, with the part that each belongs to."""
    importance = results.of(IMPORTANCE)
    if importance is None:
        return []
    entries = []
    for part, name, label, values in _others(results):
        n = min(len(importance.log_evidence), len(values))
        difference = values[:n].double() - importance.log_evidence[:n]
        entries.append((part, mean_entry(f"{name}_paired", label, difference, NATS, "the same examples, paired")))
    return entries


def _others(results: Results) -> list[tuple[str, str, str, Tensor]]:
    """Return the other estimates of log p(x) that were computed: part, name, label, values."""
    found: list[tuple[str, str, str, Tensor]] = []
    if gaps := results.of(GAPS):
        found.append(("gaps", "local_evidence", "local q − L_K", gaps.local_evidence))
    if annealed := results.of(ANNEALING):
        found.append(("annealing", "annealed", "AIS − L_K", annealed.annealed))
    if prior := results.of(PRIOR):
        found.append(("prior", "from_prior", "prior alone − L_K", prior.from_prior))
    if hmc := results.of(HMC):
        found.append(("hmc", "from_posterior", "HMC − L_K", hmc.from_posterior))
    return found
