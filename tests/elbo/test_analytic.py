"""The hand-written ELBO: against torch's densities, quadrature, autograd and finite differences."""

import math

import pytest
import torch
from checks import assert_close, assert_mean
from torch import distributions as td

from pyro_vae.elbo import analytic

B, D, Z, K = 4, 6, 3, 5


@pytest.fixture
def tensors(device):
    """Inputs of every function, float64, fixed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    return {
        "binary": (normal(B, D) > 0).double(),
        "real": normal(B, D),
        "loc": normal(B, Z),
        "log_scale": 0.5 * normal(B, Z),
        "noise": normal(K, B, Z),
        "head": normal(K, B, D),
        "head_log_scale": 0.5 * normal(K, B, D),
        "weights": normal(Z, D),
    }


def test_densities_equal_torch_distributions(tensors):
    t = tensors
    bernoulli = td.Bernoulli(logits=t["head"]).log_prob(t["binary"].expand(K, B, D)).sum(-1)
    assert_close(analytic.log_bernoulli(t["binary"], t["head"]), bernoulli)
    normal = td.Normal(t["head"], t["head_log_scale"].exp()).log_prob(t["real"]).sum(-1)
    assert_close(analytic.log_gaussian(t["real"], t["head"], t["head_log_scale"]), normal)
    standard = td.Normal(0.0, 1.0).log_prob(t["noise"]).sum(-1)
    assert_close(analytic.log_standard_normal(t["noise"]), standard)
    kl = td.kl_divergence(td.Normal(t["loc"], t["log_scale"].exp()), td.Normal(0.0, 1.0)).sum(-1)
    assert_close(analytic.kl_to_standard_normal(t["loc"], t["log_scale"]), kl)


def test_gaussian_density_integrates_to_one():
    """A frequent error is a wrong normaliser, or the scale taken for the variance."""
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    log_scale = torch.tensor([0.3], dtype=torch.float64)
    density = analytic.log_gaussian(grid[:, None], torch.tensor([0.7], dtype=torch.float64), log_scale).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-12)


def test_kl_is_the_integral_it_names():
    loc, log_scale = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    z = torch.linspace(-12, 12, 40001, dtype=torch.float64)[:, None, None]
    log_q = analytic.log_gaussian(z, loc, log_scale)[:, 0]
    integral = torch.trapezoid(log_q.exp() * (log_q - analytic.log_standard_normal(z)[:, 0]), z[:, 0, 0])
    assert analytic.kl_to_standard_normal(loc, log_scale).item() == pytest.approx(integral.item(), rel=1e-10)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere(tensors):
    """A frequent error is the KL's sign."""
    assert analytic.kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert (analytic.kl_to_standard_normal(tensors["loc"], tensors["log_scale"]) > 0).all()


def test_elbo_by_hand_at_two_particles_and_one_example():
    """X = 1 with logits 0 and log 3, q = N(1, 4), ε = −1 and 1: every number can be done on paper."""
    x, logits = torch.ones(1, 1), torch.tensor([[[0.0]], [[math.log(3.0)]]])
    loc, log_scale = torch.ones(1, 1), torch.full((1, 1), math.log(2.0))
    noise = torch.tensor([[[-1.0]], [[1.0]]])
    z = analytic.reparameterize(loc, log_scale, noise)
    assert z.flatten().tolist() == pytest.approx([-1.0, 3.0])
    log_px_z = analytic.log_bernoulli(x, logits)
    assert log_px_z.flatten().tolist() == pytest.approx([math.log(0.5), math.log(0.75)])
    mean = 0.5 * (math.log(0.5) + math.log(0.75))
    kl = 0.5 * (1 + 4 - 1 - 2 * math.log(2.0))
    assert analytic.elbo_closed(log_px_z, loc, log_scale).item() == pytest.approx(mean - kl)
    # log p(z) − log q(z|x) = −z²/2 + ε²/2 + log σ
    sampled = mean + 0.5 * ((-0.5 + 0.5 + math.log(2.0)) + (-4.5 + 0.5 + math.log(2.0)))
    assert analytic.elbo_sampled(log_px_z, z, loc, log_scale).item() == pytest.approx(sampled)


