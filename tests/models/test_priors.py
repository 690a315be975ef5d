"""One battery for every prior: a new one is a new row."""

import copy
import math

import pytest
import torch
from checks import assert_close, assert_mean
from families import (
    assert_draws_are_of_the_density,
    assert_elbo_and_gradient_are_pyros,
    assert_gradient,
    assert_mean_is_that_of_draws,
    assert_normalised,
    seeded,
    shaken,
    smallest,
)
from pyro import distributions as dist
from torch import distributions as td
from torch import nn

from pyro_vae import VAE
from pyro_vae.base.errors import InputError
from pyro_vae.elbo import SampledKL
from pyro_vae.models import (
    MLP,
    POSTERIORS,
    PRIORS,
    AutoregressiveFlowPrior,
    CouplingFlowPrior,
    DiagonalNormal,
    LearnedNormal,
    NormalMixturePrior,
    NormalPrior,
    StandardNormal,
    UniformSphere,
    VampPrior,
)
from pyro_vae.models.priors import mixture as mixtures
from pyro_vae.program.contexts import own_store


class Encoded(nn.Module):
    """A prior that is made of q(z|x), with an encoder of its own: called without arguments, as the others."""

    def __init__(self, prior, size):
        super().__init__()
        self.prior, self.posterior = prior, DiagonalNormal()
        self.encoder = MLP((3,), (size,), 2, hidden=(5,), activation="tanh")

    def forward(self):
        return self.prior(lambda x: self.posterior(*self.encoder(x).unbind(-2)))


PRIOR_ROWS = {
    "standard_normal": StandardNormal,
    "normal": lambda size: NormalPrior(size, loc=1.0, scale=2.0),
    "normal, one for each": lambda size: NormalPrior(size, loc=[0.5 * n for n in range(size)], scale=[1.5] * size),
    "learned_normal": LearnedNormal,
    "mixture": lambda size: NormalMixturePrior(size, components=4),
    "vamp": lambda size: Encoded(VampPrior((3,), components=4), size),
    "vamp, learned weights": lambda size: Encoded(VampPrior((3,), components=4, learned_weights=True), size),
    "autoregressive_flow": lambda size: AutoregressiveFlowPrior(size, flows=2, hidden=[6]),
    "autoregressive_flow, deep": lambda size: AutoregressiveFlowPrior(size, flows=3, hidden=[6, 5]),
    "coupling_flow": lambda size: CouplingFlowPrior(size, flows=2, hidden=[6]),
    "coupling_flow, deep": lambda size: CouplingFlowPrior(size, flows=5, hidden=[6, 5]),
    "uniform_sphere": UniformSphere,
}
PARTS = {  # of a VAE, where a prior alone does not do
    "vamp": {"prior": "vamp:components=4"},
    "vamp, learned weights": {"prior": "vamp:components=4,learned_weights=true"},
    "uniform_sphere": {"prior": "uniform_sphere", "posterior": "projected_normal"},
}


def made(name, size, seed=0):
    return shaken(seeded(PRIOR_ROWS[name], size, seed=seed), seed, by=0.2)


def points(name, size, count=6):
    """Return latents in the support of a prior."""
    z = torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return z / z.norm(dim=-1, keepdim=True) if name == "uniform_sphere" else z


class Check:
    """The checks that a planted error is looked for with, each of one prior."""

    @staticmethod
    def normalised(prior):
        assert_normalised(prior())

    @staticmethod
    def draws(prior):
        assert_draws_are_of_the_density(prior())

    @staticmethod
    def gradient(prior, z):
        parameters = dict(prior.named_parameters())
        if parameters:
            assert_gradient(lambda: prior().log_prob(z).sum(), parameters)
        leaf = z.clone().requires_grad_()
        if (z.square().sum(-1) - 1).abs().max() > 1e-10:  # not on the sphere, from which no step leads
            assert_gradient(lambda: prior().log_prob(leaf).sum(), {"z": leaf})

    @staticmethod
    def loading(make, z):
        """A new object with the saved state has the same densities and draws."""
        first, second = make(0), make(1)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first().log_prob(z), second().log_prob(z))
        assert torch.equal(seeded(first().sample, (5,)), seeded(second().sample, (5,)))


