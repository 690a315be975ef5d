"""Subsamples and scales: one subsample for model and guide, one scale for all sites."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from toys import MAKE, NOISE, SAMPLED, gaussian, hierarchy, repeated, seeded, subsampled, values

from pyro_vae import InputError, elbo


@pytest.mark.parametrize("name", SAMPLED)
def test_guide_and_model_draw_the_same_subsample(name):
    """A plate that draws its subsample: latents of some examples must not be scored against other examples.

    Pyro issue 3171: distributed training draws the same subsample on every rank. Nothing here is distributed; what can
    go wrong in one process is a guide and a model that draw different subsamples.
    """
    _, model, guide, seen = subsampled(40)
    x = torch.linspace(-50, 50, 40, dtype=torch.float64)
    estimator = MAKE[name]()
    if name in ("wake_sleep", "rws", "rws_dreg"):  # a sleep-phase sample is a batch; it cannot be subsampled again
        for _ in range(2):
            seen.clear()  # of the trials at the first use
            with pytest.raises(InputError, match="observed values that are arguments of model and guide, for the slee"):
                estimator.loss_and_grads(model, guide, x)
        seen = seen[:2]
    else:
        estimator.loss_and_grads(model, guide, x)
        seen.clear()  # of the trials at the first use
        estimator.loss_and_grads(model, guide, x)
    assert len(seen) >= 2
    assert all(index == seen[0] for index in seen)
    again = seeded(estimator.loss, model, guide, x)
    if name == "sampled_kl":
        pyros = Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)
        assert again == pytest.approx(seeded(pyros.loss, model, guide, x), rel=1e-12)


@pytest.mark.parametrize("name", ["stl", "dreg", "piwae"])
def test_every_run_has_the_same_subsample(name):
    """Whether particles share a run or have one each: a log of a mean over other examples would mean nothing."""
    program, seen = hierarchy(4), []

    def model(x):
        with pyro.plate("data", 40, subsample_size=4, dim=-1) as index:
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0))
            z2 = pyro.sample("z2", dist.Normal(program.theta * z1, 1.0))
            pyro.sample("x", dist.Normal(z2, NOISE), obs=x[index])

    def guide(x):
        with pyro.plate("data", 40, subsample_size=4, dim=-1) as index:
            seen.append(index.tolist())
            z2 = pyro.sample("z2", dist.Normal(program.a * x[index] + program.m, program.s))
            pyro.sample("z1", dist.Normal(program.b * z2 + program.c, program.t))

    x, estimator = torch.linspace(-50, 50, 40, dtype=torch.float64), MAKE[name]()
    estimator.loss_and_grads(model, guide, x)
    for each in (estimator, replace(estimator, vectorize_particles=False)):
        seen.clear()
        each.loss_and_grads(model, guide, x)
        assert len(seen) == (1 if each.vectorize_particles else estimator.total_particles)
        assert all(index == seen[0] for index in seen)


@pytest.mark.parametrize("name", [n for n in MAKE if n != "reinforce_moving_average"])
def test_a_scale_per_example_weights_its_bound(name):
    program, scale = gaussian(4, off=0.3), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    model, guide = pyro.poutine.scale(program.model, scale), pyro.poutine.scale(program.guide, scale)
    estimator, x = MAKE[name](), repeated(4)
    found = seeded(estimator.loss, model, guide, x)
    assert found == pytest.approx(-(scale * values(estimator, program, x)).sum().item(), rel=1e-10)
    parameters = [*program.model_parameters, *program.guide_parameters]
    gradients = torch.autograd.grad(seeded(estimator.differentiable_loss, model, guide, x), parameters)
    plain = torch.autograd.grad(seeded(estimator.differentiable_loss, program.model, program.guide, x), parameters)
    for weighted, unweighted in zip(gradients, plain, strict=True):  # one entry of each parameter per example
        assert torch.allclose(weighted, scale * unweighted, rtol=1e-10)


@pytest.mark.parametrize("scale", [2, 2.0, torch.tensor(2.0), torch.tensor(2.0, dtype=torch.float64)], ids=repr)
def test_a_scale_may_be_a_number_of_any_kind(scale):
    program, x = gaussian(4, off=0.3), repeated(4)
    model, guide = pyro.poutine.scale(program.model, scale), pyro.poutine.scale(program.guide, scale)
    found = seeded(elbo.IWAE(3).loss, model, guide, x)
    assert found == pytest.approx(-2 * values(elbo.IWAE(3), program, x).sum().item(), rel=1e-6)


class ScaledLatent(Messenger):
    """Scale the latent site alone."""

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["scale"] = 0.5 * msg["scale"]


def test_scaling_the_kl():
    """Pyro: ``Trace_ELBO`` needs both sites scaled; ``TraceMeanField_ELBO`` reads the guide's scale alone, silently."""
    program, x = gaussian(30, off=0.4), torch.linspace(-1.5, 1.5, 30, dtype=torch.float64)
    model, guide = ScaledLatent()(program.model), ScaledLatent()(program.guide)
    kinds = Trace_ELBO, TraceMeanField_ELBO
    sampled, closed = (kind(3, max_plate_nesting=1, vectorize_particles=True) for kind in kinds)

    def loss(estimator, model, guide):
        return float(seeded(estimator.loss, model, guide, x))

    plain = loss(closed, program.model, program.guide)
    assert loss(closed, model, program.guide) == pytest.approx(plain, rel=1e-12)  # no effect, no warning
    assert loss(closed, program.model, guide) == pytest.approx(loss(closed, model, guide), rel=1e-12)
    assert abs(loss(closed, model, guide) - plain) > 1
    for beta_of, pyros in ((elbo.AnalyticKL(3), closed), (elbo.SampledKL(3), sampled)):
        ours = loss(elbo.Weighted(beta_of, beta=0.5), program.model, program.guide)
        assert ours == pytest.approx(loss(pyros, model, guide), rel=1e-12)
        for pair in ((model, program.guide), (program.model, guide)):
            if isinstance(beta_of, elbo.AnalyticKL):
                with pytest.raises(InputError, match="one scale for model and guide at site 'z'"):
                    beta_of.loss(*pair, x)
            else:
                assert loss(beta_of, *pair) == pytest.approx(loss(pyros, *pair), rel=1e-12)
            with pytest.raises(InputError, match="one scale for all sites, or one for all latents"):
                elbo.IWAE(3).loss(*pair, x)
        assert loss(beta_of, model, guide) == pytest.approx(ours, rel=1e-12)  # a scale of all latents is beta
    weighted = loss(elbo.Weighted(elbo.IWAE(3), beta=0.5), program.model, program.guide)
    assert loss(elbo.IWAE(3), model, guide) == pytest.approx(weighted, rel=1e-12)
    with pytest.raises(InputError, match="this estimator holds for w = p/q itself"):
        loss(elbo.DReG(3), model, guide)
    assert loss(sampled, model, program.guide) != pytest.approx(loss(sampled, model, guide), rel=1e-3)
