"""The part of the card on programs whose examples share a latent: one bound and one log p of all examples jointly."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.card.bounds import BELOW
from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.card.importance import K_HAT_LIMITS
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.chunking import particle_pieces
from pyro_vae.evaluation.methods.log_evidence import LogEvidence
from pyro_vae.evaluation.methods.psis import effective_sample_size, pareto_k
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.tracing import sample_sites, trace_program

NATS_JOINTLY = "nats, all examples jointly"


@dataclass(frozen=True, eq=False)
class JointWeights:
    """Log w of every particle, (K,), nats: the product over all examples, latents that they share counted once."""

    log_weight: Tensor


def joint_weights(subject: Subject, where: slice, seed: int) -> JointWeights:
    """Sample K particles of all latents for all examples at once.

    Raises:
        InputError: a site with a scale, which would count examples that are not there.
    """
    x, options = subject.x[where], subject.options
    sites = [pair for trace in trace_program(subject.program, x) for pair in sample_sites(trace)]
    scaled = [name for name, site in sites if not bool(torch.as_tensor(site["scale"] == 1).all())]
    if scaled:
        hint = "plate sizes of len(x), no subsample_size, no poutine.scale"
        raise InputError("sites without a scale, for log p of these examples", f"one at {scaled[0]!r}", hint)
    found = []
    for count in particle_pieces(options.num_particles, len(x), options.draws_at_once):
        terms = draw_terms(subject.program, x, count, vectorize_particles=options.vectorize_particles)
        found.append(terms.log_weight.double().sum(1))
    return JointWeights(torch.cat(found))


def joint_entries(subject: Subject, found: JointWeights) -> list[Entry]:
    """Return ELBO and log p of all examples jointly, with effective sample size and k-hat of the joint weights."""
    k, count = len(found.log_weight), subject.num_examples
    weights = found.log_weight.unsqueeze(1)
    evidence, k_hat = LogEvidence.of_weights(weights), pareto_k(weights).item()
    elbo, ess = estimate(found.log_weight), effective_sample_size(weights).item()
    one = f"one number for {count} examples; {k} particles of all latents; {subject.pixels}"
    how, drawn = (
        f"L_{k}, latents that the examples share in the joint importance weights; {one}",
        f"of {k} joint weights",
    )
    caveat = (
        f"L_K is a lower bound, too; k-hat is {k_hat:.2f}, and above {K_HAT_LIMITS[-1]} it is too low by an unknown "
        "amount. Shared latents are integrated out under their prior; q of them was fitted to the training data"
    )
    log_p = Estimate(evidence.value.item(), evidence.standard_error.item(), count)
    return [
        Entry("joint_elbo", "ELBO of the data", replace(elbo, count=count), NATS_JOINTLY, one, BELOW),
        Entry("joint_log_evidence", "log p(data)", log_p, NATS_JOINTLY, how, caveat),
        Entry("joint_ess", "effective sample size", Estimate(ess, count=count), f"of {k}", drawn),
        Entry("joint_k_hat", "k-hat", Estimate(k_hat, count=count), "shape", f"PSIS {drawn}"),
    ]


def _each(subject: Subject) -> str:
    if subject.lacks["bound"]:
        return ""
    return (
        "Expected a latent that the examples share, for one bound of all jointly; got a plate of the examples around "
        "every site. Try bounds and importance, which are of each example"
    )


JOINT = Part(
    what="ELBO and log p of all examples jointly, where they share a latent",
    result=JointWeights,
    count=lambda subject: subject.num_examples,
    chunk=lambda subject: subject.num_examples,
    work=joint_weights,
    entries=joint_entries,
    options=("num_particles", "draws_at_once"),
    refuses=_each,
    needs="training",
    concerns=lambda subject: bool(subject.lacks["bound"]),
)
