"""Pitfalls of Pyro 1.9.2 and errors of other laboratories: each one shown where it can be, and absent here.

Rows of the list that have no test in this file, and why:

* STL and DReG, asked of Pyro since 2020 (issues 2598, 3104): their tests are the grid of ``test_estimators.py``.
* ``psis_diagnostic`` gives one k-hat for the joint of all data: a matter of evaluation, not of the estimators.
* Distributed training draws the same subsample on every rank (issue 3171): there is none here. What can go wrong in one
  process, a guide and a model that draw different subsamples, is tested.
* Validation cannot be compiled: nothing here compiles a program. That no switch is touched is tested.
* Formula errors of the notes in ``seeds/`` (sign of the KL, scale for variance, normaliser of a Gaussian):
  ``test_analytic.py`` and the planted errors of ``test_crosscheck.py``.
* Grey levels of a data set behind ``pyro-vae train``, and hostile pickles as data: ``test_bad_input.py``.
"""

import copy
import math
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch.utils._python_dispatch import TorchDispatchMode
from toys import NOISE, discrete, gaussian, hierarchy

from pyro_vae import VAE, InputError, elbo, fit
from pyro_vae.data import as_images
from pyro_vae.elbo import analytic
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.evaluation.methods.bounds import held_out_elbo
from pyro_vae.program.contexts import own_store
from pyro_vae.training.config import RunConfig
from pyro_vae.training.folder import Run

MAKE = {
    "sampled_kl": lambda: elbo.SampledKL(3),
    "analytic_kl": lambda: elbo.AnalyticKL(3),
    "stl": lambda: elbo.STL(3),
    "iwae": lambda: elbo.IWAE(3),
    "iwae_stl": lambda: elbo.IWAESTL(3),
    "dreg": lambda: elbo.DReG(3),
    "miwae": lambda: elbo.MIWAE(3, 2),
    "piwae": lambda: elbo.PIWAE(3, 2),
    "ciwae": lambda: elbo.CIWAE(3, beta=0.3),
    "renyi": lambda: elbo.Renyi(3, alpha=0.4),
    "reinforce": lambda: elbo.Reinforce(3),
    "reinforce_moving_average": lambda: elbo.ReinforceMovingAverage(3),
    "vimco": lambda: elbo.VIMCO(3),
    "wake_sleep": lambda: elbo.WakeSleep(3),
    "rws": lambda: elbo.RWS(3, sleep_phi=0.5),
    "tvo": lambda: elbo.TVO(3, partitions=3),
    "beta": lambda: elbo.beta_vae(beta=0.5, num_particles=3),
}
SAMPLED = [name for name in MAKE if name not in ("analytic_kl", "beta")]


def seeded(function, *args, seed=0):
    """Call with a seed, leaving the random state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*args)


def repeated(batch, x=0.4):
    return torch.full((batch,), x, dtype=torch.float64)


def values(estimator, program, x, seed=0):
    """Bounds of every datum, (B,)."""
    draw = seeded(estimator.draw, program.model, program.guide, (x,), {}, "fixed", seed=seed)
    return estimator.value(draw).detach()


def small_vae(**options):
    return seeded(lambda: VAE((6,), 2, (4,), **options).double())


def binary(batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((batch, 6), 0.5, dtype=torch.float64), generator=generator)


def test_every_estimator_goes_through_this_file():
    assert set(MAKE) == set(elbo.ESTIMATORS) - {"trace_elbo", "trace_mean_field_elbo"}


# --- Pyro: what runs on the device ------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Count what makes the processor wait for the device: reading a number out of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += function in (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def host_reads(estimator):
    vae = small_vae()
    with own_store(vae), pyro.validation_enabled(False), HostReads() as reads:
        estimator.differentiable_loss(vae.model, vae.guide, binary())
    return reads.count


@pytest.mark.parametrize("name", [n for n in MAKE if n != "reinforce_moving_average"])
def test_no_number_is_read_from_the_device(name):
    """Pyro 1.9.2: ``Trace_ELBO`` calls ``.item()`` once a site and step."""
    assert host_reads(Trace_ELBO()) >= 3
    assert host_reads(MAKE[name]()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_everything_is_made_on_the_device_and_in_the_precision_of_the_data(name, dtype, device):
    """Pyro's ``vae_comparison`` makes CPU tensors in a CUDA run."""
    vae, x = small_vae().to(device, dtype), binary().to(device, dtype)
    with own_store(vae):
        bound = MAKE[name]().bound(vae, x)
        bound.surrogate.backward()
    for tensor in (bound.value, bound.surrogate):
        assert (tensor.device, tensor.dtype) == (x.device, dtype)
    assert bound.value.shape == (5,)
    assert all(p.grad.device == x.device for p in vae.parameters() if p.grad is not None)


