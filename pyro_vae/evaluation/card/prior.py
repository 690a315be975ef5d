"""The part of the card on sampling the prior."""

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.log_evidence import prior_log_evidence
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


def prior(subject: Subject, where: slice, seed: int) -> Values:
    """Log p(x) from draws of the prior, (B,)."""
    k = subject.options.num_particles
    return {"from_prior": prior_log_evidence(subject.program, subject.x[where], num_particles=k, seed=seed).value}


def prior_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) by sampling the prior."""
    how = f"{subject.options.num_particles} draws of p(z); {subject.pixels}"
    trust = "shown to say why q is needed: hardly a draw of the prior resembles x, so that it is far too low"
    return [over_data("from_prior", "log p(x), prior alone", values["from_prior"], NATS, how, trust)]


PRIOR = Part(
    what="log p(x) by sampling the prior",
    count=lambda subject: subject.options.prior_data,
    chunk=lambda subject: 50,
    work=prior,
    entries=prior_entries,
    options=("num_particles",),
    per_datum=True,
)
