"""The part of the card on importance sampling: L_K, k-hat and effective sample size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.engines.compiled.terms import CompiledTerms
from pyro_vae.evaluation.card.bounds import bits_entries, no_bits
from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry, share_entry
from pyro_vae.evaluation.card.part import Part, tensors_of
from pyro_vae.evaluation.methods.bounds import draw_in_pieces
from pyro_vae.evaluation.methods.psis import effective_sample_size, pareto_k
from pyro_vae.evaluation.subject import Subject, importance_chunk

K_HAT_LIMITS = (0.5, 0.7)  # Yao et al.: good below the first, usable below the second


@dataclass(frozen=True, eq=False)
class Importance:
    """L_K and the diagnostics of its weights, each (B,)."""

    log_evidence: Tensor  # log of the mean weight, nats
    evidence_elbo: Tensor  # the ELBO from the same particles, nats
    ess: Tensor  # effective sample size
    k_hat: Tensor

    @property
    def gap(self) -> Tensor:
        """L_K − ELBO, (B,): an estimate of KL(q ‖ posterior), paired."""
        return self.log_evidence - self.evidence_elbo


def importance(subject: Subject, where: slice, seed: int) -> Importance:
    """Return L_K with its diagnostics; holds log weights (K, B)."""
    options, x = subject.options, subject.x[where]
    pieces = draw_in_pieces(subject.score, x, options.num_particles, options.draws_at_once)
    log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
    log_evidence = log_weight.logsumexp(0) - math.log(len(log_weight))
    return Importance(log_evidence, log_weight.mean(0), effective_sample_size(log_weight), pareto_k(log_weight))


def importance_entries(subject: Subject, found: Importance) -> list[Entry]:
    """Return L_K with its diagnostics, and KL(q ‖ posterior) from the same particles."""
    k = subject.options.num_particles
    defined = found.k_hat[~found.k_hat.isnan()]
    drawn = f"{k} particles per example"
    how, caveat = f"L_{k}: {drawn}; {subject.pixels}", k_hat_caveat(found.k_hat)
    paired = "KL(q ‖ posterior): paired, from the same particles"
    entries = [
        mean_entry("log_evidence", "log p(x)", found.log_evidence, NATS, how, caveat),
        mean_entry("inference_gap", "log p(x) − ELBO", found.gap, NATS, paired, caveat),
        *bits_entries("log_evidence_bits", "log p(x)", found.log_evidence, subject),
        mean_entry("ess", "effective sample size", found.ess, f"of {k}", drawn),
    ]
    if len(defined):
        tail = f"PSIS k-hat of {k} weights per example"
        above = [(f"k_hat_{limit}", f"k-hat > {limit}", defined > limit) for limit in K_HAT_LIMITS]
        entries += [share_entry(name, label, hits, tail) for name, label, hits in above]
    return entries


def k_hat_caveat(k_hat: Tensor) -> str:
    """Return the caveat of L_K: for how many examples k-hat is too large."""
    defined = k_hat[~k_hat.isnan()]
    over = (defined > K_HAT_LIMITS[-1]).double().mean().item() if len(defined) else math.nan
    undefined = len(k_hat) - len(defined)
    ties = f"; k-hat is undefined for {undefined} examples" if undefined else ""
    return (
        f"L_K is a lower bound, too: k-hat is above {K_HAT_LIMITS[-1]} for {over:.0%} of the examples, where few "
        f"particles dominate L_K and it is too low by an unknown amount{ties}"
    )


IMPORTANCE = Part(
    what="log p(x) by importance sampling, k-hat, effective sample size",
    result=Importance,
    count=lambda subject: subject.options.importance_examples,
    chunk=importance_chunk,
    work=importance,
    entries=importance_entries,
    options=("num_particles", "draws_at_once"),
    depends=lambda subject: {"compiled": isinstance(subject.score, CompiledTerms)},
    omits=lambda subject: {"log_evidence_bits": no_bits(subject)},
    needs="bound",
    per_example=tensors_of,
)
