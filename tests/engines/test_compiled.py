"""Engine ``compiled``: the numbers of engine ``svi`` for every estimator and family; what cannot be traced."""

import copy
import functools
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from checks import assert_close
from programs import PROGRAMS as ANYBODYS
from pyro.infer import RenyiELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_vae import VAE, InputError, NonFiniteError, Replicates, fit
from pyro_vae.base.random import isolated_rng, seed_noise
from pyro_vae.data import Images
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.engines import select as choice
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.catalogue import ENGINES
from pyro_vae.engines.compiled import engine as compiled
from pyro_vae.engines.compiled.cuda_graphs import Recording
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.compiled.step import StepFunction, equal_estimator
from pyro_vae.engines.compiled.terms import CompiledTerms
from pyro_vae.engines.compiled.trace import check_step, reference_run, traced
from pyro_vae.engines.optimizers import OPTIMIZERS
from pyro_vae.engines.protocol import one_by_one
from pyro_vae.engines.select import Auto, StockSVI
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.evaluation import chunking
from pyro_vae.evaluation.methods import bounds as likelihood
from pyro_vae.evaluation.methods.bounds import importance_bounds
from pyro_vae.program.adapter import as_program
from pyro_vae.program.contexts import evaluating
from pyro_vae.training.loop import Hook

B, D, Z = 6, 5, 2
FAMILIES = ["bernoulli", "gaussian:scale=0.3", "learned_gaussian:min_scale=0.05"]
SCORE = ["reinforce", "reinforce_moving_average", "vimco", "ovis", "ovis_mc", "wake_sleep", "rws", "tvo"]
REPARAMETRIZED = [n for n in ESTIMATORS if n not in SCORE]


def make_vae(likelihood="bernoulli", dtype=torch.float64, device="cpu", **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE((D,), Z, (7,), likelihood, activation="tanh", **more).to(device, dtype)


def make_data(count=B, dtype=torch.float64, device="cpu"):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.bernoulli(torch.full((count, D), 0.4, dtype=dtype)).to(device)


def steps(kind, program, x, estimator, *, optimizer="sgd", rate=0.01, sizes=(B, B), clip_norm=None, weight=1.0, **more):
    """Take steps on batches of some sizes from one seed; return what they said and the state after; undo them."""
    before = copy.deepcopy(program.state_dict())
    try:
        start = functools.partial(kind, program, copy.deepcopy(estimator), optimizer, clip_norm)
        with start(kl_weighted=weight != 1, **more) as engine, torch.random.fork_rng():
            torch.manual_seed(5)
            infos = [engine.step(x[:size], rate, weight) for size in sizes]
        return infos, copy.deepcopy(program.state_dict())
    finally:
        program.load_state_dict(before)


def assert_equal_steps(program, x, estimator, tolerance=1e-10, inductor=False, **more):
    """Assert that both engines say the same and move parameters and buffers alike."""
    ours, state = steps(CompiledEngine, program, x, estimator, inductor=inductor, **more)
    theirs, reference = steps(SVIEngine, program, x, estimator, **more)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.objective == pytest.approx(other.objective, rel=tolerance)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=tolerance)
        assert mine.kl_weight == other.kl_weight
    assert any(not torch.equal(reference[n], t) for n, t in program.state_dict().items())
    for name, tensor in reference.items():
        assert_close(state[name], tensor, tolerance)


# ---- equality with engine svi


