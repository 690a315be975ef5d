"""Particles: as many are sampled as were asked for, and none is a baseline for itself."""

import pytest
import torch
from checks import assert_mean
from toys import MAKE, Counted, discrete, gaussian, repeated, seeded

from pyro_vae import elbo

SAMPLED = {"miwae": 6, "miwae_dreg": 6, "piwae": 6, "piwae_dreg": 6, "ovis_mc": 5, "rebar": 9}  # K M, K + S, 3 K


@pytest.mark.parametrize("name", MAKE)
def test_as_many_particles_are_sampled_as_were_asked_for(name):
    """pythae's ``get_nll(n_samples=10, batch_size=100)`` samples 100."""
    program, x = gaussian(4, off=0.4), repeated(4)
    estimator, count = MAKE[name](), SAMPLED.get(name, 3)
    for way in (estimator.loss, estimator.loss_and_grads, estimator.differentiable_loss):
        counted = Counted()
        guide = counted(program.guide)
        way(program.model, guide, x)
        counted.values.clear()  # of the trial of particles, at the first use
        way(program.model, guide, x)
        assert counted.values[0].shape == (count, 4)
        of_its_own = 3 if name == "rebar" else count  # its relaxed particles share what no Bernoulli latent precedes
        assert counted.values[0].unique().numel() == of_its_own * 4
        sleep_phase = name in ("wake_sleep", "rws", "rws_dreg") and way != estimator.loss
        assert len(counted.values) == 1 + sleep_phase  # a guide of one latent runs once
    assert estimator.total_particles == count
    if estimator.kl_weightable:
        assert elbo.Weighted(estimator, beta=0.5).total_particles == count


def test_a_phase_of_no_weight_is_not_run():
    program, counted = gaussian(4, off=0.4), Counted()
    guide = counted(program.guide)
    elbo.RWS(3).loss_and_grads(program.model, guide, repeated(4))
    counted.values.clear()  # of the trial of particles, at the first use
    elbo.RWS(3).loss_and_grads(program.model, guide, repeated(4))
    assert len(counted.values) == 1


def test_particles_are_not_a_baseline_for_themselves():
    """A single partition of the TVO centres by the mean of all particles: half the gradient without K/(K − 1)."""
    batch = 100_000
    program, x = discrete(batch), repeated(batch)

    def gradient(estimator):
        loss = seeded(estimator.differentiable_loss, program.model, program.guide, x)
        return -torch.autograd.grad(loss, program.phi)[0]

    log_joint, log_q = program.log_table(x[:1])
    bound = (log_q.exp() * (log_joint - log_q)).sum()
    exact = torch.autograd.grad(bound, program.phi)[0][0]
    assert_mean(gradient(elbo.TVO(2, partitions=1)), exact)
    assert_mean(gradient(elbo.Reinforce(2)), exact)
