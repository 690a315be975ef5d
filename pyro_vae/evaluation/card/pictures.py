"""The part of the card that scores reconstructions and samples."""

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.elbo_decomposition import elbo_parts
from pyro_vae.evaluation.methods.probe import reconstruction_scores
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject
from pyro_vae.program.predictive import sample_prior

DRAWS = 10


def pictures(subject: Subject, where: slice, seed: int) -> Values:
    """Squared error of reconstructions, and the ELBO of as many samples of the model, (B,) each."""
    x = subject.x[where]
    scores = reconstruction_scores(subject.program, x, DRAWS, seed)
    samples = sample_prior(subject.program, x).draw.to(x)
    own = elbo_parts(subject.program, samples, DRAWS, seed + 1).elbo
    return {"squared_error": scores.squared_error, "sample_elbo": own}


def picture_entries(subject: Subject, values: Values) -> list[Entry]:
    """Reconstructions and samples, scored."""
    trust = (
        "compare with the ELBO of held-out data: far above it, samples are simpler than data; far below, stranger; "
        "it does not see whether samples vary as data do"
    )
    how = f"(x − E[x|z])², mean over pixels and {DRAWS} draws; {subject.pixels}"
    return [
        over_data("squared_error", "squared error of reconstructions", values["squared_error"], "per pixel", how),
        over_data("sample_elbo", "ELBO of the model's samples", values["sample_elbo"], NATS, "samples x ~ p(x)", trust),
    ]


PICTURES = Part(
    what="reconstructions and samples, scored",
    count=lambda subject: subject.options.num_data or len(subject),
    chunk=lambda subject: 1000,
    work=pictures,
    entries=picture_entries,
    per_datum=True,
)
