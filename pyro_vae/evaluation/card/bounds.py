"""The part of the card on bounds: ELBO, its terms and IWAE-k."""

import math

import torch
from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.bounds import draw_in_pieces, group_bounds, terms_of
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject

TERMS = ("log_px_z", "log_pz", "log_qz")


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


BOUNDS = Part(
    what="ELBO, its terms, IWAE-k",
    count=lambda subject: subject.options.num_data or len(subject),
    chunk=lambda subject: 500,
    work=bounds,
    entries=bound_entries,
    options=("iwae", "draws_at_once"),
    per_datum=True,
)