def linear_elbo(form, t, loc, log_scale):
    """An ELBO whose decoder is linear in z, so that z moves the likelihood."""
    z = analytic.reparameterize(loc, log_scale, t["noise"])
    log_px_z = analytic.log_bernoulli(t["binary"], z @ t["weights"])
    if form == "closed":
        return analytic.elbo_closed(log_px_z, loc, log_scale)
    return analytic.elbo_sampled(log_px_z, z, loc, log_scale)


@pytest.mark.parametrize("form", ["closed", "sampled"])
def test_hand_derived_gradient_equals_autograd(form, tensors):
    t = tensors
    loc, log_scale = t["loc"].clone().requires_grad_(), t["log_scale"].clone().requires_grad_()
    expected = torch.autograd.grad(linear_elbo(form, t, loc, log_scale).sum(), [loc, log_scale])
    z = analytic.reparameterize(t["loc"], t["log_scale"], t["noise"])
    grad_z = analytic.grad_log_bernoulli(t["binary"], z @ t["weights"]) @ t["weights"].T / K
    grad = analytic.grad_elbo_closed if form == "closed" else analytic.grad_elbo_sampled
    for value, reference in zip(grad(t["loc"], t["log_scale"], t["noise"], grad_z), expected, strict=True):
        assert_close(value, reference)


@pytest.mark.parametrize("form", ["closed", "sampled"])
def test_hand_derived_gradient_equals_finite_differences(form, tensors):
    """Central differences err by h²: 1e-10 at h = 1e-5, less rounding of 1e-11 or so."""
    t, step = tensors, 1e-5
    z = analytic.reparameterize(t["loc"], t["log_scale"], t["noise"])
    grad_z = analytic.grad_log_bernoulli(t["binary"], z @ t["weights"]) @ t["weights"].T / K
    grad = analytic.grad_elbo_closed if form == "closed" else analytic.grad_elbo_sampled
    by_hand = grad(t["loc"], t["log_scale"], t["noise"], grad_z)
    for which, name in enumerate(("loc", "log_scale")):
        for index in range(Z):
            shift = torch.zeros_like(t[name])
            shift[:, index] = step
            ends = [{**t, name: t[name] + sign * shift} for sign in (1, -1)]
            up, down = (linear_elbo(form, end, end["loc"], end["log_scale"]) for end in ends)
            assert_close(by_hand[which][:, index], (up - down) / (2 * step), tolerance=1e-8)


def test_head_gradients_equal_autograd(tensors):
    t = tensors
    head = t["head"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(analytic.log_bernoulli(t["binary"], head).sum(), head)
    assert_close(analytic.grad_log_bernoulli(t["binary"], t["head"]), expected)
    log_scale = t["head_log_scale"].clone().requires_grad_()
    expected = torch.autograd.grad(analytic.log_gaussian(t["real"], head, log_scale).sum(), [head, log_scale])
    found = analytic.grad_log_gaussian(t["real"], t["head"], t["head_log_scale"])
    for value, reference in zip(found, expected, strict=True):
        assert_close(value, reference)


def test_the_two_forms_agree_in_the_mean(tensors):
    """Sampled − closed has mean 0 over fresh noise, draw by draw on the same z; and the forms do differ."""
    t = tensors
    draws = 20000
    generator = torch.Generator(t["loc"].device).manual_seed(1)
    noise = torch.randn(draws, B, Z, generator=generator, dtype=torch.float64, device=t["loc"].device)
    z = analytic.reparameterize(t["loc"], t["log_scale"], noise)
    difference = (
        analytic.log_standard_normal(z)
        - analytic.log_gaussian(z, t["loc"], t["log_scale"])
        + analytic.kl_to_standard_normal(t["loc"], t["log_scale"])
    )
    assert difference.std(0).min() > 0.1
    assert_mean(difference, torch.zeros(B, device=difference.device))


def test_single_precision_keeps_single_precision(device):
    loc = torch.zeros(2, 3, device=device)
    assert analytic.kl_to_standard_normal(loc, loc).dtype == torch.float32
    assert analytic.log_bernoulli(loc, loc[None]).device.type == device.type
