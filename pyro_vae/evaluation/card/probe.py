"""The part of the card on the linear probe."""

import torch

from pyro_vae.base.random import generator
from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.card.part import Part
from pyro_vae.evaluation.methods.probe import linear_probe
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject


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
    figures = (found.accuracy.value, found.accuracy.standard_error, found.chance, found.trained_on, found.converged)
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
