"""Linear probes and reconstructions, on programs with known latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from toys import NOISE, Module, TwoUnits, discrete, hierarchy, scalar_gaussian

from pyro_vae import VAE, InputError
from pyro_vae.evaluation.methods import probe as usefulness
from pyro_vae.evaluation.methods.probe import latent_features, linear_probe, reconstruction_scores


def separated(number, seed=0):
    """Examples of two classes, ± 3, which the first unit's mean separates."""
    labels = torch.arange(number) % 2
    noise = torch.randn(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 6.0 * labels - 3.0 + 0.1 * noise, labels


def test_features_are_posterior_means(device):
    x = torch.linspace(-1, 1, 7, dtype=torch.float64, device=device)
    assert_close(latent_features(TwoUnits(), x), torch.stack([0.5 * x, 0 * x], -1))
    assert latent_features(Module(hierarchy(1)), x.cpu()).shape == (7, 2)
    sampled = latent_features(TwoUnits(sampled=True), torch.ones(500, dtype=torch.float64), num_particles=4)
    assert_mean(sampled, torch.tensor([0.5, 0.0]))


def test_a_probe_separates_classes_that_the_latents_separate(device):
    train, test = ([part.to(device) for part in separated(n, seed)] for n, seed in ((100, 0), (60, 1)))
    probe = linear_probe(TwoUnits(), tuple(train), tuple(test))
    assert probe.accuracy.value == 1.0
    assert (probe.chance, probe.features, probe.trained_on, probe.converged) == (0.5, 2, 100, True)


def test_a_probe_of_latents_that_ignore_the_data_is_at_chance():
    x, labels = separated(400)
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(3))]
    probe = linear_probe(TwoUnits(), (x[:200], shuffled[:200]), (x[200:], shuffled[200:]))
    assert abs(probe.accuracy.value - 0.5) < 5 * probe.accuracy.standard_error
    share = probe.accuracy.value
    assert abs(probe.accuracy.standard_error - math.sqrt(share * (1 - share) / 199)) < 1e-12


def test_the_test_split_is_what_is_scored():
    x, labels = separated(100)
    probe = linear_probe(TwoUnits(), (x, labels), (x[:30], 1 - labels[:30]))
    assert probe.accuracy.value == 0.0
    assert probe.accuracy.count == 30


def test_a_subsample_of_the_training_data_is_fixed_by_the_seed(monkeypatch):
    x, labels = separated(200)
    assert linear_probe(TwoUnits(), (x, labels), (x, labels), max_train=50).trained_on == 50
    chosen = [usefulness._subsample(x, labels, 50, seed) for seed in (0, 0, 1)]
    assert torch.equal(chosen[0][0], chosen[1][0])
    assert not torch.equal(chosen[0][0], chosen[2][0])
    assert ((chosen[0][0] > 0) == chosen[0][1]).all()  # data and labels stay together
    monkeypatch.setattr(usefulness, "MAX_ITERATIONS", 1)
    assert not linear_probe(TwoUnits(), (x, labels), (x, labels)).converged


def test_what_is_refused():
    x, labels = separated(20)
    with pytest.raises(InputError, match="a label for each of 20 examples"):
        linear_probe(TwoUnits(), (x, labels[:5]), (x, labels))
    with pytest.raises(InputError, match="at least two classes"):
        linear_probe(TwoUnits(), (x, 0 * labels), (x, labels))
    with pytest.raises(InputError, match="latents with a mean"):
        latent_features(Module(discrete(1)), x)


def test_reconstructions_of_a_gaussian_program():
    program, x = scalar_gaussian(off=0.2), torch.full((2000,), 0.7, dtype=torch.float64)
    toy = program.toy
    mean, scale = toy.a * 0.7 + toy.m, toy.r.exp()
    squared_error = (0.7 - toy.theta * mean) ** 2 + toy.theta**2 * scale**2
    scores = reconstruction_scores(program, x, num_particles=3)
    assert_mean(scores.squared_error, squared_error)
    assert_close(scores.log_likelihood, -0.5 * math.log(2 * math.pi * NOISE**2) - 0.5 * scores.squared_error / NOISE**2)
    assert scores.cross_entropy is None


class Coins(VAE):
    """Every pixel is white with probability 0.8, whatever the latent."""

    def decode(self, z):
        return dist.Bernoulli(0.8).expand([*z.shape[:-1], 2, 3]).to_event(2)


def test_reconstructions_of_binary_data(device):
    vae = Coins((2, 3), latent_dim=2).to(device)
    x = torch.zeros(120, 2, 3, device=device)
    x[1] = 1.0
    scores = reconstruction_scores(vae, x, num_particles=120)
    assert_close(scores.squared_error[:2].cpu(), torch.tensor([0.64, 0.04]).double(), 1e-6)
    expected = -6 * torch.tensor([math.log(0.2), math.log(0.8)]).double()
    assert_close(scores.cross_entropy[:2].cpu(), expected, 1e-6)
    assert_close(scores.log_likelihood, -scores.cross_entropy)


def test_scores_of_images_are_per_example():
    """A decoder that copies its latent, and a guide that copies x: nothing is lost."""

    class Copy(TwoUnits):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.standard(2, x))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Delta(x, event_dim=1))

    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert reconstruction_scores(Copy(), x).squared_error.max() == 0
