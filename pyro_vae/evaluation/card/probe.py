"""The part of the card on the linear probe."""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_vae.base.random import generator
from pyro_vae.data import Images
from pyro_vae.evaluation.card.entry import Entry
from pyro_vae.evaluation.card.part import Part, several
from pyro_vae.evaluation.methods.probe import Probe, linear_probe
from pyro_vae.evaluation.subject import Subject


def probe(subject: Subject, where: slice, seed: int) -> Probe:
    """Score a linear classifier of labels on posterior means."""
    train, labels = _labelled(subject.train), subject.labels
    assert labels is not None
    chosen = torch.randperm(len(train[0]), generator=generator(torch.device("cpu"), seed))
    some = train[0].subset(chosen[: subject.options.probe_examples])
    x, y = some.binarized(seed), _labelled(some)[1]
    test, plate = (subject.alone[where], labels[where]), subject.options.vectorize_particles
    return linear_probe(subject.program, (x, y), test, max_train=None, seed=seed, vectorize_particles=plate)


def probe_entries(subject: Subject, found: Probe) -> list[Entry]:
    """Return the accuracy of the probe."""
    sampled = len(subject.latents) > 1 or bool(subject.capabilities.no_posterior_mean)
    means = "posterior means, of particles where q has none in closed form" if sampled else "posterior means"
    how = (
        f"logistic regression on {means}, {found.trained_on} training examples; most frequent class: {found.chance:.3f}"
    )
    caveat = "what a linear classifier reads from the means, not what the latents contain"
    stopped = "" if found.converged else "; the regression did not converge"
    accuracy = replace(found.accuracy, count=len(subject))
    return [Entry("probe", "linear probe", accuracy, "accuracy", how, caveat + stopped)]


def _labelled(images: Images | None) -> tuple[Images, Tensor]:
    assert images is not None
    assert images.labels is not None
    return images, images.labels


def _labels(subject: Subject) -> str:
    if several(subject):
        return several(subject)
    if subject.labels is None:
        return "Expected held-out examples with labels; got none"
    if subject.train is None or subject.train.labels is None:
        return (
            "Expected training data with labels of the same meaning, other than the held-out examples; got none. "
            "Try train=data.train"
        )
    return ""


PROBE = Part(
    what="a linear probe on posterior means",
    result=Probe,
    count=len,
    chunk=len,
    work=probe,
    entries=probe_entries,
    options=("probe_examples",),
    takes_train=True,
    refuses=_labels,
)