@pytest.mark.parametrize("name", PRIOR_ROWS)
class TestPrior:
    def test_is_normalised(self, name):
        Check.normalised(smallest(lambda size: made(name, size)))

    def test_draws_are_of_the_density(self, name):
        Check.draws(smallest(lambda size: made(name, size)))
        try:
            Check.draws(made(name, 2))
        except InputError:
            pytest.skip("of another size only")

    def test_mean_is_that_of_draws(self, name):
        assert_mean_is_that_of_draws(made(name, 3)())

    def test_density_has_the_derivative_in_every_parameter_and_in_z(self, name):
        Check.gradient(made(name, 3), points(name, 3))

    def test_leading_dimensions_are_those_of_single_latents(self, name):
        """A plate's expansion to (B,) and (K, B), and values of any shape."""
        prior, z = made(name, 3)(), points(name, 3, 20).reshape(4, 5, 3)
        alone = torch.stack([prior.log_prob(each) for each in z.flatten(0, 1)]).reshape(4, 5)
        assert_close(prior.log_prob(z), alone)
        for shape in ((5,), (4, 5)):
            expanded = prior.expand(shape)
            assert (expanded.batch_shape, expanded.event_shape) == (shape, (3,))
            assert_close(expanded.log_prob(z), alone)
            assert expanded.sample().shape == (*shape, 3)
            assert expanded.sample((7,)).shape == (7, *shape, 3)
            assert expanded.log_prob(z[0, 0]).shape == shape

    def test_keeps_shape_dtype_and_device(self, name, device):
        prior = PRIOR_ROWS[name](3).to(device, torch.float64)()
        draw = prior.sample((5,))
        assert (prior.batch_shape, prior.event_shape, draw.shape) == ((), (3,), (5, 3))
        assert draw.dtype == prior.log_prob(draw).dtype == torch.float64
        assert draw.device.type == device.type

    def test_single_precision_is_close_to_double(self, name):
        prior, z = made(name, 3), points(name, 3)
        exact = prior().log_prob(z).detach()
        single = prior.float()().log_prob(z.float())
        assert single.dtype == torch.float32
        assert_close(single.detach().double(), exact, tolerance=1e-4)

    def test_loads_into_a_new_one(self, name):
        Check.loading(lambda seed: made(name, 3, seed), points(name, 3))

    def test_is_copied_after_use(self, name):
        prior, z = made(name, 3), points(name, 3)
        first = prior().log_prob(z)
        assert torch.equal(copy.deepcopy(prior)().log_prob(z), first)

    def test_nothing_of_a_value_outlives_a_step(self, name):
        """The same tensor is scored anew after parameters have changed."""
        prior, z = made(name, 3), points(name, 3)
        before = prior().log_prob(z)
        shaken(prior, seed=7)
        assert_close(prior().log_prob(z), prior().log_prob(z.clone()))
        assert not list(prior.parameters()) or not torch.allclose(prior().log_prob(z), before)

    def test_its_vae_is_checked_against_pyro(self, name):
        assert_elbo_and_gradient_are_pyros(**PARTS.get(name, {"prior": seeded(PRIOR_ROWS[name], 2)}))


def test_every_prior_of_the_table_is_in_the_battery():
    assert set(PRIORS) <= {name.partition(",")[0] for name in PRIOR_ROWS}


def test_standard_normal_prior_density():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    assert StandardNormal(2)().log_prob(z).tolist() == pytest.approx(expected)