# --- Pyro: RenyiELBO --------------------------------------------------------------------------------------


def subsampled(size, subsample=None):
    """The Gaussian toy in a plate of ``size`` data, of which 4 are drawn; says which, a run a row."""
    program, seen = gaussian(4, off=0.4), []

    def model(x):
        with pyro.plate("data", size, subsample_size=4, subsample=subsample, dim=-1) as index:
            seen.append(index.tolist())
            z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(program.theta * z, NOISE), obs=x[index])

    def guide(x):
        with pyro.plate("data", size, subsample_size=4, subsample=subsample, dim=-1) as index:
            seen.append(index.tolist())
            pyro.sample("z", dist.Normal(program.a * x[index] + program.m, program.r.exp()))

    return program, model, guide, seen


def test_a_subsampled_plate_does_not_temper_the_weights():
    """Pyro's ``RenyiELBO`` exponentiates scaled log-densities (issue 2220): w to the power N/B. Ours divides first."""
    program, model, guide, _ = subsampled(40, torch.arange(4))
    x = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
    draw = seeded(elbo.IWAE(5).draw, program.model, program.guide, (x[:4],), {}, "fixed")
    log_w = draw.terms.log_weight.detach()

    def renyi(log_w):
        return ((0.6 * log_w).logsumexp(0) - math.log(5)).sum().item() / 0.6

    theirs = seeded(
        RenyiELBO(alpha=0.4, num_particles=5, max_plate_nesting=1, vectorize_particles=True).loss, model, guide, x
    )
    assert theirs == pytest.approx(-renyi(10 * log_w), rel=1e-12)  # tempered
    ours = seeded(elbo.Renyi(5, alpha=0.4).loss, model, guide, x)
    assert ours == pytest.approx(-10 * renyi(log_w), rel=1e-12)
    assert ours > theirs + 1  # a "bound" that is too high by more than a nat


def test_renyi_has_a_differentiable_loss():
    """Pyro's ``RenyiELBO`` has none, so no ``ELBOModule``."""
    vae, x = small_vae(), binary()
    with own_store(vae):
        with pytest.raises(AttributeError, match="differentiable_loss"):
            RenyiELBO(alpha=0.5, num_particles=3)(vae.model, vae.guide)(x)
        elbo.Renyi(3, alpha=0.5)(vae.model, vae.guide)(x).backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


def test_renyi_of_order_one_is_the_elbo():
    """Pyro's ``RenyiELBO`` refuses α = 1."""
    with pytest.raises(ValueError, match="alpha should not be equal to 1"):
        RenyiELBO(alpha=1.0)
    program, x = gaussian(20, off=0.4), repeated(20)
    assert_close(values(elbo.Renyi(3, alpha=1.0), program, x), values(elbo.SampledKL(3), program, x))


def test_the_bias_of_renyis_estimate_has_the_sign_that_li_and_turner_prove():
    """Theorem 2: from K particles it is too low for α < 1 and too high for α > 1, and less so for larger K."""
    program, x = gaussian(20_000, off=0.3), repeated(20_000)
    for alpha, sign in ((-0.5, 1), (0.5, 1), (1.8, -1)):
        pairs, all_of_them = elbo.Renyi(2, alpha=alpha), elbo.Renyi(10, alpha=alpha)
        draw = seeded(all_of_them.draw, program.model, program.guide, (x,), {}, "fixed")
        terms = draw.terms.detach()
        first = type(terms)(terms.log_px_z[:2], terms.log_pz[:2], terms.log_qz[:2])
        gained = sign * (all_of_them.weighting(terms).value - pairs.weighting(first).value)
        assert gained.mean() > 5 * gained.std() / len(x) ** 0.5


