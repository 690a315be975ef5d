"""Engines as values: their specifications, what a checkpoint stores, and the weight of the KL they are started for."""

import io
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from toys import binary, small_vae

from pyro_vae import Hook, InputError, fit
from pyro_vae.base.registry import from_spec, to_spec
from pyro_vae.cli.main import main
from pyro_vae.data import Images
from pyro_vae.elbo import SampledKL, trace_elbo
from pyro_vae.engines import ENGINES, Auto, Compiled, CompiledEngine, StockSVI, SVIEngine, select
from pyro_vae.engines.batches import Batches
from pyro_vae.models.replicates import Replicates
from pyro_vae.training.folder import Run

SPECS = {
    "svi": StockSVI(),
    "auto": Auto(),
    "compiled": Compiled(),
    "compiled:inductor=false": Compiled(inductor=False),
}


# ---- specifications


@pytest.mark.parametrize("text", SPECS)
def test_a_value_and_its_specification_round_trip(text):
    assert to_spec(ENGINES, SPECS[text]) == text
    assert from_spec(ENGINES, text, "engine") == SPECS[text]


def test_every_engine_round_trips():
    """A new row of the table is in the grid above."""
    assert {type(value) for value in SPECS.values()} == set(ENGINES.values())


def test_a_value_of_no_row_has_no_specification():
    @dataclass(frozen=True)
    class Other:
        """Not in the table."""

    for value in (Other(), Compiled, "compiled"):
        with pytest.raises(InputError, match=r"a value of one of svi, compiled, auto; got .*a name with arguments"):
            to_spec(ENGINES, value)


# ---- checkpoints


class Keep(Hook):
    """Keeps the engine's name as the loop has it, and the state after the first step, as a checkpoint holds it."""

    def started(self, loop):
        self.name, self.why, self.engine = loop.engine_name, loop.why, loop.engine

    def stepped(self, loop, info):
        if loop.position.step == 1:
            file = io.BytesIO()
            torch.save(loop.state_dict(), file)
            file.seek(0)
            self.state = torch.load(file, weights_only=True)


def train(engine, resume=None, keep=None):
    settings = {"epochs": 2, "batch_size": 4, "device": "cpu", "learning_rate": 0.01}
    return fit(small_vae(), binary(), engine=engine, resume=resume, hooks=[keep or Keep()], **settings)


@pytest.mark.parametrize("engine", [StockSVI(), Compiled(inductor=False)])
@pytest.mark.parametrize("asked", ["auto", "the same"])
def test_a_checkpoint_stores_the_specification_and_resumes_with_it(engine, asked):
    keep, resumed = Keep(), Keep()
    whole = train(engine, keep=keep)
    assert keep.state["engine_name"] == to_spec(ENGINES, engine)
    again = train("auto" if asked == "auto" else engine, keep.state, resumed)
    assert resumed.name == to_spec(ENGINES, engine)
    assert isinstance(resumed.engine, SVIEngine if engine == StockSVI() else CompiledEngine)
    assert resumed.why == "the run began with it"
    assert all(map(torch.equal, whole.program.parameters(), again.program.parameters()))


def test_a_checkpoint_resumes_with_no_other_engine():
    keep = Keep()
    train(Compiled(inductor=False), keep=keep)
    with pytest.raises(InputError, match=r"engine compiled:inductor=false, with which the run began; got compiled\."):
        train(Compiled(), keep.state)


def test_the_checkpoint_of_a_run_stores_the_specification(tmp_path):
    out = tmp_path / "run"
    options = "train --epochs 1 --device cpu --hidden [8] --latent_dim 2 --engine compiled:inductor=false --out"
    assert main([*options.split(), str(out)]) == 0
    assert Run.open(out).load_checkpoint()["engine_name"] == "compiled:inductor=false"
    assert main(["train", "--resume", str(out), "--epochs", "2"]) == 0
    resumed = Run.open(out).load_checkpoint()
    assert (resumed["engine_name"], resumed["position"]["epoch"]) == ("compiled:inductor=false", 2)


# ---- the weight of the KL

VALUES = [StockSVI(), Compiled(inductor=False)]
REFUSED = r"Expected a KL weight of 1 in an engine not started for another; got 0\.5\. Try kl_weighted=True"


def batches(weights):
    images = Images(binary())
    return Batches(images, torch.arange(len(images)), len(images), 0, (0,), [0.01], weights)


@pytest.mark.parametrize("make", [SampledKL, trace_elbo])
@pytest.mark.parametrize("value", VALUES)
def test_a_kl_weight_on_an_engine_not_started_for_it_is_an_error(value, make):
    vae = small_vae()
    before = [p.detach().clone() for p in vae.parameters()]
    with value.start(vae, make()) as engine:
        with pytest.raises(InputError, match=REFUSED):
            engine.step(binary(), 0.01, 0.5)
        with pytest.raises(InputError, match=REFUSED):
            engine.prepare(binary(), 0.5)
        with pytest.raises(InputError, match=REFUSED):
            list(engine.run(batches([0.5])))
        assert all(map(torch.equal, vae.parameters(), before))
        assert engine.state_dict()["steps"] == 0
        assert engine.step(binary(), 0.01, 1.0).kl_weight == 1.0


@pytest.mark.parametrize("value", VALUES)
def test_an_engine_started_for_it_weights_the_kl(value):
    with value.start(small_vae(), SampledKL(), kl_weighted=True) as engine:
        engine.prepare(binary(), 0.5)
        assert engine.step(binary(), 0.01, 0.5).kl_weight == 0.5
        ((info,),) = engine.run(batches([0.25]))
        assert info.kl_weight == 0.25


@pytest.mark.parametrize("kl_weighted", [True, False])
@pytest.mark.parametrize(
    ("make", "steps", "chosen"),
    [
        (SampledKL, 500, StockSVI()),
        (SampledKL, 10**6, Compiled()),
        (partial(TraceEnum_ELBO, max_plate_nesting=1), 10**6, StockSVI()),
    ],
)
def test_what_auto_chooses_is_started_alike(make, steps, chosen, kl_weighted, monkeypatch):
    """For a few steps, for many, and for many with an estimator that cannot be compiled."""
    monkeypatch.setattr(select, "has_compiler", lambda device: True)
    monkeypatch.setattr("pyro_vae.engines.compiled.engine.compile_graph", lambda graph, inputs: graph)
    value, engine, _ = Auto().choose(small_vae(), make(), "adam", None, binary(), steps, kl_weighted=kl_weighted)
    assert value == chosen
    with engine, nullcontext() if kl_weighted else pytest.raises(InputError, match=REFUSED):
        engine.prepare(binary(), 0.5)


def test_replicates_with_weights_need_no_more():
    """A weight for each replicate is a weight, whatever the engine was started for."""
    replicates = Replicates([small_vae(), small_vae()], kl_weights=[0.5, 2.0])
    with Compiled(inductor=False).start(replicates, SampledKL()) as engine:
        assert engine.step(binary(), 0.01).kl_weight == 0.5
        assert engine.step(binary(), 0.01, 0.5).kl_weight == 0.25
