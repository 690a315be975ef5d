"""The part of the card on bounds: ELBO, its terms and IWAE-k."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.elbo.terms import Terms
from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, tensors_of
from pyro_vae.evaluation.chunking import split_examples
from pyro_vae.evaluation.methods.bounds import draw_in_pieces, group_bounds, scorer
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.capabilities import why_not

BELOW = "a lower bound: a poor q lowers it as a poor model does; the inference gaps tell them apart"


@dataclass(frozen=True, eq=False)
class Bounds:
    """ELBO, its terms and importance-weighted bounds from the same particles, each (B,), nats."""

    elbo: Tensor
    reconstruction: Tensor  # E log p(x|z)
    cross_entropy: Tensor  # −E log p(z)
    entropy: Tensor  # −E log q(z|x)
    iwae: dict[int, Tensor]  # k -> the bound of k particles

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) ‖ p(z)), sampled."""
        return self.cross_entropy - self.entropy


def bounds(subject: Subject, where: slice, seed: int) -> Bounds:
    """Return ELBO with its terms, and importance-weighted bounds."""
    options, plate = subject.options, subject.options.vectorize_particles
    particles, few = max(options.iwae), subject.x[:2]
    score = scorer(subject.program, few, 1, (1, 1), vectorize_particles=plate)  # of other sizes than those of L_K
    found: list[Bounds] = []
    for x in split_examples(subject.x[where], particles if plate else 1, options.draws_at_once):
        pieces = list(draw_in_pieces(score, x, particles, options.draws_at_once))
        log_weight = torch.cat([piece.log_weight for piece in pieces]).double()
        log_px_z, log_pz, log_qz = (_mean(pieces, name) for name in ("log_px_z", "log_pz", "log_qz"))
        iwae = {k: group_bounds(log_weight, k) for k in options.iwae}
        found.append(Bounds(log_weight.mean(0), log_px_z, -log_pz, -log_qz, iwae))
    return _joined(found)


def _mean(pieces: list[Terms], name: str) -> Tensor:
    whole: Tensor = torch.cat([getattr(piece, name) for piece in pieces])
    return whole.double().mean(0)


def _joined(parts: list[Bounds]) -> Bounds:
    return Bounds(
        torch.cat([part.elbo for part in parts]),
        torch.cat([part.reconstruction for part in parts]),
        torch.cat([part.cross_entropy for part in parts]),
        torch.cat([part.entropy for part in parts]),
        {k: torch.cat([part.iwae[k] for part in parts]) for k in parts[0].iwae},
    )


def bound_entries(subject: Subject, found: Bounds) -> list[Entry]:
    """Return ELBO, reconstruction, KL, IWAE-k, and bits per dimension."""
    particles = max(subject.options.iwae)
    drawn = f"{particles} particles per example"
    how = f"{drawn}; {subject.pixels}"
    entries = [
        mean_entry("elbo", "ELBO", found.elbo, NATS, how, BELOW),
        mean_entry("reconstruction", "E log p(x|z)", found.reconstruction, NATS, how),
        mean_entry("kl", "KL(q(z|x) ‖ p(z))", found.kl, NATS, drawn),
        mean_entry("cross_entropy", "  cross-entropy", found.cross_entropy, NATS, "−E log p(z), z ~ q(z|x)"),
        mean_entry("entropy", "  entropy of q", found.entropy, NATS, "−E log q(z|x)"),
    ]
    for k, values in found.iwae.items():
        number = particles // k
        groups = f"{number} {'group' if number == 1 else 'groups'} of {k} particles; {subject.pixels}"
        entries.append(mean_entry(f"iwae_{k}", f"IWAE-{k}", values, NATS, groups, BELOW))
    return [*entries, *bits_entries("elbo_bits", "ELBO", found.elbo, subject)]


def no_bits(subject: Subject) -> str:
    """Return why there are no bits per dimension; empty if there are."""
    return why_not(lambda: subject.dims)


def bits_entries(name: str, label: str, log_density: Tensor, subject: Subject) -> list[Entry]:
    r"""Return the entry of :math:`-\sum_n \log p_n / (\log 2 \sum_n D_n)`, bits per dimension; none without a D.

    Masked dimensions are not counted. The error is that of a ratio of means, from
    :math:`(b_n - r D_n) / \bar D` with b in bits and r the ratio; with one D for all it is that of the mean.

    Source: Cochran, Sampling Techniques, 3rd edition, section 2.11, 1977.
    """
    if no_bits(subject):
        return []
    dims, bits = subject.dims[: len(log_density)], -log_density.cpu().double() / math.log(2)
    ratio = bits.sum() / dims.sum()
    values = ratio + (bits - ratio * dims) / dims.mean()
    number = (
        f"{dims[0]:.0f} dims" if bool((dims == dims[0]).all()) else f"{dims.mean():.1f} dims not masked, on average"
    )
    if subject.discrete:
        return [mean_entry(name, label, values, "bits per dim", f"over {number}; {subject.pixels}")]
    how = f"over {number}, of a density at pixels {subject.pixels}"
    caveat = "a density at pixels that were not dequantized: no code length; compare only at the same scaling"
    return [mean_entry(name, label, values, "bits per dim", how, caveat)]


BOUNDS = Part(
    what="ELBO, its terms, IWAE-k",
    result=Bounds,
    count=lambda subject: subject.num_examples,
    chunk=lambda subject: 500,
    work=bounds,
    entries=bound_entries,
    options=("iwae", "draws_at_once"),
    omits=lambda subject: {"elbo_bits": no_bits(subject)},
    needs="bound",
    per_example=lambda found: tensors_of(found) | {f"iwae_{k}": values for k, values in found.iwae.items()},
)