# --- Pyro: subsamples and scales --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLED)
def test_guide_and_model_draw_the_same_subsample(name):
    """A plate that draws its subsample: latents of some data must not be scored against other data."""
    _, model, guide, seen = subsampled(40)
    x = torch.linspace(-50, 50, 40, dtype=torch.float64)
    estimator = MAKE[name]()
    if name in ("wake_sleep", "rws"):  # what was dreamt is a batch; it cannot be subsampled once more
        with pytest.raises(InputError, match="one observed site of shape"):
            estimator.loss_and_grads(model, guide, x)
        seen = seen[:2]
    else:
        estimator.loss_and_grads(model, guide, x)
    assert len(seen) >= 2
    assert all(index == seen[0] for index in seen)
    again = seeded(estimator.loss, model, guide, x)
    if name == "sampled_kl":
        pyros = Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)
        assert again == pytest.approx(seeded(pyros.loss, model, guide, x), rel=1e-12)


@pytest.mark.parametrize("name", ["stl", "dreg", "piwae"])
def test_a_guide_that_is_run_again_keeps_its_subsample(name):
    """With two latents these estimators run the guide a second time."""
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

    MAKE[name]().loss_and_grads(model, guide, torch.linspace(-50, 50, 40, dtype=torch.float64))
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_scale_for_every_datum_is_refused():
    """It would multiply the sum of all bounds with every datum's scale."""
    program, scale = gaussian(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    model, guide = pyro.poutine.scale(program.model, scale), pyro.poutine.scale(program.guide, scale)
    with pytest.raises(InputError, match=r"one number as scale; got a tensor of shape \(4,\) at site 'z'"):
        elbo.IWAE(3).differentiable_loss(model, guide, repeated(4))


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
    """Pyro: with ``Trace_ELBO`` both sites must be scaled; ``TraceMeanField_ELBO`` reads the guide's scale alone."""
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
            with pytest.raises(InputError, match="one scale for all sites"):
                beta_of.loss(*pair, x)
    assert loss(sampled, model, program.guide) != pytest.approx(loss(sampled, model, guide), rel=1e-3)


def test_training_refuses_a_scaled_program():
    """Pyro's VAE example has no subsample scaling (issue 1437): a step's scale must not depend on how it is written."""

    def model(x):
        with pyro.plate("data", 8, subsample_size=4, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x[index])

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", 8, subsample_size=4, dim=-1) as index:
            pyro.sample("z", dist.Normal(weight * x[index, 0], 1.0))

    with pytest.raises(InputError, match=r"inside one plate of the 8 data in dimension -1; got .*plate 'data' of 4"):
        fit((model, guide), binary(8).float(), epochs=1, batch_size=4, device="cpu")

    class Scaled(VAE):
        def model(self, x):
            with pyro.poutine.scale(scale=100.0):
                super().model(x)

    with pytest.raises(InputError, match="without a scale"):
        fit(Scaled((6,), 2, (4,)), binary(8).float(), epochs=1, batch_size=4, device="cpu")


# --- Pyro: TraceMeanField_ELBO ----------------------------------------------------------------------------


def test_a_kl_without_a_closed_form_is_refused():
    """Pyro's ``TraceMeanField_ELBO`` samples that term, and says nothing."""
    program, x = gaussian(30, off=0.4), repeated(30)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.StudentT(torch.full_like(x, 3.0), 0.0, 1.0))
            pyro.sample("x", dist.Normal(program.theta * z, NOISE), obs=x)

    closed, sampled = (kind(max_plate_nesting=1) for kind in (TraceMeanField_ELBO, Trace_ELBO))
    silent = float(seeded(closed.loss, model, program.guide, x))
    assert silent == pytest.approx(seeded(sampled.loss, model, program.guide, x), rel=1e-12)
    with pytest.raises(InputError, match=r"closed form at site 'z'; got none for Normal and StudentT\. Try sampled"):
        elbo.AnalyticKL().loss(model, program.guide, x)


