"""The part of the card on ELBO surgery."""

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, placed, tensors_of
from pyro_vae.evaluation.methods.elbo_decomposition import SATURATED, elbo_surgery
from pyro_vae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class KLParts:
    """Mutual information and marginal KL, each (B,), nats: the KL of these examples in two parts."""

    mutual_information: Tensor
    marginal_kl: Tensor


def surgery(subject: Subject, where: slice, seed: int) -> KLParts:
    """Return mutual information and marginal KL."""
    found = elbo_surgery(subject.program, subject.x[where], seed=seed)
    return KLParts(found.mutual_information, found.marginal_kl)


def surgery_entries(subject: Subject, found: KLParts) -> list[Entry]:
    """Return mutual information and marginal KL, with a caveat where the information is saturated."""
    information, n = found.mutual_information, len(found.mutual_information)
    limit = math.log(n)
    how = f"q(z) is the mixture over these {n} examples, 1 code each"
    caveat = f"the information is at most log {n} = {limit:.2f} nats"
    if limit - information.mean().item() < SATURATED:
        caveat += (
            f", and saturated at log {n}: it reflects the sample size, not the model, and the marginal KL "
            "takes the rest; more surgery_examples move both"
        )
    return [
        mean_entry("mutual_information", "mutual information of x and z", information, NATS, how, caveat),
        mean_entry("marginal_kl", "marginal KL(q(z) ‖ p(z))", found.marginal_kl, NATS, how, caveat),
    ]


SURGERY = Part(
    what="mutual information of x and z, KL of the aggregate posterior to the prior",
    result=KLParts,
    count=lambda subject: subject.options.surgery_examples,
    chunk=lambda subject: subject.options.surgery_examples,
    work=surgery,
    entries=surgery_entries,
    per_example=tensors_of,
    refuses=placed,
)
