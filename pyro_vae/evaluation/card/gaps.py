"""The part of the card on inference gaps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, continuous_only, placed
from pyro_vae.evaluation.methods.inference_gaps import FAMILIES, inference_gaps
from pyro_vae.evaluation.subject import Subject

LOCAL_CAVEAT = "a lower bound, nearer than L_K where the guide's q is poor; too low where the flow misses modes"
GAP_CAVEAT = (
    "log p(x) is that of the local flow: where it is too low, so is the approximation gap; an optimisation that falls "
    "short makes the approximation gap too large and the amortization gap too small"
)
KINDS = {
    "approximation": "the limit of the variational family",
    "amortization": "the suboptimality of the amortised encoder",
}


@dataclass(frozen=True, eq=False)
class FamilyGaps:
    """The gaps of one family of local q, each (B,), nats; and whether its optimisation converged."""

    approximation: Tensor
    amortization: Tensor
    converged: Tensor


@dataclass(frozen=True, eq=False)
class LocalGaps:
    """log p(x) by the weights of the local flow, (B,), nats, and the gaps of every family."""

    local_evidence: Tensor
    families: dict[str, FamilyGaps]


def gaps(subject: Subject, where: slice, seed: int) -> LocalGaps:
    """Return the gaps of each family, relative to log p(x) by the weights of the local flow."""
    x, steps = subject.x[where], subject.options.gap_steps
    unknown = torch.zeros(len(x))
    found = {
        family: inference_gaps(subject.program, x, unknown, family, max_steps=steps, seed=seed) for family in FAMILIES
    }
    evidence = found["flow"].local_evidence
    families = {f: FamilyGaps(evidence - g.local_elbo, g.amortization, g.converged) for f, g in found.items()}
    return LocalGaps(evidence, families)


def gap_entries(subject: Subject, found: LocalGaps) -> list[Entry]:
    """Return log p(x) by local flows, and the two gaps of each family."""
    how = f"1000 particles of a flow fitted to each example; {subject.pixels}"
    entries = [mean_entry("local_evidence", "log p(x), local q", found.local_evidence, NATS, how, LOCAL_CAVEAT)]
    for family, of_family in found.families.items():
        stopped = int((~of_family.converged).sum())
        more = f"; {stopped} examples stopped after {subject.options.gap_steps} steps" if stopped else ""
        for kind, values in (("approximation", of_family.approximation), ("amortization", of_family.amortization)):
            label, how = f"{kind} gap, {family} q", f"a local {family} q for each example: {KINDS[kind]}{more}"
            entries.append(mean_entry(f"{kind}_{family}", label, values, NATS, how, GAP_CAVEAT))
    return entries


def gaps_per_example(found: LocalGaps) -> dict[str, Tensor]:
    """Return log p(x) and all gaps of each example, by name."""
    values = {"local_evidence": found.local_evidence}
    for family, of_family in found.families.items():
        values |= {f"{name}_{family}": value for name, value in vars(of_family).items()}
    return values


GAPS = Part(
    what="approximation and amortization gap, by a local q for each example",
    result=LocalGaps,
    count=lambda subject: subject.options.gap_examples,
    chunk=lambda subject: 50,
    work=gaps,
    entries=gap_entries,
    options=("gap_steps",),
    per_example=gaps_per_example,
    refuses=lambda subject: placed(subject) or continuous_only(subject),
)
