"""Replicates: batched over parameters, each equals a separate run on the same noise."""

import copy
import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from torch import nn

from pyro_vae import VAE, Hook, InputError, NonFiniteError, Replicates, evaluate, fit
from pyro_vae.cli.main import main
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.engines.compiled import replicated as batching
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.compiled.step import StepFunction
from pyro_vae.engines.compiled.trace import traced
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.program.adapter import as_program

R, B, D, Z = (
    3,
    8,
    5,
    2,
)  # B Z = 16: torch samples normals in blocks of sixteen, so R samples in a row equal one of R rows


def make(seed, likelihood="bernoulli", **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE((D,), Z, (7,), likelihood, activation="tanh", **more).double()


def data(count=B):
    return torch.bernoulli(torch.full((count, D), 0.4, dtype=torch.float64), generator=torch.Generator().manual_seed(1))


def together(programs, estimator, steps=3, rate=0.01, optimizer="adam", **more):
    replicates = Replicates(copy.deepcopy(programs), **more)
    with CompiledEngine(replicates, estimator, optimizer, 5.0, inductor=False) as engine, torch.random.fork_rng():
        torch.manual_seed(7)
        infos = [engine.step(data(), rate) for _ in range(steps)]
    return replicates.programs, infos


def one_by_one(programs, estimators, steps=3, rates=(0.01,) * R, optimizer="adam", weights=(1.0,) * R):
    """Take the same steps by engine svi, the replicates in turn, so that they share one stream of noise."""
    programs = [copy.deepcopy(program) for program in programs]
    engines = [SVIEngine(p, e, optimizer, 5.0, kl_weighted=True) for p, e in zip(programs, estimators, strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        infos = []
        for _ in range(steps):
            row = []
            for engine, rate, weight in zip(engines, rates, weights, strict=True):
                with engine:
                    row.append(engine.step(data(), rate, weight).objective)
            infos.append(row)
    return programs, infos


def assert_same(ours, theirs, tolerance=1e-10):
    for mine, other in zip(ours, theirs, strict=True):
        for (name, tensor), reference in zip(mine.state_dict().items(), other.state_dict().values(), strict=True):
            assert_close(tensor, reference, tolerance), name


REPARAMETRIZED_ONCE = ["trace_elbo", "analytic_kl", "stl", "iwae", "dreg", "miwae", "vimco", "tvo", "beta"]


@pytest.mark.parametrize("name", REPARAMETRIZED_ONCE)
def test_each_equals_a_separate_run(name):
    programs = [make(seed) for seed in range(R)]
    ours, infos = together(programs, ESTIMATORS[name]())
    theirs, objectives = one_by_one(programs, [ESTIMATORS[name]() for _ in range(R)])
    assert_same(ours, theirs)
    for info, row in zip(infos, objectives, strict=True):
        assert info.replicates == pytest.approx(row, rel=1e-10)
        assert info.objective == pytest.approx(sum(row) / R, rel=1e-10)


def test_separate_learning_rates():
    programs = [make(seed) for seed in range(R)]
    ours, _ = together(programs, SampledKL(), rates=[1.0, 0.1, 3.0])
    theirs, _ = one_by_one(programs, [SampledKL()] * R, rates=[0.01, 0.001, 0.03])
    assert_same(ours, theirs)


def test_separate_kl_weights():
    programs = [make(0) for _ in range(R)]
    ours, _ = together(programs, SampledKL(), kl_weights=[0.5, 1.0, 4.0])
    theirs, _ = one_by_one(programs, [SampledKL()] * R, weights=[0.5, 1.0, 4.0])
    assert_same(ours, theirs)
    assert not torch.equal(next(ours[0].parameters()), next(ours[2].parameters()))


def test_separate_buffers():
    def batch_norm():
        return nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, 2 * Z), nn.Unflatten(-1, (2, Z)))

    programs = []
    for seed in range(R):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            programs.append(make(seed, encoder=batch_norm()))
    ours, _ = together(programs, SampledKL(), optimizer="sgd")
    theirs, _ = one_by_one(programs, [SampledKL()] * R, optimizer="sgd")
    assert_same(ours, theirs)
    assert ours[1].state_dict()["encoder.1.num_batches_tracked"] == 3


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_can_be_batched(name):
    ours, infos = together([make(seed) for seed in range(R)], ESTIMATORS[name](), steps=2)
    assert len(set(infos[-1].replicates)) == R
    assert len({next(p.parameters()).sum().item() for p in ours}) == R


def test_each_replicate_has_its_own_discrete_samples():
    class Coin(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def model(self, x):
            pyro.module("coin", self)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Bernoulli(logits=self.logit.expand(len(x))))
                pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("coin", self)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Bernoulli(logits=self.logit.expand(len(x)) + x[:, 0]))

    replicates = Replicates([Coin() for _ in range(4)])
    with CompiledEngine(replicates, ESTIMATORS["vimco"](), inductor=False) as engine, torch.random.fork_rng():
        torch.manual_seed(0)
        info = engine.step(torch.randn(50, 1, dtype=torch.float64), 0.01)
    assert len(set(info.replicates)) == 4


def test_a_wrong_batching_is_caught(monkeypatch):
    """Noise that all replicates share would make them copies of one."""
    function = batching.ReplicatedFunction(Replicates([make(seed) for seed in range(R)]), SampledKL())
    weight = torch.ones((), dtype=torch.float64)
    graph = traced(function.single, data(), weight).graph
    sources = batching._noise_sources(graph, [data(), weight, *function.single.inputs()])
    batching._check(graph, function, sources, data(), weight)
    each = batching._each

    def first_for_all(graph, function, noise, shared):
        return each(graph, function, [n[:1].expand_as(n) for n in noise], shared)

    monkeypatch.setattr(batching, "_each", first_for_all)
    with pytest.raises(InputError, match=r"in replicate [12].*one run per seed"):
        batching._check(graph, function, sources, data(), weight)