def test_prior_follows_its_module_and_has_no_state(device):
    for make in (StandardNormal, NormalPrior):
        prior = make(3).to(device, torch.float64)
        assert prior().sample().dtype == torch.float64
        assert prior().sample().device.type == device.type
        assert list(prior.state_dict()) == []


# ---- normals


def test_scale_of_the_normal_prior_is_a_standard_deviation():
    """N(1, 2) on paper, with 2 the variance, and with 2 the standard deviation."""
    z = torch.tensor([3.0], dtype=torch.float64)
    variance = VAE((3,), 1, prior=f"normal:loc=1,scale={math.sqrt(2)!r}").double().p_z()
    deviation = VAE((3,), 1, prior="normal:loc=1,scale=2").double().p_z()
    assert variance.log_prob(z).item() == pytest.approx(-0.5 * math.log(2 * math.pi * 2) - 4 / (2 * 2), rel=1e-14)
    assert deviation.log_prob(z).item() == pytest.approx(-0.5 * math.log(2 * math.pi * 4) - 4 / (2 * 4), rel=1e-14)


def test_kl_to_the_normal_prior_is_the_docstrings():
    loc, log_scale = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    q, p = DiagonalNormal()(loc, log_scale), NormalPrior(3, loc=1.0, scale=[0.5, 1.0, 2.0]).double()()
    m, s = 1.0, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    formula = ((s / log_scale.exp()).log() + ((2 * log_scale).exp() + (loc - m) ** 2) / (2 * s**2) - 0.5).sum(-1)
    assert_close(td.kl_divergence(q, p.expand((5,))), formula)


def test_constants_are_exact_in_both_precisions():
    prior = NormalPrior(1, loc=0.1, scale=0.3)
    single, double = prior().mean.item(), prior.double()().mean.item()
    assert (single, double) == (torch.tensor(0.1).item(), 0.1)


# ---- mixtures and the VampPrior


def test_mixture_is_torchs():
    prior, z = made("mixture", 3), points("mixture", 3)
    components = td.Independent(td.Normal(prior.loc, prior.log_scale.exp()), 1)
    expected = td.MixtureSameFamily(td.Categorical(logits=prior.logits), components)
    found = prior()
    assert_close(found.log_prob(z), expected.log_prob(z))
    assert_close(found.mean, expected.mean)
    assert_close(found.variance, expected.variance)
    assert td.biject_to(found.support)(z).equal(z)


def test_mixture_density_in_chunks_is_the_same(monkeypatch):
    prior, z = made("vamp", 3), points("vamp", 3, 20)
    whole, draws = prior().log_prob(z), seeded(prior().sample, (20,))
    monkeypatch.setattr(mixtures, "NUMBERS_AT_ONCE", 30)  # two values at once
    monkeypatch.setattr(mixtures, "SAMPLES_AT_ONCE", 20)
    assert_close(prior().log_prob(z), whole)
    assert seeded(prior().sample, (20,)).equal(draws)


@pytest.mark.parametrize("posterior", [name for name in POSTERIORS if name != "planar"])
def test_vamp_is_the_mean_of_posteriors_at_its_inputs(posterior):
    vae = shaken(seeded(lambda: VAE((4,), 2, (5,), prior="vamp:components=3", posterior=posterior)))
    z = points("uniform_sphere" if posterior == "projected_normal" else "", 2)
    each = torch.stack([vae.encode(u).log_prob(z) for u in vae.prior.pseudo_inputs])
    assert_close(vae.p_z().log_prob(z), each.logsumexp(0) - math.log(3))
    drawn = seeded(vae.p_z().sample, (1000,))
    assert vae.p_z().log_prob(drawn).isfinite().all()


