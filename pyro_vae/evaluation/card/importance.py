"""The part of the card on importance sampling: L_K, k-hat and effective sample size."""

import math

import torch
from torch import Tensor

from pyro_vae.engines.compiled.terms import CompiledTerms
from pyro_vae.evaluation.card.bounds import bits
from pyro_vae.evaluation.card.entry import NATS, Entry, over_data, share
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.bounds import draw_in_pieces
from pyro_vae.evaluation.methods.psis import effective_sample_size, pareto_k
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import IMPORTANCE_CHUNK, Subject

K_HAT_LIMITS = (0.5, 0.7)  # Yao et al.: good below the first, usable below the second


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
    trust = k_hat_trust(k_hat)
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


def k_hat_trust(k_hat: Tensor) -> str:
    """Say for how many data k-hat says not to trust L_K."""
    defined = k_hat[~k_hat.isnan()]
    over = (defined > K_HAT_LIMITS[-1]).double().mean().item() if len(defined) else math.nan
    undefined = len(k_hat) - len(defined)
    ties = f"; k-hat undefined for {undefined} data" if undefined else ""
    return (
        f"L_K is from below, too: k-hat is above {K_HAT_LIMITS[-1]} for {over:.0%} of the data, and there it stands on "
        f"few draws and is too low by an unknown amount{ties}"
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
