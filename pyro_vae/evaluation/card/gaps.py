"""The part of the card on inference gaps."""

import torch

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import Part, continuous_only
from pyro_vae.evaluation.methods.inference_gaps import FAMILIES, inference_gaps
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


def gaps(subject: Subject, where: slice, seed: int) -> Values:
    """Approximation and amortization gap, (B,), for each family of local q; log p(x) from the richest one's weights."""
    x = subject.x[where]
    found = {
        family: inference_gaps(
            subject.program, x, torch.zeros(len(x)), family, max_steps=subject.options.gap_steps, seed=seed
        )
        for family in FAMILIES
    }
    values: Values = {"local_evidence": found["flow"].local_evidence}
    for family, of_family in found.items():
        values[f"approximation_{family}"] = values["local_evidence"] - of_family.local_elbo
        values[f"amortization_{family}"] = of_family.amortization
        values[f"converged_{family}"] = of_family.converged
    return values


def gap_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) from local flows, and log p(x) − ELBO in two, for each family."""
    how = f"1000 draws of a flow fitted to every datum; {subject.pixels}"
    entries = [over_data("local_evidence", "log p(x), local q", values["local_evidence"], NATS, how, LOCAL_TRUST)]
    trust = (
        "log p(x) is that of the local flow: where it is too low so is the approximation gap; "
        "where the optimisation falls short it is too large, and the amortization gap too small"
    )
    for family in FAMILIES:
        stopped = int((~values[f"converged_{family}"]).sum())
        more = f"; {stopped} data stopped after {subject.options.gap_steps} steps" if stopped else ""
        for kind, of in (("approximation", "what the family cannot do"), ("amortization", "what the encoder does not")):
            label, how = f"{kind} gap, {family} q", f"a local {family} q for every datum: {of}{more}"
            entries.append(over_data(f"{kind}_{family}", label, values[f"{kind}_{family}"], NATS, how, trust))
    return entries


GAPS = Part(
    what="approximation and amortization gap, by a local q for every datum",
    count=lambda subject: subject.options.gap_data,
    chunk=lambda subject: 50,
    work=gaps,
    entries=gap_entries,
    options=("gap_steps",),
    per_datum=True,
    refuses=continuous_only,
)


LOCAL_TRUST = "from below, and nearer than L_K where the guide's q is poor; too low where the flow misses modes"
