"""Usefulness: a linear probe on posterior means, and the error of reconstructions."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.base.batch import Batch, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import generator
from pyro_vae.base.statistics import Estimate, estimate
from pyro_vae.elbo.draw import Draw, draw_particles
from pyro_vae.elbo.terms import Run
from pyro_vae.evaluation.chunking import example_chunks, particle_chunks
from pyro_vae.evaluation.methods.latent_usage import posterior_mean
from pyro_vae.program.capabilities import mean_of, site_of_x
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import sample_sites

MAX_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class Probe:
    """The accuracy of a linear classifier of labels on posterior means.

    ``accuracy`` is the share of test examples classified correctly, with its standard error over them; ``chance`` the
    share of the most frequent test label; ``features`` the number of features; ``trained_on`` the number of training
    examples; ``converged`` whether the fit converged within 1000 iterations.
    """

    accuracy: Estimate
    chance: float
    features: int
    trained_on: int
    converged: bool


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The error of reconstructions, per example, (B,); means over samples of z from q(z|x).

    ``squared_error``: (x − E[x|z])², mean over the event's dimensions, in squared units of x.
    ``log_likelihood``: log p(x|z) in nats, sum over all dimensions.
    ``cross_entropy``: −log p(x|z), nats, for binary x; None for other likelihoods.
    """

    squared_error: Tensor
    log_likelihood: Tensor
    cross_entropy: Tensor | None


@torch.no_grad()
def latent_features(
    program: Program, x: Batch, num_particles: int = 10, seed: int = 0, *, vectorize_particles: bool = True
) -> Tensor:
    """Return the posterior means of all latents, concatenated, (B, D), float64.

    The mean is in closed form for the guide's first site, if its distribution has one; otherwise that of K particles.

    Raises:
        InputError: a categorical latent, whose class numbers have no mean.

    Example:
        >>> from pyro_vae import VAE
        >>> latent_features(VAE((4,), latent_dim=2), torch.ones(10, 4)).shape
        torch.Size([10, 2])
    """
    with evaluating(program, x.device, seed):
        chunks = example_chunks(x, num_particles)
        features = torch.cat([_features(program, part, num_particles, vectorize_particles) for part in chunks])
    if features.isnan().any():
        raise InputError("latents with a mean", "a Categorical, of class numbers, or NaN", "OneHotCategorical")
    return features


def linear_probe(
    program: Program,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    max_train: int | None = 10_000,
    num_particles: int = 10,
    seed: int = 0,
    *,
    vectorize_particles: bool = True,
) -> Probe:
    """Fit a logistic regression from posterior means to labels on one split and score it on another.

    Features are standardised by the training split; the penalty is scikit-learn's default. The standard error of the
    accuracy is over test examples: it does not include the variation between training sets.

    Args:
        program: the program.
        train: examples (N, *event_shape) and labels (N,), whole numbers.
        test: likewise; examples that neither the classifier nor the program was trained on.
        max_train: the largest number of training examples, a random subset fixed by the seed; None takes all.
        num_particles: K, where the means must be sampled.
        seed: fixes noise and subset.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Raises:
        InputError: examples and labels of different lengths, fewer than two classes.

    Example:
        >>> from pyro_vae import VAE
        >>> x, labels = torch.bernoulli(torch.full((40, 4), 0.5)), torch.arange(40) % 2
        >>> probe = linear_probe(VAE((4,), latent_dim=2), (x[:20], labels[:20]), (x[20:], labels[20:]))
        >>> probe.chance, probe.features, probe.accuracy.count
        (0.5, 2, 20)
    """
    for x, labels in (train, test):
        if labels.shape != x.shape[:1]:
            raise InputError(
                f"a label for each of {len(x)} examples", f"labels of shape {tuple(labels.shape)}", "labels (N,)"
            )
    x, labels = _subsample(*train, max_train, seed)
    if len(labels.unique()) < 2:
        raise InputError("labels of at least two classes", labels.unique().tolist(), "a larger max_train")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    features = latent_features(program, x, num_particles, seed, vectorize_particles=vectorize_particles).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as a field
        classifier.fit(features, labels.cpu().numpy())
    tested = latent_features(program, test[0], num_particles, seed, vectorize_particles=vectorize_particles)
    predicted = classifier.predict(tested.cpu().numpy())
    truth = test[1].cpu()
    return Probe(
        estimate((torch.from_numpy(predicted) == truth).double()),
        truth.unique(return_counts=True)[1].max().item() / len(truth),
        features.shape[1],
        len(labels),
        bool((classifier[-1].n_iter_ < MAX_ITERATIONS).all()),
    )