def test_masks_that_differ_are_refused_where_the_kl_is_closed():
    """``TraceMeanField_ELBO`` reads the guide's mask alone too; a mask on both counts."""
    program, x = gaussian(4, off=0.4), repeated(4)
    mask = torch.tensor([True, True, False, False])
    model, guide = pyro.poutine.mask(program.model, mask), pyro.poutine.mask(program.guide, mask)
    for pair in ((model, program.guide), (program.model, guide)):
        with pytest.raises(InputError, match="one mask for model and guide at site 'z'"):
            elbo.AnalyticKL().loss(*pair, x)
    everything = pyro.poutine.mask(program.model, torch.tensor([True] * 4))
    assert seeded(elbo.AnalyticKL().loss, everything, program.guide, x) > 0  # no mask and a mask of nothing are one
    for estimator in (elbo.AnalyticKL(3), elbo.SampledKL(3), elbo.IWAE(3), elbo.STL(3)):
        found = estimator.value(seeded(estimator.draw, model, guide, (x,), {})).detach()
        assert_close(found, values(estimator, program, x) * mask)


# --- Pyro: flows, optimisers, weights, JIT, files, names --------------------------------------------------


@pytest.mark.parametrize("name", ["sampled_kl", "iwae", "miwae", "ciwae", "renyi"])
def test_what_trains_a_flow_without_an_inverse_can_evaluate_it(name):
    """A planar flow scores only the very tensor that it drew; ``Trace_ELBO`` evaluates it too."""
    planar = seeded(dist.transforms.planar, 2)

    class Flow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.planar = planar

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("flow", self)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), [self.planar]))

    program, x = Flow(), torch.linspace(-1, 1, 10).view(5, 2)
    estimator = MAKE[name]()
    with own_store(program):
        evaluated = seeded(estimator.loss, program.model, program.guide, x)
        trained = seeded(estimator.loss_and_grads, program.model, program.guide, x)
    assert evaluated == pytest.approx(trained, rel=1e-6)
    assert held_out_elbo(program, as_images(x.clamp(0, 1)), num_particles=2).isfinite().all()


class NoInverse(torch.distributions.Transform):
    """A transform of torch's own that has no inverse: it says so in another way than Pyro's."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def _call(self, x):
        return x + 0.5 * torch.tanh(x)

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p(0.5 / torch.cosh(x) ** 2)


def test_a_transform_of_torchs_without_an_inverse_is_refused_in_words():
    program, x = gaussian(4, off=0.3), repeated(4)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(program.a * x + program.m, 1.0)
            pyro.sample("z", dist.TransformedDistribution(base, [NoInverse(cache_size=1)]))

    assert math.isfinite(elbo.IWAE(3).loss_and_grads(program.model, guide, x))
    with pytest.raises(InputError, match="got a flow without an inverse"):
        elbo.DReG(3).loss_and_grads(program.model, guide, x)


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


def test_weights_are_normalised_over_particles_datum_by_datum():
    """Pyro's ``vectorized_importance_weights(normalized=True)`` calls ``torch.logsumexp`` without a dimension."""
    program, x = gaussian(6, off=0.4), torch.linspace(-1, 1, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match="logsumexp"):
        vectorized_importance_weights(
            program.model, program.guide, x, num_samples=4, max_plate_nesting=1, normalized=True
        )
    terms = seeded(elbo.IWAE(4).draw, program.model, program.guide, (x,), {}).terms.detach()
    for estimator in (elbo.IWAE(4), elbo.DReG(4), elbo.Renyi(4), elbo.VIMCO(4), elbo.RWS(4), elbo.CIWAE(4)):
        assert_close(estimator.weighting(terms).theta.sum(0), torch.ones(6, dtype=torch.float64))
    assert_close(elbo.MIWAE(2, 2).weighting(terms).theta.sum(0), torch.ones(6, dtype=torch.float64))


