"""The part of the card that scores reconstructions and samples."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, tensors_of
from pyro_vae.evaluation.methods.elbo_decomposition import elbo_parts
from pyro_vae.evaluation.methods.probe import reconstruction_scores
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.predictive import sample_prior

PARTICLES = 10


@dataclass(frozen=True, eq=False)
class PictureScores:
    """Squared error of reconstructions, and the ELBO of as many samples of the model, each (B,)."""

    squared_error: Tensor
    sample_elbo: Tensor


def pictures(subject: Subject, where: slice, seed: int) -> PictureScores:
    """Score reconstructions and samples."""
    x = subject.x[where]
    scores = reconstruction_scores(subject.program, x, PARTICLES, seed)
    samples = sample_prior(subject.program, x).sample.to(x)
    return PictureScores(scores.squared_error, elbo_parts(subject.program, samples, PARTICLES, seed + 1).elbo)


def picture_entries(subject: Subject, found: PictureScores) -> list[Entry]:
    """Return the scores of reconstructions and samples."""
    caveat = (
        "compare with the ELBO of held-out examples: samples far above it are simpler than the data, far below it "
        "less plausible; it is blind to whether samples vary as the data do"
    )
    how = f"(x − E[x|z])², mean over pixels and {PARTICLES} particles; {subject.pixels}"
    own = "samples x ~ p(x)"
    return [
        mean_entry("squared_error", "squared error of reconstructions", found.squared_error, "per pixel", how),
        mean_entry("sample_elbo", "ELBO of the model's samples", found.sample_elbo, NATS, own, caveat),
    ]


PICTURES = Part(
    what="reconstructions and samples, scored",
    result=PictureScores,
    count=lambda subject: subject.num_examples,
    chunk=lambda subject: 1000,
    work=pictures,
    entries=picture_entries,
    per_example=tensors_of,
)
