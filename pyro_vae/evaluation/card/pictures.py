"""The part of the card that scores reconstructions and samples."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry
from pyro_vae.evaluation.card.part import Part, several, tensors_of
from pyro_vae.evaluation.methods.elbo_decomposition import elbo_parts
from pyro_vae.evaluation.methods.probe import reconstruction_scores
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.predictive import sample_prior

PARTICLES = 10


@dataclass(frozen=True, eq=False)
class PictureScores:
    """Squared error of reconstructions, and the ELBO of as many samples of the model, each (B,); None: left out."""

    squared_error: Tensor | None
    sample_elbo: Tensor | None


def pictures(subject: Subject, where: slice, seed: int) -> PictureScores:
    """Score reconstructions and samples."""
    x, omitted = subject.x[where], omitted_scores(subject)
    squared_error = sample_elbo = None
    plate = subject.options.vectorize_particles
    if not omitted["squared_error"]:
        scores = reconstruction_scores(subject.program, x, PARTICLES, seed, vectorize_particles=plate)
        squared_error = scores.squared_error
    if not omitted["sample_elbo"]:
        like = subject.alone[where]
        samples = sample_prior(subject.program, like).sample.to(like)
        sample_elbo = elbo_parts(subject.program, samples, PARTICLES, seed + 1, vectorize_particles=plate).elbo
    return PictureScores(squared_error, sample_elbo)


def picture_entries(subject: Subject, found: PictureScores) -> list[Entry]:
    """Return the scores of reconstructions and samples."""
    caveat = (
        "compare with the ELBO of held-out examples: samples far above it are simpler than the data, far below it "
        "less plausible; it is blind to whether samples vary as the data do"
    )
    how = f"(x − E[x|z])², mean over pixels and {PARTICLES} particles; {subject.pixels}"
    own = "samples x ~ p(x)"
    entries = []
    if found.squared_error is not None:
        label = "squared error of reconstructions"
        entries.append(mean_entry("squared_error", label, found.squared_error, "per pixel", how))
    if found.sample_elbo is not None:
        entries.append(mean_entry("sample_elbo", "ELBO of the model's samples", found.sample_elbo, NATS, own, caveat))
    return entries


def omitted_scores(subject: Subject) -> dict[str, str]:
    """Return why there is no score of reconstructions, and none of samples; empty where there is one."""
    found = subject.capabilities
    return {
        "squared_error": found.no_decoding or found.no_likelihood_mean,
        "sample_elbo": several(subject) or found.no_x or found.no_simulation,
    }


def _no_score(subject: Subject) -> str:
    omitted = omitted_scores(subject)
    return omitted["squared_error"] if all(omitted.values()) else ""


PICTURES = Part(
    what="reconstructions and samples, scored",
    result=PictureScores,
    count=lambda subject: subject.num_examples,
    chunk=lambda subject: 1000,
    work=pictures,
    entries=picture_entries,
    refuses=_no_score,
    omits=omitted_scores,
    per_example=tensors_of,
)