def test_no_twin_is_needed_and_no_warning_given():
    """Pyro has a ``Jit`` twin of each ELBO; TorchScript is deprecated and warns in every run."""
    vae, x = small_vae(), binary()
    with own_store(vae), pytest.warns((DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning)):
        JitTrace_ELBO(ignore_jit_warnings=False).differentiable_loss(vae.model, vae.guide, x)
    with own_store(vae), warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in MAKE.values():
            make().loss_and_grads(vae.model, vae.guide, x)


class Payload:
    """What a hostile file would run when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loading_a_checkpoint_runs_nothing(tmp_path):
    """Pyro's ``ParamStore.load`` and ``PyroOptim.load`` unpickle whatever the file holds."""
    file, touched = tmp_path / "last.pt", tmp_path / "touched"
    torch.save({"params": Payload(touched), "constraints": {}}, file)
    with pyro.get_param_store().scope(), pytest.raises(AttributeError):  # too late
        pyro.get_param_store().load(str(file))
    assert touched.exists()
    touched.unlink()
    PyroOptim(torch.optim.Adam, {"lr": 0.1}).load(str(file))
    assert touched.exists()
    touched.unlink()
    run = Run(tmp_path, RunConfig())
    run.checkpoint().parent.mkdir()
    file.rename(run.checkpoint())
    with pytest.raises(InputError, match="a whole checkpoint"):
        run.load_checkpoint()
    assert not touched.exists()


def test_a_second_vae_of_the_same_names_trains_its_own_tensors():
    """In Pyro's global store it trains the first one's."""
    x = binary()

    def moved(vae, step):
        before = [p.detach().clone() for p in vae.parameters()]
        step(vae)
        return any(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))

    def in_the_global_store(vae):
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO()).step(x)

    def here(vae):
        with SVIEngine(vae, elbo.IWAE(3)) as engine:
            engine.step(x, learning_rate=0.01)

    with pyro.get_param_store().scope():
        assert moved(small_vae(), in_the_global_store)
        assert not moved(small_vae(), in_the_global_store)
    assert moved(small_vae(), here)
    assert moved(small_vae(), here)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("name", MAKE)
def test_no_global_switch_is_touched(name, validation):
    """Compiling in Pyro used to switch validation off for the whole process."""
    vae, x = small_vae(), binary()
    with pyro.validation_enabled(validation), SVIEngine(vae, MAKE[name]()) as engine:
        engine.step(x, learning_rate=0.01)
        MAKE[name]().loss(vae.model, vae.guide, x)
        assert is_validation_enabled() is validation
        assert torch.distributions.Distribution._validate_args is validation
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32


# --- data and densities -----------------------------------------------------------------------------------


def test_grey_pixels_under_a_bernoulli_are_refused():
    """Pyro's VAE example trains on them: what it reports is no density, since it does not integrate to 1."""
    grey = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
    logits = torch.tensor([1.0], dtype=torch.float64)
    density = analytic.log_bernoulli(grey, logits).exp()
    assert torch.trapezoid(density, grey[:, 0]).item() == pytest.approx(math.tanh(0.5), abs=1e-6)  # 0.46
    images = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="binary pixels: a Bernoulli gives grey levels no probability"):
        fit(VAE((6,), 2, (4,), "bernoulli"), images, epochs=1, batch_size=4, device="cpu")


@pytest.mark.parametrize("name", SAMPLED)
def test_no_constant_is_dropped(name):
    """At the posterior every bound is log p(x), whose exponential integrates to 1 over x."""
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    density = values(MAKE[name](), gaussian(len(grid), off=0.0), grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-10)


# --- errors of other laboratories -------------------------------------------------------------------------


def test_importance_weights_are_constants_and_of_the_bound():
    """PyTorch-VAE takes the softmax of the loss, and does not detach it.

    The gradient of the bound, by autograd through the logarithm of the mean weight, is ours to the last digit; the
    other two are off in expectation.
    """
    batch = 20_000
    program, x = gaussian(batch, off=0.35), repeated(batch)
    estimator = elbo.IWAE(5)
    draw = seeded(estimator.draw, program.model, program.guide, (x,), {})
    log_w = draw.terms.log_weight

    def gradient(objective):
        return torch.autograd.grad(objective.sum(), program.m, retain_graph=True)[0]

    right = gradient(log_w.logsumexp(0) - math.log(5))
    assert_close(gradient(estimator.of_draw(draw).surrogate), right)
    for wrong in ((log_w.softmax(0) * log_w).sum(0), ((-log_w).softmax(0).detach() * log_w).sum(0)):
        with pytest.raises(AssertionError, match="standard errors"):
            assert_mean(gradient(wrong) - right, 0.0)