@torch.no_grad()
def reconstruction_scores(
    program: Program, x: Batch, num_particles: int = 10, seed: int = 0, *, vectorize_particles: bool = True
) -> Reconstruction:
    """Score reconstructions: z from q(z|x), then p(x|z) against x.

    Args:
        program: the program.
        x: examples, (B, *event_shape).
        num_particles: K samples of z per example.
        seed: fixes the noise.
        vectorize_particles: particles in a plate; False: in runs one by one.

    Raises:
        InputError: no observed site holds x, or its distribution has no mean.

    Example:
        >>> from pyro_vae import VAE
        >>> scores = reconstruction_scores(VAE((4,), latent_dim=2), torch.ones(10, 4))
        >>> scores.squared_error.shape, bool((scores.cross_entropy == -scores.log_likelihood).all())
        (torch.Size([10]), True)
    """
    with evaluating(program, x.device, seed):
        chunks = example_chunks(x, num_particles)
        parts = [_scores(program, part, num_particles, vectorize_particles) for part in chunks]
    squared_error = torch.cat([squares for squares, _, _ in parts])
    log_likelihood = torch.cat([log_px_z for _, log_px_z, _ in parts])
    return Reconstruction(squared_error, log_likelihood, -log_likelihood if parts[0][2] else None)


def _features(program: Program, x: Batch, num_particles: int, plate: bool) -> Tensor:
    draw = draw_particles(program, x, num_particles, vectorize_particles=plate)
    sites = [site for _, site in sample_sites(draw.runs[0].guide_trace)]
    means = [posterior_mean(draw, site, i == 0)[0].reshape(len(x), -1) for i, site in enumerate(sites)]
    return torch.cat(means, -1)


def _subsample(x: Tensor, labels: Tensor, most: int | None, seed: int) -> tuple[Tensor, Tensor]:
    if most is None or most >= len(x):
        return x, labels
    chosen = torch.randperm(len(x), generator=generator(torch.device("cpu"), seed))[:most]
    return x[chosen.to(x.device)], labels[chosen.to(labels.device)]


def _scores(program: Program, batch: Batch, num_particles: int, plate: bool) -> tuple[Tensor, Tensor, bool]:
    x = tensors_of(batch)[0]
    squared_error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    log_likelihood, binary = torch.zeros_like(squared_error), True
    for draw, run in _runs(program, batch, num_particles, plate):
        site = dict(sample_sites(run.model_trace))[site_of_x(run.model_trace, x)]
        log_px_z = draw.total([site])  # of the particles of the run
        mean = mean_of(site).expand(len(log_px_z), *site["value"].shape).reshape(len(log_px_z), *x.shape)
        squares = (mean - x).square().double()
        squared_error += squares.flatten(2).mean(2).sum(0) if x.ndim > 1 else squares.sum(0)
        log_likelihood += log_px_z.double().sum(0)
        binary &= _is_binary(site["fn"])
    return squared_error / num_particles, log_likelihood / num_particles, binary


def _runs(program: Program, x: Batch, num_particles: int, plate: bool) -> Iterator[tuple[Draw, Run]]:
    """Yield every run, each with its draw."""
    for count in particle_chunks(num_particles):
        draw = draw_particles(program, x, count, vectorize_particles=plate)
        yield from ((draw, run) for run in draw.runs)


def _is_binary(fn: Distribution) -> bool:
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.boolean
