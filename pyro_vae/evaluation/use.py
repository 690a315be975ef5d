"""The part of the card that asks whether it is useful: reconstructions, samples, and a linear probe on labels."""

import torch

from pyro_vae.devices import generator
from pyro_vae.evaluation.card import NATS, Entry, over_data
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.resuming import Values
from pyro_vae.evaluation.subject import Subject
from pyro_vae.evaluation.surgery import elbo_parts
from pyro_vae.evaluation.usefulness import linear_probe, reconstruction_scores
from pyro_vae.predictive import sample_prior

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


def probe(subject: Subject, where: slice, seed: int) -> Values:
    """Whether each label was told right by a linear classifier on posterior means; accuracy, its error, chance."""
    train, labels = subject.train, subject.labels
    assert train is not None
    assert train.labels is not None
    assert labels is not None
    chosen = torch.randperm(len(train), generator=generator(torch.device("cpu"), seed))[: subject.options.probe_data]
    some = train.subset(chosen)
    assert some.labels is not None
    found = linear_probe(
        subject.program, (some.draw(seed), some.labels), (subject.x[where], labels[where]), max_train=None, seed=seed
    )
    figures = (found.accuracy.mean, found.accuracy.standard_error, found.chance, found.trained_on, found.converged)
    return {"probe": torch.tensor(figures, dtype=torch.float64)}


def probe_entries(subject: Subject, values: Values) -> list[Entry]:
    """Accuracy of the probe."""
    accuracy, error, chance, trained_on, converged = values["probe"].tolist()
    how = f"logistic regression on posterior means, {trained_on:.0f} training data; the commonest class: {chance:.3f}"
    trust = "says what a line can read off the means, not what the latents hold"
    stopped = "" if converged else "; the regression had not converged"
    return [Entry("probe", "linear probe", accuracy, error, "accuracy", len(subject), how, trust + stopped)]


def _labels(subject: Subject) -> str:
    if subject.labels is None:
        return "Expected held-out data with labels; got none"
    if subject.train is None or subject.train.labels is None:
        return (
            "Expected training data, with labels that mean the same, other than the data judged; got none. "
            "Try train=data.train"
        )
    return ""


PICTURES = Part(
    what="reconstructions and samples, scored",
    count=lambda subject: subject.options.num_data or len(subject),
    chunk=lambda subject: 1000,
    work=pictures,
    entries=picture_entries,
    per_datum=True,
)
PROBE = Part(
    what="a linear probe on posterior means",
    count=len,
    chunk=len,
    work=probe,
    entries=probe_entries,
    options=("probe_data",),
    takes_train=True,
    refuses=_labels,
)