def test_vamp_starts_at_different_training_examples():
    x = torch.arange(40.0).reshape(20, 2)
    vae = VAE((2,), 2, (5,), prior="vamp:components=15", likelihood="gaussian")
    assert vae.prior.pseudo_inputs.std() < 0.02
    seeded(vae.prior.start_from, x)
    chosen = [x.eq(u).all(-1).nonzero().item() for u in vae.prior.pseudo_inputs]
    assert len(set(chosen)) == 15
    assert chosen != sorted(chosen)
    again = VAE((2,), 2, (5,), prior="vamp:components=15", likelihood="gaussian")
    seeded(again.prior.start_from, x)
    assert again.prior.pseudo_inputs.equal(vae.prior.pseudo_inputs)
    with pytest.raises(InputError, match=r"at least 15 training examples, .*; got 10\. Try vamp:components=10"):
        vae.start_from(x[:10])  # the program's own asks its prior first


def test_vamp_needs_a_posterior_with_a_density_everywhere():
    vae, x = VAE((3,), 2, (4,), prior="vamp:components=3", posterior="planar"), torch.ones(4, 3)
    with (
        own_store(vae),
        pytest.raises(InputError, match=r"density is available at any z.*got a flow without an inverse"),
    ):
        SampledKL().loss(vae.model, vae.guide, x)
    with pytest.raises(InputError, match="the encoder of a program"):
        VampPrior((3,), 4)()


# ---- flows


@pytest.mark.parametrize("name", ["autoregressive_flow", "coupling_flow"])
def test_flow_starts_as_the_standard_normal(name):
    prior, z = PRIOR_ROWS[name](3).double(), points(name, 3)
    assert_close(prior().log_prob(z), StandardNormal(3).double()().log_prob(z))


@pytest.mark.parametrize("name", [name for name in PRIOR_ROWS if "flow" in name])
def test_flow_is_a_change_of_variables(name):
    """Log p(z) is that of its noise plus log |du/dz|, the Jacobian by autograd; all latents depend on each other."""
    prior, z = made(name, 3)(), points(name, 3, 1)[0]

    def noise(z):
        for transform in reversed(prior.transforms):
            z = transform.inv(z)
        return z

    jacobian = torch.autograd.functional.jacobian(noise, z)
    expected = td.Normal(0.0, 1.0).log_prob(noise(z)).sum() + torch.linalg.slogdet(jacobian)[1]
    assert_close(prior.log_prob(z), expected)
    assert (jacobian.abs() > 1e-12).sum() >= 7


@pytest.mark.parametrize("extreme", [1e3, -1e3])
@pytest.mark.parametrize("name", ["autoregressive_flow", "coupling_flow", "mixture"])
def test_extreme_latents_are_finite(name, extreme):
    """A decoder that has diverged asks for log p(z) far away; value and gradient."""
    prior, z = made(name, 3), torch.full((2, 3), extreme).double().requires_grad_()
    value = prior().log_prob(z)
    found = torch.autograd.grad(value.sum(), [z, *prior.parameters()])
    assert all(each.isfinite().all() for each in (value, *found))


# ---- planted errors


class NoLogDeterminant(AutoregressiveFlowPrior):
    def forward(self, encode=None):
        p = super().forward(encode)
        for transform in p.transforms:
            transform.inv.log_abs_det_jacobian = lambda x, y: torch.zeros(x.shape[:-1], dtype=x.dtype)
        return p


class Detached(LearnedNormal):
    def forward(self, encode=None):
        return dist.Normal(self.loc, self.log_scale.detach().exp()).to_event(1)


class Unweighted(NormalMixturePrior):
    def forward(self, encode=None):
        p = super().forward(encode)
        p.log_weights = torch.zeros_like(p.log_weights)
        return p


class OtherDraws(NormalMixturePrior):
    def forward(self, encode=None):
        p = super().forward(encode)
        p.pick = lambda which: self._normals(which.flip(0).clamp(max=1))
        return p


class VarianceForScale(NormalPrior):
    def forward(self, encode=None):
        p = super().forward(encode)
        p.sample = lambda shape=(): dist.Normal(self.loc, self.scale.square()).to_event(1).sample(shape)
        return p


class NotSaved(CouplingFlowPrior):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("backwards", torch.randperm(len(self.backwards)), persistent=False)