def test_a_step_that_is_not_finite_names_the_replicate():
    programs = [make(seed, "gaussian:scale=0.5") for seed in range(R)]
    with torch.no_grad():
        programs[1].decoder.layers[-1].bias.fill_(1e200)
    replicates = Replicates(programs)
    before = copy.deepcopy(replicates.state_dict())
    with (
        CompiledEngine(replicates, SampledKL(), inductor=False) as engine,
        pytest.raises(NonFiniteError, match="replicate 1"),
    ):
        engine.step(data(), 0.01)
    assert all(torch.equal(t, before[n]) for n, t in replicates.state_dict().items())


def test_replicates_are_no_program():
    """What takes a program takes one of them, never the first for all."""
    replicates = Replicates([make(0), make(1)])
    assert not hasattr(replicates, "model")
    assert not hasattr(replicates, "guide")
    for take in (lambda: as_program(replicates, data()), lambda: evaluate(replicates, data())):
        with pytest.raises(InputError, match=r"Expected a program: .*; got Replicates"):
            take()
    assert as_program(replicates.programs[0], data()) is replicates.programs[0]


def test_validation_errors_of_replicates():
    with pytest.raises(InputError, match="at least one program"):
        Replicates([])
    with pytest.raises(InputError, match="one architecture"):
        Replicates([make(0), VAE((D,), 3)])
    shared = make(0)
    with pytest.raises(InputError, match="their own parameters"):
        Replicates([shared, shared])
    with pytest.raises(InputError, match=r"rates: 2 finite numbers"):
        Replicates([make(0), make(1)], rates=[1.0])
    with pytest.raises(InputError, match="engine compiled for replicates"):
        fit(Replicates([make(0), make(1)]), data(20), engine="svi", epochs=1, batch_size=8, device="cpu")


def test_resumed_replicates_keep_their_baselines():
    """A checkpoint holds the running baseline of each replicate."""
    x = data(40)
    states = []

    class Keep(Hook):
        def stepped(self, loop, info):
            states.append(copy.deepcopy(loop.state_dict()))

    def run(**more):
        replicates = Replicates([make(seed) for seed in range(R)])
        estimator = ESTIMATORS["reinforce_moving_average"](num_particles=2)
        settings = {"estimator": estimator, "epochs": 2, "batch_size": 16, "device": "cpu", "learning_rate": 0.01}
        return fit(replicates, x, **settings, **more).program

    whole = run(hooks=[Keep()])
    assert len(set(states[1]["engine"]["estimator"]["baseline"].tolist())) == R
    resumed = run(resume=states[1])
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


class Uniform(nn.Module):
    """Samples by torch.rand, a gamma and dropout."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.drop = nn.Dropout(0.5)

    def model(self, x):
        pyro.module("uniform", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(2.0 + 0 * x[..., 0], 1.0))
            pyro.sample("x", dist.Normal(z[..., None] + self.loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("uniform", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(2.0 + self.drop(self.loc.exp().expand(len(x))), 1.0))


def test_each_replicate_has_its_own_samples_of_other_kinds():
    replicates = Replicates([Uniform() for _ in range(4)])
    with CompiledEngine(replicates, SampledKL(3), inductor=False) as engine, torch.random.fork_rng():
        torch.manual_seed(0)
        info = engine.step(torch.randn(50, 1, dtype=torch.float64), 0.01)
    assert len(set(info.replicates)) == 4


def test_fit_reports_mean_and_each():
    x = data(40).float()
    replicates = Replicates([make(seed).float() for seed in range(R)])
    result = fit(replicates, x, validation=x, epochs=2, batch_size=16, device="cpu", eval_particles=5)
    last = result.history[-1]
    assert len(last.bounds) == R
    assert last.bound == pytest.approx(sum(last.bounds) / R)
    alone = StepFunction(replicates.programs[1], SampledKL())
    assert all(p.grad is None for p in alone.parameters.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicates") / "run"
    options = "train --replicates 3 --epochs 2 --device cpu --hidden [16] --latent_dim 2 --out"
    assert main([*options.split(), str(folder)]) == 0
    return folder


def test_a_run_of_replicates(run, capsys):
    found = json.loads((run / "result.json").read_text())
    assert len(set(found["replicates"])) == 3
    assert found["test_bound"]["value"] == pytest.approx(sum(found["replicates"]) / 3)
    assert main(["sample", str(run), "--replicate", "2", "--device", "cpu"]) == 0
    assert main(["sample", str(run), "--replicate", "3", "--device", "cpu"]) == 2
    assert "a replicate from 0 to 2" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    assert "replicates: 3, their bounds" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(len(line["bounds"]) == 3 for line in lines if line["kind"] == "epoch")


def test_a_comparison_of_replicates(tmp_path, capsys):
    options = "compare --estimators stl,iwae:num_particles=3 --replicates 2 --draws 20 --reference_draws 20 --steps 6"
    more = "--judge_particles 5 --judge_examples 20 --hidden [8] --latent_dim 2 --device cpu --json"
    file = tmp_path / "found.json"
    assert main([*options.split(), *more.split(), str(file), "--figure", str(tmp_path / "found.png")]) == 0
    assert "spread" in capsys.readouterr().out
    laps = json.loads(file.read_text())["laps"]
    assert all(len(set(lap["replicates"])) == 2 for lap in laps)
    assert laps[0]["log_evidence"]["value"] == pytest.approx(sum(laps[0]["replicates"]) / 2, rel=1e-5)
    assert main(["compare", "--estimators", "stl", "--replicates", "0", "--draws", "20"]) == 2
