"""Estimators as Pyro's ``ELBO``: loss, gradient, ``ELBOModule``, and what each of them needs."""

import copy
import math
import warnings

import pyro
import pytest
import torch
from checks import assert_close
from pyro.infer import SVI, JitTrace_ELBO
from toys import (
    MAKE,
    SAMPLED,
    binary,
    discrete,
    gaussian,
    repeated,
    seeded,
    small_vae,
)

from pyro_vae import elbo
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.program.contexts import own_store


@pytest.mark.parametrize("name", ["sampled_kl", "iwae", "dreg", "vimco"])
def test_one_torch_optimizer_takes_the_same_steps(name):
    """Pyro makes an optimiser for each tensor; ``ELBOModule`` with one torch optimiser is what it recommends now."""
    vae, x = small_vae(), binary()
    other = copy.deepcopy(vae)
    with own_store(vae):
        optimizer = pyro.optim.Adam({"lr": 0.01})
        svi = SVI(vae.model, vae.guide, optimizer, loss=MAKE[name]())
        seeded(lambda: [svi.step(x) for _ in range(3)])
        assert len(optimizer.optim_objs) == len([*vae.parameters()])
    with own_store(other):
        loss = MAKE[name]()(other.model, other.guide)
        one = torch.optim.Adam(other.parameters(), lr=0.01)

        def step():
            one.zero_grad()
            loss(x).backward()
            one.step()

        seeded(lambda: [step() for _ in range(3)])
    for mine, theirs in zip(other.parameters(), vae.parameters(), strict=True):
        assert_close(mine.detach(), theirs.detach())


def test_no_twin_is_needed_and_no_warning_given():
    """Pyro has a ``Jit`` twin of each ELBO; TorchScript is deprecated and warns in every run."""
    vae, x = small_vae(), binary()
    with own_store(vae), pytest.warns((DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning)):
        JitTrace_ELBO(ignore_jit_warnings=False).differentiable_loss(vae.model, vae.guide, x)
    with own_store(vae), warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in MAKE.values():
            make().loss_and_grads(vae.model, vae.guide, x)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_value_needs_no_gradient(name):
    """Evaluating builds no graph, so that a guide without reparameterization can be judged by any bound."""
    program, x, seen = discrete(4), repeated(4), []

    def model(x):
        seen.append(torch.is_grad_enabled())
        program.model(x)

    assert math.isfinite(MAKE[name]().loss(model, program.guide, x))
    assert not any(seen)
    seen.clear()  # of the trial of particles, at the first use
    assert math.isfinite(MAKE[name]().loss(model, program.guide, x))
    assert seen == [False]
    continuous = gaussian(4, off=0.4)
    estimator = MAKE[name]()
    assert not estimator.value(estimator.draw(continuous.model, continuous.guide, (x,), {})).requires_grad


def test_weighted_and_evaluated_terms_need_none_either():
    program, x = discrete(4), repeated(4)
    assert math.isfinite(elbo.Weighted(elbo.IWAE(3), beta=0.5).loss(program.model, program.guide, x))
    terms = draw_terms(program, x, num_particles=3)
    assert not any(t.requires_grad for t in (terms.log_px_z, terms.log_pz, terms.log_qz))


@pytest.mark.parametrize("name", MAKE)
def test_a_program_without_parameters_has_a_loss(name):
    program = gaussian(4, off=0.4)
    for field in ("theta", "a", "m", "r"):
        setattr(program, field, getattr(program, field).detach())
    estimator = MAKE[name]()
    found = seeded(estimator.loss_and_grads, program.model, program.guide, repeated(4))
    assert found == pytest.approx(seeded(estimator.loss, program.model, program.guide, repeated(4)), rel=1e-12)
