"""The parts of the card that come from draws of q alone: bounds, their decomposition, L_K and how far to trust it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.evaluation.card import NATS, Entry, over_data
from pyro_vae.evaluation.likelihood import draw_in_pieces, group_bounds
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.resuming import Values
from pyro_vae.evaluation.subject import Subject


def bounds(subject: Subject, where: slice, seed: int) -> Values:
    """ELBO with its two terms, and importance-weighted bounds, each (B,), from the same draws."""
    options = subject.options
    draws = max(options.iwae)
    found: list[Values] = []
    for x in subject.x[where].split(max(1, options.draws_at_once // draws)):
        pieces = list(draw_in_pieces(subject.program, x, draws, options.draws_at_once))
        log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
        reconstruction = torch.cat([piece.log_px_z for piece in pieces]).double().mean(0)
        elbo = log_weight.mean(0)
        iwae = {f"iwae_{k}": group_bounds(log_weight, k) for k in options.iwae}
        found.append({"elbo": elbo, "reconstruction": reconstruction, "kl": reconstruction - elbo, **iwae})
    return {name: torch.cat([values[name] for values in found]) for name in found[0]}


def bound_entries(subject: Subject, values: Values) -> list[Entry]:
    """ELBO, reconstruction, KL, IWAE-k, and bits per dimension."""
    draws = max(subject.options.iwae)
    how = f"{draws} draws a datum; {subject.pixels}"
    below = "a bound from below: a worse q lowers it as a worse model does; the gaps say which"
    entries = [
        over_data("elbo", "ELBO", values["elbo"], NATS, how, below),
        over_data("reconstruction", "E log p(x|z)", values["reconstruction"], NATS, how),
        over_data("kl", "KL(q(z|x) ‖ p(z))", values["kl"], NATS, f"{draws} draws a datum"),
    ]
    for k in subject.options.iwae:
        groups = f"{draws // k} groups of {k} draws; {subject.pixels}"
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
    """L_K, the ELBO from the same draws, effective sample size and k-hat, each (B,); holds (K, B) log weights."""
    options, x = subject.options, subject.x[where]
    pieces = draw_in_pieces(subject.program, x, options.num_particles, options.draws_at_once)
    log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
    shares = log_weight.softmax(0)
    return {
        "log_evidence": log_weight.logsumexp(0) - math.log(len(log_weight)),
        "evidence_elbo": log_weight.mean(0),
        "ess": 1 / shares.square().sum(0),
    }


def importance_entries(subject: Subject, values: Values) -> list[Entry]:
    """L_K with its diagnostics, and KL(q ‖ posterior) from the same draws."""
    k = subject.options.num_particles
    gap = values["log_evidence"] - values["evidence_elbo"]
    how = f"L_{k}: {k} draws a datum; {subject.pixels}"
    return [
        over_data("log_evidence", "log p(x)", values["log_evidence"], NATS, how),
        over_data("inference_gap", "log p(x) − ELBO", gap, NATS, "paired, of the same draws"),
        bits("log_evidence_bits", "log p(x)", values["log_evidence"], subject),
    ]


PARTS: Mapping[str, Part] = {
    "bounds": Part(
        what="ELBO, its two terms, IWAE-k",
        count=lambda subject: subject.options.num_data or len(subject),
        chunk=lambda subject: 500,
        work=bounds,
        entries=bound_entries,
        options=("iwae", "draws_at_once"),
    ),
    "importance": Part(
        what="log p(x) by importance sampling, k-hat, effective sample size",
        count=lambda subject: subject.options.importance_data,
        chunk=lambda subject: 50,
        work=importance,
        entries=importance_entries,
        options=("num_particles", "draws_at_once"),
    ),
}
