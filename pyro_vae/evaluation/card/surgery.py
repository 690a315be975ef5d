"""The part of the card on ELBO surgery."""

import math

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.elbo_decomposition import SATURATED, elbo_surgery
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


def surgery(subject: Subject, where: slice, seed: int) -> Values:
    """Mutual information and marginal KL, each (B,): the KL of these data in two."""
    found = elbo_surgery(subject.program, subject.x[where], seed=seed)
    return {"mutual_information": found.mutual_information, "marginal_kl": found.marginal_kl}


def surgery_entries(subject: Subject, values: Values) -> list[Entry]:
    """How much a code tells of its datum, and how far all codes together are from the prior."""
    information, marginal = values["mutual_information"], values["marginal_kl"]
    limit, n = math.log(len(information)), len(information)
    how = f"q(z) the mixture over these {n} data, 1 code each"
    trust = f"the information cannot exceed log {n} = {limit:.2f} nats"
    if limit - information.mean().item() < SATURATED:
        trust += (
            " and is there: it speaks of the number of data and not of the program, "
            "and what it lacks stands in the marginal KL; more surgery_data move both"
        )
    return [
        over_data("mutual_information", "mutual information of x and z", information, NATS, how, trust),
        over_data("marginal_kl", "marginal KL(q(z) ‖ p(z))", marginal, NATS, how, trust),
    ]


SURGERY = Part(
    what="mutual information of x and z, KL of the aggregate posterior to the prior",
    count=lambda subject: subject.options.surgery_data,
    chunk=lambda subject: subject.options.surgery_data,
    work=surgery,
    entries=surgery_entries,
    per_datum=True,
)
