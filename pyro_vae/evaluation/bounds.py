"""The parts of the card that come from draws of q alone: bounds, their decomposition, L_K and how far to trust it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.engines.scoring import CompiledTerms
from pyro_vae.evaluation.card import NATS, Entry, over_data, share
from pyro_vae.evaluation.diagnostics import effective_sample_size, pareto_k
from pyro_vae.evaluation.likelihood import draw_in_pieces, group_bounds, terms_of
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.resuming import Values
from pyro_vae.evaluation.subject import IMPORTANCE_CHUNK, Subject

TERMS = ("log_px_z", "log_pz", "log_qz")
LOCAL_TRUST = "from below, and nearer than L_K where the guide's q is poor; too low where the flow misses modes"
K_HAT_LIMITS = (0.5, 0.7)  # Yao et al.: good below the first, usable below the second


def bounds(subject: Subject, where: slice, seed: int) -> Values:
    """ELBO with its two terms, and importance-weighted bounds, each (B,), from the same draws."""
    options = subject.options
    draws = max(options.iwae)
    draw = terms_of(subject.program, subject.x[:2], pieces=1, shape=(1, 1))  # few, of other sizes than those of L_K
    found: list[Values] = []
    for x in subject.x[where].split(max(1, options.draws_at_once // draws)):
        pieces = list(draw_in_pieces(draw, x, draws, options.draws_at_once))
        log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
        log_px_z, log_pz, log_qz = (
            torch.cat([getattr(piece, name) for piece in pieces]).double().mean(0) for name in TERMS
        )
        values = {"elbo": log_weight.mean(0), "reconstruction": log_px_z, "cross_entropy": -log_pz, "entropy": -log_qz}
        found.append(values | {f"iwae_{k}": group_bounds(log_weight, k) for k in options.iwae})
    return {name: torch.cat([values[name] for values in found]) for name in found[0]}


def bound_entries(subject: Subject, values: Values) -> list[Entry]:
    """ELBO, reconstruction, KL, IWAE-k, and bits per dimension."""
    draws = max(subject.options.iwae)
    how = f"{draws} draws a datum; {subject.pixels}"
    kl = values["cross_entropy"] - values["entropy"]
    below = "a bound from below: a worse q lowers it as a worse model does; the gaps say which"
    entries = [
        over_data("elbo", "ELBO", values["elbo"], NATS, how, below),
        over_data("reconstruction", "E log p(x|z)", values["reconstruction"], NATS, how),
        over_data("kl", "KL(q(z|x) ‖ p(z))", kl, NATS, f"{draws} draws a datum"),
        over_data("cross_entropy", "  cross-entropy", values["cross_entropy"], NATS, "−E log p(z), z ~ q(z|x)"),
        over_data("entropy", "  entropy of q", values["entropy"], NATS, "−E log q(z|x)"),
    ]
    for k in subject.options.iwae:
        groups = f"{draws // k} {'group' if draws // k == 1 else 'groups'} of {k} draws; {subject.pixels}"
        entries.append(over_data(f"iwae_{k}", f"IWAE-{k}", values[f"iwae_{k}"], NATS, groups, below))
    return [*entries, bits("elbo_bits", "ELBO", values["elbo"], subject)]


def bits(name: str, label: str, log_density: Tensor, subject: Subject) -> Entry:
    r"""Return minus a log-density over D log 2, and say what it is bits of."""
    values = -log_density / (subject.dims * math.log(2))
    if subject.discrete:
        return over_data(name, label, values, "bits per dim", f"over {subject.dims} dims; {subject.pixels}")
    how = f"over {subject.dims} dims, of a density at pixels {subject.pixels}"
    trust = "a density at data that were not dequantized: no code length; comparable at one scaling of the pixels alone"
    return over_data(name, label, values, "bits per dim", how, trust)


def importance(subject: Subject, where: slice, seed: int) -> Values:
    """L_K, the ELBO from the same draws, effective sample size and k-hat, each (B,); holds log weights (K, B)."""
    options, x = subject.options, subject.x[where]
    pieces = draw_in_pieces(subject.draws, x, options.num_particles, options.draws_at_once)
    log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
    return {
        "log_evidence": log_weight.logsumexp(0) - math.log(len(log_weight)),
        "evidence_elbo": log_weight.mean(0),
        "ess": effective_sample_size(log_weight),
        "k_hat": pareto_k(log_weight),
    }


def importance_entries(subject: Subject, values: Values) -> list[Entry]:
    """L_K with its diagnostics, and KL(q ‖ posterior) from the same draws."""
    k = subject.options.num_particles
    gap = values["log_evidence"] - values["evidence_elbo"]
    k_hat = values["k_hat"]
    defined = k_hat[~k_hat.isnan()]
    how = f"L_{k}: {k} draws a datum; {subject.pixels}"
    trust = _trust(k_hat)
    entries = [
        over_data("log_evidence", "log p(x)", values["log_evidence"], NATS, how, trust),
        over_data(
            "inference_gap", "log p(x) − ELBO", gap, NATS, "KL(q ‖ posterior): paired, from the same draws", trust
        ),
        bits("log_evidence_bits", "log p(x)", values["log_evidence"], subject),
        over_data("ess", "effective sample size", values["ess"], f"of {k}", f"{k} draws a datum"),
    ]
    if len(defined):
        tail = f"PSIS k-hat of {k} weights a datum"
        above = [(f"k_hat_{limit}", f"k-hat > {limit}", defined > limit) for limit in K_HAT_LIMITS]
        entries += [share(name, label, hits, tail) for name, label, hits in above]
    return entries


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
        trust = _trust(values["k_hat"])
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


def _trust(k_hat: Tensor) -> str:
    defined = k_hat[~k_hat.isnan()]
    over = (defined > K_HAT_LIMITS[-1]).double().mean().item() if len(defined) else math.nan
    undefined = len(k_hat) - len(defined)
    ties = f"; k-hat undefined for {undefined} data" if undefined else ""
    return (
        f"L_K is from below, too: k-hat is above {K_HAT_LIMITS[-1]} for {over:.0%} of the data, and there it stands on "
        f"few draws and is too low by an unknown amount{ties}"
    )


BOUNDS = Part(
    what="ELBO, its terms, IWAE-k",
    count=lambda subject: subject.options.num_data or len(subject),
    chunk=lambda subject: 500,
    work=bounds,
    entries=bound_entries,
    options=("iwae", "draws_at_once"),
    per_datum=True,
)
IMPORTANCE = Part(
    what="log p(x) by importance sampling, k-hat, effective sample size",
    count=lambda subject: subject.options.importance_data,
    chunk=lambda subject: IMPORTANCE_CHUNK,
    work=importance,
    entries=importance_entries,
    options=("num_particles", "draws_at_once"),
    depends=lambda subject: {"compiled": isinstance(subject.draws, CompiledTerms)},
    per_datum=True,
)
