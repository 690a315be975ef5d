"""The part of the card on sampling the prior."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, placed, tensors_of
from pyro_vae.evaluation.methods.log_evidence import prior_log_evidence
from pyro_vae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class FromPrior:
    """log p(x) from samples of the prior, (B,), nats."""

    from_prior: Tensor


def prior(subject: Subject, where: slice, seed: int) -> FromPrior:
    """Return log p(x) from samples of the prior."""
    k = subject.options.num_particles
    return FromPrior(prior_log_evidence(subject.program, subject.x[where], num_particles=k, seed=seed).value)


def prior_entries(subject: Subject, found: FromPrior) -> list[Entry]:
    """Return log p(x) by sampling the prior."""
    how = f"{subject.options.num_particles} samples of p(z); {subject.pixels}"
    caveat = "far too low, because hardly any sample of the prior resembles x; it shows why q is needed"
    return [mean_entry("from_prior", "log p(x), prior alone", found.from_prior, NATS, how, caveat)]


PRIOR = Part(
    what="log p(x) by sampling the prior",
    result=FromPrior,
    count=lambda subject: subject.options.prior_examples,
    chunk=lambda subject: 50,
    work=prior,
    entries=prior_entries,
    options=("num_particles",),
    per_example=tensors_of,
    refuses=placed,
)