def test_a_closed_kl_has_no_place_in_an_importance_weight():
    """At the posterior log w is log p(x) for each z; with the closed KL in place of log q − log p it is not.

    The logarithm of the mean of such "weights" then lies above log p(x): log E_q p(x|z) − KL is no bound.
    """
    program, x = gaussian(20_000, off=0.0), repeated(20_000)
    evidence = program.log_evidence(x).detach()
    draw = seeded(elbo.IWAE(20).draw, program.model, program.guide, (x,), {}, "fixed")
    fn, log_px_z = draw.guide_trace.nodes["z"]["fn"], draw.terms.log_px_z.detach()
    kl = torch.distributions.kl_divergence(fn, torch.distributions.Normal(0.0, 1.0)).detach()
    wrong = (log_px_z - kl).logsumexp(0) - math.log(20)
    excess = wrong - evidence
    assert excess.mean() > 5 * excess.std() / len(x) ** 0.5
    assert_close(values(elbo.IWAE(20), program, x), evidence)
    with pytest.raises(InputError, match="arguments that estimator iwae takes"):
        elbo.beta_vae(estimator="iwae", num_particles=5, free_bits=1.0)  # free bits need the closed form


def test_beta_above_one_is_no_bound_under_importance_weights():
    """Where x does not depend on z, log p(x) is log p(x|z), and E (p/q)^β above 1 for β > 1; the ELBO stays below."""
    batch = 20_000
    program, x = gaussian(batch, off=0.0, theta=0.0), repeated(batch)
    program.m = torch.full_like(program.m, 0.3)  # away from the prior, which is the posterior here
    evidence = program.log_evidence(x).detach()
    excess = values(elbo.Weighted(elbo.IWAE(50), beta=3.0), program, x) - evidence
    assert excess.mean() > 5 * excess.std() / batch**0.5
    below = evidence - values(elbo.Weighted(elbo.SampledKL(50), beta=3.0), program, x)
    assert below.mean() > 5 * below.std() / batch**0.5


@pytest.mark.parametrize("name", MAKE)
def test_evaluation_changes_nothing(name):
    """pyroVED calls ``svi.step`` to evaluate, which trains on the held-out data."""
    vae, x = small_vae(), binary()

    def state(estimator):
        tensors = [*vae.state_dict().values(), torch.get_rng_state()]
        return [t.clone() for t in tensors], [p.grad for p in vae.parameters()], vae.training, estimator.state_dict()

    estimator = MAKE[name]()
    with own_store(vae):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=estimator)
        before = state(estimator)
        seeded(svi.evaluate_loss, x)
        held_out_elbo(vae, as_images(x), num_particles=3)
        after = state(estimator)
        assert all(map(torch.equal, before[0], after[0]))
        assert before[1:] == after[1:] == ([None] * len(before[1]), True, before[3])
        seeded(svi.step, x)
        assert not all(map(torch.equal, before[0], state(estimator)[0]))


@pytest.mark.parametrize("name", MAKE)
def test_each_datum_has_a_bound_of_its_own(name):
    """breze averages over data before the logarithm of the mean weight: the data share their weights."""
    program, x = gaussian(6, off=0.4), torch.linspace(-1, 1, 6, dtype=torch.float64)
    changed = torch.cat([x[:1], x[1:] + 5])
    first, second = (values(MAKE[name](), program, data) for data in (x, changed))
    assert first.shape == (6,)
    assert first[0] == second[0]
    assert (first[1:] != second[1:]).all()
    gradients = []
    for data in (x, changed):
        estimator = MAKE[name]()
        loss = seeded(estimator.differentiable_loss, program.model, program.guide, data)
        parameters = [program.theta, program.a, program.m, program.r]
        gradients.append(torch.stack(torch.autograd.grad(loss, parameters, materialize_grads=True)))
    assert torch.equal(gradients[0][:, 0], gradients[1][:, 0])