class EncoderDetached(Encoded):
    def forward(self):
        return self.prior(lambda x: self.posterior(*self.encoder(x).detach().unbind(-2)))


PLANTED = {
    "no log-determinant": (lambda: NoLogDeterminant(2, hidden=[6]), "normalised"),
    "weights that do not add up": (lambda: Unweighted(1, components=3), "normalised"),
    "draws of other components": (lambda: OtherDraws(1, components=3), "draws"),
    "a variance for a scale": (lambda: VarianceForScale(1, loc=1.0, scale=2.0), "draws"),
}
PLANTED_GRADIENT = {
    "detached scale": lambda: Detached(3),
    "detached encoder": lambda: EncoderDetached(VampPrior((3,), components=4, learned_weights=True), 3),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name):
    make, check = PLANTED[name]
    with pytest.raises(AssertionError):
        getattr(Check, check)(shaken(seeded(make)))


@pytest.mark.parametrize("name", PLANTED_GRADIENT)
def test_a_planted_gradient_is_found(name):
    with pytest.raises(AssertionError):
        Check.gradient(shaken(seeded(PLANTED_GRADIENT[name])), points("", 3))


def test_a_permutation_that_is_not_saved_is_found():
    with pytest.raises(AssertionError):
        Check.loading(lambda seed: shaken(seeded(lambda: NotSaved(5, hidden=[6]), seed=seed), seed), points("", 5))


# ---- what is refused

BAD = {
    "zero scale": (lambda: NormalPrior(2, scale=0), "scale as a finite number above 0, or one for each of 2 .*; got 0"),
    "negative scale": (lambda: NormalPrior(2, scale=[1, -1]), r"above 0, .*; got \[1, -1\]"),
    "infinite scale": (lambda: NormalPrior(2, scale=math.inf), "above 0, .*; got inf"),
    "nan mean": (lambda: NormalPrior(2, loc=math.nan), "loc as a finite number, .*; got nan"),
    "three means": (lambda: NormalPrior(2, loc=[1.0, 2.0, 3.0]), r"one for each of 2 latents; got \[1.0, 2.0, 3.0\]"),
    "a mean in words": (lambda: NormalPrior(2, loc="one"), "got 'one'"),
    "components": (lambda: NormalMixturePrior(2, components=0), "components as a whole number of at least 1; got 0"),
    "inputs": (lambda: VampPrior((3,), components=-1), "components as a whole number of at least 1; got -1"),
    "flows": (lambda: CouplingFlowPrior(2, flows=0), "flows as a whole number of at least 1; got 0"),
    "one latent": (lambda: AutoregressiveFlowPrior(1), "at least 2 .*; got 1. Try prior='learned_normal'"),
    "one latent of a coupling": (lambda: CouplingFlowPrior(1), "at least 2 .*; got 1. Try prior='learned_normal'"),
    "narrow": (lambda: AutoregressiveFlowPrior(20, hidden=[10]), r"layers of at least 20 units .*; got \[10\]"),
    "directions of 4": (lambda: UniformSphere(4), "a latent_dim of 2 or 3 .*; got 4"),
    "by name": (lambda: VAE((3,), 2, prior="normal:scale=-1"), "above 0, .*; got -1"),
    "lists by name": (lambda: VAE((3,), 2, prior="normal:loc=[1,2,3]"), r"each of 2 latents; got \[1, 2, 3\]"),
    "separate": (lambda: VAE((3,), 2, prior="vamp:event_shape=3"), "event_shape is set separately"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_prior_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()


def test_means_and_scales_by_name():
    p = VAE((3,), 2, prior="normal:loc=[0,1],scale=[0.5,2]").p_z()
    assert (p.mean.tolist(), p.stddev.tolist()) == ([0.0, 1.0], [0.5, 2.0])
    assert_mean(seeded(p.sample, (20_000,)), p.mean)