@pytest.mark.parametrize("likelihood", FAMILIES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_loss_and_every_gradient_equal_engine_svi(name, likelihood, device):
    """Under SGD a step is the gradient, so that equal parameters after it are equal gradients."""
    vae, x = make_vae(likelihood, device=device), make_data(device=device)
    assert_equal_steps(vae, x, ESTIMATORS[name](), rate=1e-3)


@pytest.mark.parametrize("name", ["trace_elbo", "trace_mean_field_elbo", "iwae", "stl"])
def test_particles_and_batches_of_other_sizes(name):
    assert_equal_steps(make_vae(), make_data(), ESTIMATORS[name](num_particles=7), sizes=[B, B - 2, B])


@pytest.mark.parametrize("name", ANYBODYS)
@pytest.mark.parametrize("estimator", ["trace_elbo", "dreg", "stl"])
def test_anybodys_program(name, estimator):
    """Functions with constrained parameters and batch normalisation, modules, Pyro modules, hierarchies."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(B, 6)
        program = as_program(ANYBODYS[name](), x)
    if name == "functions" and estimator != "trace_elbo":
        program.train(False)
    assert_equal_steps(program, x, ESTIMATORS[estimator](), tolerance=1e-5)


class Categories(nn.Module):
    """A latent class for every example: for estimators without reparameterization."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.randn(3, D, dtype=torch.float64))
        self.encoder = nn.Linear(D, 3, dtype=torch.float64)

    def model(self, x):
        pyro.module("categories", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", dist.Normal(self.means[z], 0.7).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("categories", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))


@pytest.mark.parametrize("name", SCORE)
def test_discrete_latents(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert_equal_steps(Categories(), make_data(), ESTIMATORS[name]())


class Binary(nn.Module):
    """Two layers of Bernoulli latents, a normal one between them."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(4, D, dtype=torch.float64)
        self.first, self.second = nn.Linear(D, 3, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)

    def model(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(x.new_full((3,), 0.5)).to_event(1))
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            e = pyro.sample("e", dist.Bernoulli(logits=z.expand(*z.shape[:-1], 4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(e)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=self.first(x)).to_event(1))
            z = pyro.sample("z", dist.Normal(d.sum(-1, keepdim=True), 1.0).to_event(1))
            pyro.sample("e", dist.Bernoulli(logits=self.second(torch.cat([d, z], -1))).to_event(1))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(("name", "particles"), [("disarm", 3), ("rebar", 1), ("concrete", 2)])
def test_bernoulli_latents(name, particles, vectorize):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimator = ESTIMATORS[name](num_particles=particles, vectorize_particles=vectorize)
        assert_equal_steps(Binary(), make_data(), estimator, sizes=(B, B - 2, B))


class Flow(nn.Module):
    """A normalizing flow as guide, and a positive parameter of a Pyro module."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(Z, D, dtype=torch.float64)
        self.flow = transforms.affine_autoregressive(Z, hidden_dims=[8]).double()
        self.guide_of = PyroModule("guide_of")
        self.guide_of.scale = PyroParam(torch.tensor(0.6, dtype=torch.float64), constraints.positive)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("flow", self.flow)
        pyro.module("guide_of", self.guide_of)
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(x.new_zeros(len(x), Z), self.guide_of.scale).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


@pytest.mark.parametrize("name", ["trace_elbo", "iwae"])
def test_a_flow_as_guide(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert_equal_steps(Flow(), make_data(), ESTIMATORS[name]())


def test_dropout_and_batch_normalisation_sample_and_count_as_in_eager():
    """Running statistics count each step once: preparing changes no buffer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 2 * Z), nn.Unflatten(-1, (2, Z))
        )
    vae = make_vae(encoder=encoder)
    assert_equal_steps(vae, make_data(), ESTIMATORS["trace_elbo"]())
    counted = steps(CompiledEngine, vae, make_data(), SampledKL(), inductor=False)[1]["encoder.1.num_batches_tracked"]
    assert counted == 2
    assert_equal_steps(vae.train(False), make_data(), ESTIMATORS["trace_elbo"]())


def test_images_through_convolutions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Unflatten(-1, (1, D)),
            nn.Conv1d(1, 3, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9, 2 * Z),
            nn.Unflatten(-1, (2, Z)),
        )
    assert_equal_steps(make_vae(encoder=encoder), make_data(), ESTIMATORS["trace_elbo"]())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name):
    """One optimiser over all tensors moves them as Pyro's one a tensor does."""
    assert_equal_steps(make_vae(), make_data(), SampledKL(), optimizer=name, rate=0.01, sizes=[B] * 5)


def test_clipping():
    vae, x = make_vae(), make_data()
    assert steps(CompiledEngine, vae, x, SampledKL(), inductor=False)[0][0].grad_norm > 5
    assert_equal_steps(vae, x, SampledKL(), clip_norm=1.0, rate=0.1)


@pytest.mark.parametrize("name", ["trace_elbo", "trace_mean_field_elbo", "stl", "iwae"])
def test_the_weight_of_the_kl(name):
    assert_equal_steps(make_vae(), make_data(), ESTIMATORS[name](), weight=0.3)


def test_the_weight_may_change_from_step_to_step():
    vae, x = make_vae(), make_data()
    found = []
    for kind, more in ((CompiledEngine, {"inductor": False}), (SVIEngine, {})):
        program = copy.deepcopy(vae)
        with kind(program, SampledKL(), kl_weighted=True, **more) as engine, torch.random.fork_rng():
            torch.manual_seed(5)
            found.append([engine.step(x, 0.01, weight).objective for weight in (1.0, 0.2, 0.6, 1.0)])
    assert found[0] == pytest.approx(found[1], rel=1e-10)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
def test_parameters_that_are_frozen_or_unused_stay():
    vae, x = make_vae(), make_data()
    vae.decoder.requires_grad_(False)
    assert_equal_steps(vae, x, SampledKL())
    state = steps(CompiledEngine, vae, x, SampledKL(), inductor=False)[1]
    assert all(torch.equal(state[f"decoder.{n}"], p) for n, p in vae.decoder.named_parameters())
    unused = make_vae()
    unused.extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    after = steps(CompiledEngine, unused, x, SampledKL(), inductor=False, optimizer="adamw:weight_decay=0.5")[1]
    assert torch.equal(after["extra"], torch.ones(3, dtype=torch.float64))  # not even decayed: it has no gradient
    assert not torch.equal(after["decoder.layers.0.weight"], unused.state_dict()["decoder.layers.0.weight"])


COMPILED = [
    ("trace_elbo", "bernoulli", torch.float32, 2e-5),
    ("dreg", "learned_gaussian:min_scale=0.05", torch.float64, 1e-12),
    ("vimco", "bernoulli", torch.float64, 1e-12),
]


@pytest.mark.parametrize(("name", "likelihood", "dtype", "tolerance"), COMPILED)
def test_compiled_by_inductor(name, likelihood, dtype, tolerance, device):
    vae, x = make_vae(likelihood, dtype, device), make_data(dtype=dtype, device=device)
    assert_equal_steps(vae, x, ESTIMATORS[name](), tolerance, inductor=True, clip_norm=3.0)


# ---- validation errors


class Odd(nn.Module):
    """One parameter; the model does something with its sample."""

    def __init__(self, does):
        super().__init__()
        self.loc, self.does = nn.Parameter(torch.tensor([0.5])), does

    def model(self, x):
        pyro.module("odd", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * self.does(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :1], 0.5).to_event(1))


def counter():
    count = iter(range(1, 10_000))
    return lambda z: 1.0 / next(count)


UNTRACEABLE = {
    "branch": (lambda z: 1.0 if z.sum() > 0 else 2.0, r"traced once.*site 'z'.*test_compiled.py.*engine=.svi"),
    "item": (lambda z: 1.0 + z.mean().item(), r"traced once.*site 'z'.*engine=.svi"),
    "numpy's noise": (lambda z: 5.0 * float(np.random.rand()), r"equals the program.*not torch's own.*engine=.svi"),
    "a counter": (counter(), r"equals the program.*engine=.svi"),
    "a number taken out": (lambda z: 1.0 + abs(z.detach().numpy().sum()), r"engine=.svi"),
}


@pytest.mark.parametrize("what", UNTRACEABLE)
def test_a_program_that_cannot_be_traced_is_refused(what):
    does, match = UNTRACEABLE[what]
    x = torch.randn(B, 1, generator=torch.Generator().manual_seed(0))
    program = Odd(does)
    with (
        isolated_rng(x.device, seed=0),  # NumPy's noise, too
        CompiledEngine(program, SampledKL(), inductor=False) as engine,
        pytest.raises(InputError, match=match),
    ):
        engine.step(x, 0.01)
    assert program.loc.item() == 0.5
    with CompiledEngine(Odd(lambda z: 1.5), SampledKL(), inductor=False) as engine:
        assert math.isfinite(engine.step(x, 0.01).objective)


def test_arguments_of_distributions_are_validated_before_tracing():
    program = Odd(lambda z: math.nan)
    with (
        CompiledEngine(program, SampledKL(), inductor=False) as engine,
        pytest.raises(InputError, match="valid arguments"),
    ):
        engine.step(torch.ones(B, 1), 0.01)


def test_another_elbo_of_pyro_is_refused():
    with pytest.raises(InputError, match=r"trace.*RenyiELBO.*engine=.svi"):
        CompiledEngine(make_vae(), RenyiELBO())
    assert equal_estimator(SampledKL(3)) == SampledKL(3)


def test_a_missing_compiler_is_said(tmp_path):
    """In a separate process: torch caches for good what its compiler can do."""
    command = [sys.executable, "-m", "pyro_vae", "train", "--engine", "compiled", "--epochs", "1", "--device", "cpu"]
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.search(r"C\+\+ compiler.*g\+\+.*--engine svi", done.stderr.splitlines()[-1])
    assert not (tmp_path / "run").exists()


# ---- the check before the first step


def planted(graph, kind):
    """Return a graph that is wrong in one way."""
    wrong = copy.deepcopy(graph)
    nodes = [n for n in wrong.graph.nodes if n.op == "call_function"]
    if kind == "noise":  # drawn before, and frozen
        draw = next(n for n in nodes if n.target is torch.ops.aten.normal_.default)
        draw.target = torch.ops.aten.zero_.default
        draw.args, draw.kwargs = draw.args[:1], {}
    elif kind == "loss":
        output = next(n for n in wrong.graph.nodes if n.op == "output")
        with wrong.graph.inserting_before(output):
            changed = wrong.graph.call_function(torch.ops.aten.mul.Tensor, (output.args[0][0], 1.01))
        output.args = ([changed, *output.args[0][1:]],)
    elif kind == "gradient":
        output = next(n for n in wrong.graph.nodes if n.op == "output")
        with wrong.graph.inserting_before(output):
            changed = wrong.graph.call_function(torch.ops.aten.neg.default, (output.args[0][2],))
        output.args = ([*output.args[0][:2], changed, *output.args[0][3:]],)
    wrong.recompile()
    return wrong


@pytest.mark.parametrize("kind", ["noise", "loss", "gradient"])
def test_a_wrong_graph_is_caught(kind):
    function, x, weight = StepFunction(make_vae(), SampledKL()), make_data(), torch.ones((), dtype=torch.float64)
    step = traced(function, x, weight)
    reference = list(reference_run(function, x, weight, function.inputs()).values())
    assert check_step(step, function, x, weight, reference) <= 1e-12
    with pytest.raises(InputError, match=r"off by .*engine=.svi"):
        check_step(step.by(planted(step.graph, kind)), function, x, weight, reference)


def test_a_wrong_compilation_stops_the_run(monkeypatch):
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: planted(graph, "gradient"))
    vae = make_vae()
    before = copy.deepcopy(vae.state_dict())
    with CompiledEngine(vae, SampledKL()) as engine, pytest.raises(InputError, match="equals the program"):
        engine.step(make_data(), 0.01)
    assert all(torch.equal(t, before[n]) for n, t in vae.state_dict().items())


# ---- how often the program runs


class Counted(VAE):
    """Counts how often model and guide run, and on how many examples."""

    def __init__(self):
        super().__init__((D,), Z, (7,))
        self.models, self.guides = [], []

    def model(self, x):
        self.models.append(len(x))
        return super().model(x)

    def guide(self, x):
        self.guides.append(len(x))
        return super().guide(x)


def test_the_program_runs_twice_for_a_shape_of_batch_when_it_is_first_met():
    """Once eagerly, as the reference of the check, and once under the trace; never in a later step."""
    vae, x = Counted(), make_data(dtype=torch.float32)
    with CompiledEngine(vae, SampledKL(), inductor=False) as engine:
        engine.prepare(x)
        assert vae.models == vae.guides == [B, B]
        for size in (B, B - 2, B, B - 2):
            engine.step(x[:size], 0.01)
    assert vae.models == vae.guides == [B, B, B - 2, B - 2]


def test_compiling_a_graph_runs_the_program_no_more(monkeypatch):
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: copy.deepcopy(graph))
    vae = Counted()
    with CompiledEngine(vae, SampledKL()) as engine:
        engine.prepare(make_data(dtype=torch.float32))
    assert vae.models == vae.guides == [B, B]


def test_only_the_first_replicate_runs():
    first, second = Counted(), Counted()
    with CompiledEngine(Replicates([first, second]), SampledKL(), inductor=False) as engine:
        engine.step(make_data(dtype=torch.float32), 0.01)
    assert first.models == first.guides == [B, B]
    assert second.models == second.guides == []


# ---- steps that are not finite


def test_a_step_that_is_not_finite_changes_nothing():
    vae, x = make_vae("gaussian:scale=1e-3"), make_data()
    with CompiledEngine(vae, SampledKL(), inductor=False) as engine:
        engine.step(x, 1e-3)
        before = copy.deepcopy(vae.state_dict())
        with pytest.raises(NonFiniteError, match=r"step 2.*site x"):
            engine.step(x * math.inf, 1e-3)
        assert all(torch.equal(t, before[n]) for n, t in vae.state_dict().items())


# ---- in a training run


def trained(engine, resume=None, hooks=(), **more):
    images = Images(
        torch.randint(0, 256, (50, D), generator=torch.Generator().manual_seed(3), dtype=torch.uint8),
        binarize="dynamic",
    )
    settings = {"epochs": 3, "batch_size": 16, "device": "cpu", "learning_rate": 0.01, "kl_warmup": 1.5} | more
    return fit(make_vae(dtype=torch.float32), images, engine=engine, resume=resume, hooks=hooks, **settings)


PLAIN = "compiled:inductor=false"


@pytest.mark.parametrize("estimator", ["trace_elbo", "iwae", "beta:beta=2"])
def test_a_run_equals_that_of_engine_svi(estimator):
    """Batches, smaller last ones, warm-up, schedule: the same run to float32 rounding."""
    more = {"schedule": "cosine", "clip_norm": 20.0, "estimator": estimator}
    more |= {"kl_warmup": 0.0} if estimator.startswith("beta") else {}
    ours, theirs = trained(PLAIN, **more), trained("svi", **more)
    for mine, other in zip(ours.program.parameters(), theirs.program.parameters(), strict=True):
        assert_close(mine.detach(), other.detach(), 1e-4)
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine.objective == pytest.approx(other.objective, rel=1e-5)
        assert (mine.step, mine.kl_weight, mine.learning_rate) == (other.step, other.kl_weight, other.learning_rate)


class Cut(Hook):
    """Keeps the state after some step."""

    def __init__(self, step):
        self.step, self.state = step, None

    def stepped(self, loop, info):
        assert loop.settled
        if loop.position.step == self.step:
            self.state = copy.deepcopy(loop.state_dict())


@pytest.mark.parametrize("cut_at", [2, 4, 5, 9])
def test_a_resumed_run_is_bit_identical(cut_at):
    cut = Cut(cut_at)
    whole = trained(PLAIN, hooks=[cut])
    resumed = trained("auto", resume=cut.state)
    assert all(map(torch.equal, whole.program.parameters(), resumed.program.parameters()))
    assert [r.objective for r in whole.history] == [r.objective for r in resumed.history]


def test_a_compiled_run_is_bit_identical_when_resumed():
    cut = Cut(4)  # the next batch is the smaller one: still not the shape that is compiled
    whole = trained("compiled", hooks=[cut], epochs=2)
    resumed = trained("compiled", resume=cut.state, epochs=2)
    assert all(map(torch.equal, whole.program.parameters(), resumed.program.parameters()))


def test_a_run_resumes_with_the_engine_it_began_with():
    cut = Cut(3)
    trained("svi", hooks=[cut])
    with pytest.raises(InputError, match=r"engine svi, with which the run began; got compiled"):
        trained("compiled", resume=cut.state)


def test_the_default_engine_is_the_compiled_one_for_long_runs(monkeypatch):
    class Which(Hook):
        def started(self, loop):
            self.name, self.why = loop.engine_name, loop.why
            loop.stop("seen")

    def chosen(**more):
        which = Which()
        trained("auto", hooks=[which], **more)
        return which

    assert chosen().name == "svi"
    assert "12 steps" in chosen().why
    enough = choice.AMORTISES_FROM // 4
    assert chosen(epochs=enough - 1, kl_warmup=0.0).name == "svi"
    assert chosen(epochs=enough, kl_warmup=0.0).name == "compiled"
    untraceable = Odd(lambda z: 1.0 + z.mean().item())
    assert Auto().choose(untraceable, SampledKL(), "adam", None, torch.ones(B, 1), 10**6)[0] == StockSVI()
    value, _, reason = Auto().choose(make_vae(), RenyiELBO(), "adam", None, make_data(), 10**6)
    assert value == StockSVI()
    assert "RenyiELBO" in reason


def test_engines_are_specified_like_everything_else():
    assert set(ENGINES) == {"svi", "compiled", "auto"}
    with pytest.raises(InputError, match=r"engine.*'compiled'"):
        trained("compild")
    with pytest.raises(InputError, match=r"argument of engine compiled, one of inductor"):
        trained("compiled:speed=9")


# ---- whole steps on the device


def recording(vae, images, estimator=None, device="cpu", kl_weighted=False):
    function = StepFunction(vae, estimator or SampledKL(), kl_weighted=kl_weighted)
    optimizer = compiled.build_optimizer("adam", function.groups)
    graphs = {}

    def graph_for(x, weight):
        if x.shape not in graphs:
            graphs[x.shape] = traced(function, x, weight)
        return graphs[x.shape]

    return Recording(function, graph_for, optimizer, images, size=8)


def epoch(images, start=0, weights=None):
    count = -(-len(images) // 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2)).to(images.device)
    rates = [0.01 / (1 + i) for i in range(count)]
    return Batches(images, order, 8, start, (0,), rates, weights or [1.0] * count)


def test_an_epoch_that_ends_early_takes_the_steps_of_a_whole_one_up_to_there():
    """``max_steps`` gives the engine an order that is cut after some batches."""
    images = Images(make_data(60))
    whole, rows = epoch(images), []
    for batches in (whole, replace(whole, order=whole.order[: 3 * 8])):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            rows.append([row for _, found in recording(make_vae(), images).epoch(batches) for row in found])
    assert [len(found) for found in rows] == [8, 3]
    assert rows[1] == rows[0][:3]


def test_steps_on_the_device_equal_single_steps():
    """Without binarization both draw the same noise: epoch after epoch the same metrics and parameters."""
    images = Images(make_data(60))
    one, other = make_vae(), make_vae()
    weights = [0.1 * (i + 1) for i in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        device_steps = recording(one, images, kl_weighted=True)
        rows = [
            row for _ in range(2) for _, found in device_steps.epoch(epoch(images, weights=weights)) for row in found
        ]
    with torch.random.fork_rng(), CompiledEngine(other, SampledKL(), inductor=False, kl_weighted=True) as engine:
        torch.manual_seed(0)
        infos = [info for _ in range(2) for found in engine.run(epoch(images, weights=weights)) for info in found]
    sizes = [8] * 7 + [4]
    assert [-loss / size for ([loss], _), size in zip(rows, sizes * 2, strict=True)] == pytest.approx(
        [info.objective for info in infos],
        rel=1e-6,  # the learning rate is float32 on the device
    )
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(mine.detach(), theirs.detach(), 1e-6)


def test_after_a_step_that_is_not_finite_nothing_moves_on_the_device():
    pixels = make_data(64)
    vae, images = make_vae("gaussian:scale=0.5"), Images(pixels)
    order = epoch(images).order
    pixels[order[8 * 3]] = math.inf  # in the fourth batch
    device_steps = recording(vae, images, ESTIMATORS["sampled_kl"]())
    states = []
    original = Recording._step

    def watched(self, size):
        original(self, size)
        states.append(copy.deepcopy(vae.state_dict()))

    Recording._step = watched
    try:
        with torch.random.fork_rng():
            ((_, rows),) = device_steps.epoch(epoch(images))
    finally:
        Recording._step = original
    assert all(map(math.isfinite, rows[2][0] + rows[2][1]))
    assert not math.isfinite(rows[3][0][0])
    assert any(not torch.equal(states[1][n], states[2][n]) for n in states[2])
    assert all(torch.equal(states[2][n], states[-1][n]) for n in states[2])


def test_the_state_of_an_estimator_moves_on_the_device():
    images = Images(make_data(60))
    baseline = ESTIMATORS["reinforce_moving_average"]()
    twin = copy.deepcopy(baseline)
    one, other = make_vae(), make_vae()
    with torch.random.fork_rng(), pyro.get_param_store().scope():  # an eager step comes first, as preparing takes one
        copy.deepcopy(baseline).bound(one, images.batch(slice(0, 5)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in recording(one, images, baseline).epoch(epoch(images)):
            pass
    with torch.random.fork_rng(), CompiledEngine(other, twin, inductor=False) as engine:
        torch.manual_seed(0)
        for _ in engine.run(epoch(images)):
            pass
    assert float(baseline.average.mean) == pytest.approx(float(twin.average.mean), rel=1e-6)
    assert float(twin.average.mean) != 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnCuda:
    """Whole steps recorded in CUDA graphs."""

    def images(self, binarize="none", count=500):
        pixels = torch.randint(0, 256, (count, D), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        return Images(pixels, binarize=binarize).to("cuda")

    def test_a_replay_waits_for_nothing(self):
        vae, images = make_vae(dtype=torch.float32, device="cuda"), self.images("dynamic")
        device_steps = recording(vae, images)
        batches = epoch(images)
        for _ in device_steps.epoch(batches):
            pass
        device_steps._begin(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            device_steps.advance(60, 8)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_recorded_steps_equal_single_steps(self):
        images = self.images()
        found = []
        for kind in ("recorded", "single"):
            vae = make_vae("gaussian:scale=0.5", torch.float32, "cuda")
            torch.cuda.manual_seed(0)
            with CompiledEngine(vae, SampledKL(), inductor=False) as engine:
                run = engine.run if kind == "recorded" else functools.partial(one_by_one, engine)
                infos = [info for _ in range(2) for block in run(epoch(images)) for info in block]
            found.append((infos, [p.detach().clone() for p in vae.parameters()]))
        for mine, other in zip(found[0][0], found[1][0], strict=True):
            assert mine.objective == pytest.approx(other.objective, rel=1e-4)
        for mine, other in zip(found[0][1], found[1][1], strict=True):
            assert_close(mine, other, 1e-3)

    @pytest.mark.parametrize("engine", [PLAIN, "compiled"])
    def test_a_run_is_resumed_bit_identically(self, engine):
        images = self.images("dynamic", 60 * 8)

        class CutSettled(Cut):
            def stepped(self, loop, info):
                if loop.settled and loop.position.step >= self.step and self.state is None:
                    self.state = copy.deepcopy(loop.state_dict())

        cut = CutSettled(50)
        settings = {"epochs": 3, "batch_size": 8, "device": "cuda", "engine": engine}
        whole = fit(make_vae(dtype=torch.float32), images, hooks=[cut], **settings)
        resumed = fit(make_vae(dtype=torch.float32), images, resume=cut.state, **settings)
        assert all(map(torch.equal, whole.program.parameters(), resumed.program.parameters()))

    def test_a_run_learns_as_that_of_engine_svi(self):
        images = self.images("dynamic", 2000)
        bounds = []
        for engine in ("svi", "compiled"):
            result = fit(
                make_vae(dtype=torch.float32),
                images,
                validation=images,
                engine=engine,
                epochs=5,
                batch_size=50,
                device="cuda",
                eval_particles=50,
            )
            bounds.append(result.history[-1])
        assert abs(bounds[0].bound - bounds[1].bound) <= 5 * bounds[0].bound_standard_error


class Mixed(nn.Module):
    """Weights that meet the data in einsum and in sums: autograd gives them gradients of other strides."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(D, Z, 2, dtype=torch.float64))
        self.down = nn.Parameter(torch.randn(Z, D, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, D, dtype=torch.float64))

    def model(self, x):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            logits = torch.einsum("...z,zd->...d", z, self.down) + self.bias.sum(0) + self.bias.sum()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = torch.einsum("...d,dzh->h...z", x, self.up)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
def test_gradients_of_any_strides(optimizer):
    """A fused optimiser reads a gradient as if it lay in memory as the parameter does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert_equal_steps(Mixed(), make_data(), SampledKL(), optimizer=optimizer)


def test_data_with_stride_zero():
    x = torch.bernoulli(torch.full((1, D), 0.5)).expand(40, D)
    result = fit(make_vae(dtype=torch.float32), x, engine="compiled", epochs=1, batch_size=16, device="cpu")
    assert math.isfinite(result.history[-1].objective)


def test_an_optimizers_implementation_can_be_chosen():
    assert_equal_steps(make_vae(), make_data(), SampledKL(), optimizer="adam:foreach=true")


# ---- evaluation


@pytest.mark.parametrize("name", ANYBODYS)
def test_compiled_terms_are_the_same(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(B, 6)
        program = as_program(ANYBODYS[name](), x)
    with evaluating(program, x.device, seed=0):
        draw = CompiledTerms(program)
        for batch, count in ((x, 3), (x[:2], 3), (x, 5)):
            seed_noise(4, x.device)
            ours = draw(batch, count)
            seed_noise(4, x.device)
            theirs = draw_terms(program, batch, count)
            for part in ("log_px_z", "log_pz", "log_qz"):
                assert_close(getattr(ours, part), getattr(theirs, part), 1e-5)


def test_compiled_importance_bounds_are_the_same(device, monkeypatch):
    vae, images = make_vae(device=device), Images(make_data(45, device=device))
    monkeypatch.setattr(likelihood, "SCORED_AT_ONCE", 60)
    monkeypatch.setattr(chunking, "PARTICLES_AT_ONCE", 6)
    eager = importance_bounds(vae, images, 14, compiled=False)
    assert_close(importance_bounds(vae, images, 14, compiled=True), eager, 1e-12)
    x = images.batch(slice(0, 2))
    with evaluating(vae, x.device, seed=0):
        assert type(likelihood.scorer(vae, x, likelihood.COMPILED_FROM, (2, 2))) is CompiledTerms
        assert type(likelihood.scorer(vae, x, likelihood.COMPILED_FROM - 1, (2, 2))) is not CompiledTerms
    odd, ones = Odd(lambda z: 1.0 if z.sum() > 0 else 2.0), torch.ones(B, 1)
    with evaluating(odd, ones.device, seed=0):
        assert type(likelihood.scorer(odd, ones, likelihood.COMPILED_FROM, (2, 2))) is not CompiledTerms


def test_terms_that_cannot_be_traced_are_refused():
    program, x = Odd(lambda z: 1.0 if z.sum() > 0 else 2.0), torch.ones(B, 1)
    with evaluating(program, x.device, seed=0), pytest.raises(InputError, match="traced once"):
        CompiledTerms(program)(x, 3)
    frozen = Odd(lambda z: 5.0 * float(np.random.rand()))
    with (
        isolated_rng(x.device, seed=0),
        evaluating(frozen, x.device, seed=0),
        pytest.raises(InputError, match=r"log p\(x\|z\) off by"),
    ):
        CompiledTerms(frozen)(x, 1)