def test_averaging_over_data_first_gives_another_value():
    program, x = gaussian(2000, off=0.4), repeated(2000)
    log_w = seeded(elbo.IWAE(5).draw, program.model, program.guide, (x,), {}, "fixed").terms.log_weight.detach()
    averaged_first = log_w.mean(1).logsumexp(0) - math.log(5)
    difference = values(elbo.IWAE(5), program, x) - averaged_first
    assert difference.mean() > 5 * difference.std() / len(x) ** 0.5


class Counted(Messenger):
    """Remember the values of a latent site, run by run."""

    def __init__(self):
        super().__init__()
        self.values = []

    def _pyro_post_sample(self, msg):
        if msg["name"] == "z":
            self.values.append(msg["value"].detach())


DRAWN = {"miwae": 6, "piwae": 6}  # K M


@pytest.mark.parametrize("name", MAKE)
def test_as_many_particles_are_drawn_as_were_asked_for(name):
    """pythae's ``get_nll(n_samples=10, batch_size=100)`` draws 100."""
    program, x = gaussian(4, off=0.4), repeated(4)
    estimator, count = MAKE[name](), DRAWN.get(name, 3)
    for way in (estimator.loss, estimator.loss_and_grads, estimator.differentiable_loss):
        counted = Counted()
        way(program.model, counted(program.guide), x)
        assert counted.values[0].shape == (count, 4)
        assert counted.values[0].unique().numel() == count * 4  # and every one its own
        dreamt = name in ("wake_sleep", "rws") and way != estimator.loss
        assert len(counted.values) == 1 + dreamt  # a guide of one latent runs once
    assert estimator.total_particles == count
    if estimator.kl_weightable:
        assert elbo.Weighted(estimator, beta=0.5).total_particles == count


def test_a_phase_of_no_weight_is_not_run():
    program, counted = gaussian(4, off=0.4), Counted()
    elbo.RWS(3).loss_and_grads(program.model, counted(program.guide), repeated(4))
    assert len(counted.values) == 1


def test_as_many_particles_are_evaluated_as_were_asked_for():
    vae, counted = small_vae(), Counted()
    guide = vae.guide
    vae.guide = counted(guide)
    held_out_elbo(vae, as_images(binary(7)), num_particles=11)
    assert [value.shape for value in counted.values] == [(11, 7, 2)]
    with own_store(vae):
        assert draw_terms(vae, binary(7), num_particles=9).log_weight.shape == (9, 7)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_value_needs_no_gradient(name):
    """Evaluating builds no graph, so that a guide without reparameterization can be judged by any bound."""
    program, x, seen = discrete(4), repeated(4), []

    def model(x):
        seen.append(torch.is_grad_enabled())
        program.model(x)

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


def test_particles_are_not_a_baseline_for_themselves():
    """A single partition of the TVO centres by the mean of all particles: its φ-gradient is (K − 1)/K of the ELBO's."""
    batch = 100_000
    program, x = discrete(batch), repeated(batch)

    def gradient(estimator):
        loss = seeded(estimator.differentiable_loss, program.model, program.guide, x)
        return -torch.autograd.grad(loss, program.phi)[0]

    log_joint, log_q = program.log_table(x[:1])
    bound = (log_q.exp() * (log_joint - log_q)).sum()
    exact = torch.autograd.grad(bound, program.phi)[0][0]
    assert_mean(gradient(elbo.TVO(2, partitions=1)), exact / 2)
    assert_mean(gradient(elbo.Reinforce(2)), exact)


def test_the_weighting_of_a_weighted_estimator_is_that_of_the_one_inside():
    """The terms are weighted already when they are drawn; weighting them again would weight the KL twice."""
    noise = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms = elbo.Terms(*noise)
    inner, whole = (e.weighting(terms) for e in (elbo.IWAE(4), elbo.Weighted(elbo.IWAE(4), beta=0.5)))
    assert torch.equal(inner.value, whole.value)
    assert torch.equal(inner.theta, whole.theta)
