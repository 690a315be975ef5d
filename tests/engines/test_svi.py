"""Engine ``svi``: the same as Pyro by hand; KL weight, clipping, learning rate and errors, each against a formula."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import VAE, FunctionProgram, InputError, NonFiniteError
from pyro_vae.elbo import analytic
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.engines.optimizers import OPTIMIZERS
from pyro_vae.engines.svi import SVIEngine

B, D, Z = 6, 5, 2


def make_vae(seed=0, likelihood="bernoulli", dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE((D,), latent_dim=Z, hidden=(7,), likelihood=likelihood, activation="tanh").to(dtype)


def make_data(seed=1, dtype=torch.float32):
    return torch.bernoulli(torch.full((B, D), 0.4, dtype=dtype), generator=torch.Generator().manual_seed(seed))


class Normals(nn.Module):
    """x ~ N(loc + shift, 1), z ~ N(0, 1) unused: the loss's gradient is Σ (loc + shift − x), free of noise."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def model(self, x):
        pyro.module("normals", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.loc + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    def gradients(self, x):
        """Return the loss's gradients in loc and shift, and the norm of both together."""
        residual = (self.loc + self.shift - x).detach().sum(0)
        return residual, residual.sum(), torch.cat([residual, residual.sum()[None]]).norm()


NORMAL_DATA = torch.tensor([[0.3, 1.2], [2.0, -0.7], [-1.1, 0.4]], dtype=torch.float64)


# ---- the same as Pyro by hand


@pytest.mark.parametrize("estimator", ["trace_elbo:num_particles=3", "trace_mean_field_elbo"])
def test_equals_a_plain_loop_of_pyro(estimator):
    name, _, particles = estimator.partition(":num_particles=")
    ours, theirs, x = make_vae(), make_vae(), make_data()
    elbo = ESTIMATORS[name](**({"num_particles": int(particles)} if particles else {}))
    with torch.random.fork_rng(), SVIEngine(ours, elbo, "adam:eps=1e-6") as engine:
        torch.manual_seed(5)
        bounds = [engine.step(x, 1e-2, 1.0).objective for _ in range(20)]
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(5)
        svi = SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 1e-2, "eps": 1e-6}), loss=elbo)
        losses = [svi.step(x) for _ in range(20)]
    assert bounds == [-loss / B for loss in losses]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(next(ours.parameters()), next(make_vae().parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_the_parameters(name):
    vae, start, x = make_vae(), make_vae(), make_data()
    with torch.random.fork_rng(), SVIEngine(vae, ESTIMATORS["trace_elbo"](), name) as engine:
        infos = [engine.step(x, 1e-2, 1.0) for _ in range(5)]
        state = engine.state_dict()
    assert all(math.isfinite(info.objective) and info.grad_norm > 0 for info in infos)
    for moved, before in zip(vae.parameters(), start.parameters(), strict=True):
        assert moved.isfinite().all()
        assert not torch.equal(moved, before)
    names = {type(value).__name__ for value in state["optimizer"].values()}
    assert len(state["optimizer"]) == len(list(vae.parameters()))
    assert names == {"dict"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_continues_from_its_state(name):
    """Ten steps are five, a new engine with the state of the first, and five more; to the last bit."""
    whole, halves, x = make_vae(), make_vae(), make_data()

    def steps(vae, number, state=None):
        with SVIEngine(vae, ESTIMATORS["trace_elbo"](), name) as engine:
            if state is not None:
                engine.load_state_dict(state)
            for _ in range(number):
                engine.step(x, 1e-2, 1.0)
            return engine.state_dict()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps(whole, 10)
        torch.manual_seed(0)
        steps(halves, 5, steps(halves, 5))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_leaves_the_parameter_store_as_it_was():
    with pyro.get_param_store().scope():
        pyro.param("encoder$$$mine", torch.tensor(3.0))
        with torch.random.fork_rng(), SVIEngine(make_vae(), ESTIMATORS["trace_elbo"]()) as engine:
            engine.step(make_data(), 1e-2, 1.0)
        assert dict(pyro.get_param_store().items()) == {"encoder$$$mine": torch.tensor(3.0)}


def test_trains_free_parameters_of_functions_under_their_constraint():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z[..., None], scale).expand((len(x), D)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = 0.1 * torch.ones(B, D)
    program = FunctionProgram(model, guide, x)
    with SVIEngine(program, ESTIMATORS["trace_mean_field_elbo"](), "adam") as engine, torch.random.fork_rng():
        for _ in range(400):
            engine.step(x, 0.05, 1.0)
    # the maximum-likelihood scale about zero is the root mean square, 0.1, whose logarithm is what is stored
    torch.testing.assert_close(program.free.scale.exp(), torch.tensor(0.1), rtol=1e-2, atol=0)


# ---- the KL's weight


@pytest.mark.parametrize("beta", [1e-3, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian:scale=0.3"])
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("closed", [False, True])
def test_kl_weight_is_that_of_the_formula(beta, likelihood, num_particles, closed):
    r"""Sampled: log p(x|z) + β (log p(z) − log q(z|x)); closed: log p(x|z) − β KL; value and gradients in float64."""
    vae, x = make_vae(likelihood=likelihood, dtype=torch.float64), make_data(dtype=torch.float64)
    kind = TraceMeanField_ELBO if closed else Trace_ELBO
    elbo = kind(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
    trained = copy.deepcopy(vae)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        with SVIEngine(trained, elbo, "sgd", kl_weighted=True) as engine:
            info = engine.step(x, 1.0, beta)  # at rate 1 the step is the gradient
        torch.manual_seed(2)
        z = vae.encode(x).rsample((num_particles,))

    loc, log_scale = vae.encoder(x).unbind(-2)
    heads = vae.decoder(z).unbind(-2)
    if likelihood == "bernoulli":
        log_px_z = analytic.log_bernoulli(x, *heads)
    else:
        log_px_z = analytic.log_gaussian(x, *heads, torch.tensor(0.3, dtype=torch.float64).log())
    if closed:
        terms = log_px_z.mean(0) - beta * analytic.kl_to_standard_normal(loc, log_scale)
    else:
        kl = analytic.log_gaussian(z, loc, log_scale) - analytic.log_standard_normal(z)
        terms = (log_px_z - beta * kl).mean(0)
    (-terms.sum()).backward()
    assert info.kl_weight == beta
    assert_close(torch.tensor(info.objective, dtype=torch.float64), terms.mean().detach())
    for after, before in zip(trained.parameters(), vae.parameters(), strict=True):
        assert_close((before - after).detach(), before.grad)


def test_kl_weight_matters():
    """The identity above would also hold if both sides ignored β."""
    vae, x = make_vae(), make_data()
    losses = []
    for beta in (0.3, 1.0):
        with torch.random.fork_rng(), SVIEngine(vae, ESTIMATORS["trace_elbo"](), kl_weighted=True) as engine:
            torch.manual_seed(0)
            losses.append(engine.step(x, 1e-12, beta).objective)
    assert abs(losses[0] - losses[1]) > 1e-2


# ---- clipping and learning rate


@pytest.mark.parametrize("share", [0.1, 0.999, 1.001, 100.0])
def test_clips_the_norm_of_the_whole_gradient(share):
    program = Normals()
    start = [p.detach().clone() for p in program.parameters()]
    *gradients, norm = program.gradients(NORMAL_DATA)
    limit = share * norm.item()
    with SVIEngine(program, ESTIMATORS["trace_elbo"](), "sgd", clip_norm=limit) as engine, torch.random.fork_rng():
        info = engine.step(NORMAL_DATA, 0.01, 1.0)
    assert info.grad_norm == pytest.approx(norm.item(), rel=1e-12)
    factor = min(1.0, limit / (norm.item() + 1e-6))  # torch's own guard against a norm of 0
    for parameter, before, gradient in zip(program.parameters(), start, gradients, strict=True):
        assert_close(parameter.detach(), before - 0.01 * factor * gradient, 1e-12)


@pytest.mark.parametrize("resumed", [False, True])
def test_every_step_uses_the_learning_rate_it_is_given(resumed):
    program, reference = Normals(), Normals()
    rates = [0.01, 0.2, 0.003, 0.07]
    engine = SVIEngine(program, ESTIMATORS["trace_elbo"](), "sgd:momentum=0.5")
    velocity = [0.0, 0.0]
    with torch.random.fork_rng():
        for step, rate in enumerate(rates):
            if resumed and step == 2:
                state = engine.state_dict()
                engine = SVIEngine(program, ESTIMATORS["trace_elbo"](), "sgd:momentum=0.5")
                engine.load_state_dict(state)
            with engine:
                assert engine.step(NORMAL_DATA, rate, 1.0).learning_rate == rate
            gradients = reference.gradients(NORMAL_DATA)[:2]
            velocity = [0.5 * v + g for v, g in zip(velocity, gradients, strict=True)]
            with torch.no_grad():
                for parameter, v in zip(reference.parameters(), velocity, strict=True):
                    parameter -= rate * v
            for ours, theirs in zip(program.parameters(), reference.parameters(), strict=True):
                assert_close(ours.detach(), theirs.detach(), 1e-12)


def test_a_loaded_state_is_given_back_before_the_first_step():
    with torch.random.fork_rng(), SVIEngine(make_vae(), ESTIMATORS["trace_elbo"]()) as engine:
        engine.step(make_data(), 1e-2, 1.0)
        state = engine.state_dict()
    other = SVIEngine(make_vae(), ESTIMATORS["trace_elbo"]())
    other.load_state_dict(state)
    assert other.state_dict()["steps"] == 1
    assert other.state_dict()["optimizer"].keys() == state["optimizer"].keys()


# ---- what is not finite


class Failing(nn.Module):
    """A program whose ``value`` comes in at one place in one step."""

    def __init__(self, place, value, at):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.place, self.value, self.at, self.calls = place, value, at, 0

    def bad(self, place, x):
        """Return 0, or the planted value."""
        return self.value * x.new_ones(()) if place == self.place and self.calls >= self.at else x.new_zeros(())

    def guide(self, x):
        self.calls += 1
        pyro.module("failing", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.weight * x[..., 0] + self.bad("z", x), 1.0))

    def model(self, x):
        pyro.module("failing", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = (self.weight * z)[..., None].expand(x.shape) + self.bad("x", x)
            scale = 1.0 + self.bad("scale", x)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("place", "value", "sites"),
    [
        ("x", math.inf, "log p of site x"),
        ("x", math.nan, "log p of site x"),
        ("x", 1e30, "log p of site x"),  # finite itself; its square is not
        ("scale", math.nan, "log p of site x"),
        ("z", math.nan, "value of site z, log q of site z, log p of site z, log p of site x"),
        ("z", math.inf, "value of site z"),
    ],
)
@pytest.mark.parametrize("validation", [False, True])
def test_a_loss_that_is_not_finite_is_refused_with_its_site(place, value, sites, validation):
    program, x = Failing(place, value, at=3), make_data()
    with (
        torch.random.fork_rng(),
        pyro.validation_enabled(validation),
        SVIEngine(program, ESTIMATORS["trace_elbo"]()) as engine,
    ):
        engine.step(x, 0.1, 1.0)
        engine.step(x, 0.1, 1.0)
        kept, state = program.weight.item(), engine.state_dict()
        with pytest.raises(NonFiniteError, match=f"in step 3, not finite: .*{sites}.* Try a smaller") as caught:
            engine.step(x, 0.1, 1.0)
    assert program.weight.item() == kept
    assert caught.value.step == 3
    assert "\n" not in str(caught.value)
    (optimizer,) = state["optimizer"].values()
    (moments,) = optimizer["state"].values()
    assert moments["step"] == 2


def test_a_gradient_that_is_not_finite_is_refused_with_its_parameter():
    """√w at w = 0: the loss is finite, its gradient is not."""

    def model(x):
        weight = pyro.param("weight", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] + weight.sqrt(), 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.ones(3, 2)
    program = FunctionProgram(model, guide, x)
    with (
        torch.random.fork_rng(),
        SVIEngine(program, ESTIMATORS["trace_elbo"]()) as engine,
        pytest.raises(NonFiniteError, match=r"in step 1, not finite: gradient of free\.weight"),
    ):
        engine.step(x, 0.1, 1.0)
    assert program.free.weight.item() == 0.0


def test_an_error_of_the_program_itself_is_passed_on():
    """A ValueError from anywhere must not be called "not finite"."""
    program, x = make_vae(), make_data()
    with torch.random.fork_rng(), SVIEngine(program, ESTIMATORS["trace_elbo"]()) as engine:
        engine.step(x, 0.1, 1.0)
        program.decode = lambda z: int("of my own")
        with pytest.raises(ValueError, match=r"invalid literal for int.*of my own"):
            engine.step(x, 0.1, 1.0)


# ---- validation errors


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adaam", "Expected an optimizer, one of adadelta, .*; got 'adaam'. Try 'adam'"),
        ("adam:epss=1", r"an argument of optimizer adam, one of betas, eps, .*; got 'epss'"),
        ("adam:lr=1", "got 'lr'. Try adam alone for its defaults .lr is set separately"),
        ("adam:params=1", "got 'params'"),
        ("adam:eps=-1", "got 'adam:eps=-1': Invalid epsilon value"),
        ("adam:betas=3", "got 'adam:betas=3'"),
        ("sgd:nesterov=true", "Nesterov momentum requires"),
        ("adam:eps", "Expected name:key=value,key=value; got 'adam:eps'. Try a text such as"),
        ("adam:eps=[", r"Expected a number or a word; got '\['"),
        ("", "got ''"),
    ],
)
def test_refuses_optimizers(optimizer, message):
    with pytest.raises(InputError, match=message):
        SVIEngine(make_vae(), ESTIMATORS["trace_elbo"](), optimizer)


def test_refuses_an_estimator_that_samples_to_guess_its_plates():
    with pytest.raises(InputError, match=r"Try Trace_ELBO\(vectorize_particles=True, max_plate_nesting=1\)"):
        SVIEngine(make_vae(), Trace_ELBO(vectorize_particles=True))
