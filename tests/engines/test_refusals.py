"""What an engine refuses is refused in one line: spline flows, errors of any kind while tracing, objects for names."""

import re

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pyro.optim
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from toys import binary, small_vae

from pyro_vae import Hook, InputError, Replicates, fit
from pyro_vae.elbo import SampledKL
from pyro_vae.engines import Auto, Compiled, CompiledEngine, StockSVI, select
from pyro_vae.engines.compiled import inductor, trace
from pyro_vae.engines.compiled.shapes import refuse_varying_shapes
from pyro_vae.engines.compiled.terms import CompiledTerms, can_be_compiled
from pyro_vae.program.contexts import evaluating

D, Z = 5, 2
SPLINES = {
    "linear": lambda: transforms.Spline(Z, count_bins=4),
    "quadratic": lambda: transforms.Spline(Z, count_bins=4, order="quadratic"),
    "coupling": lambda: transforms.spline_coupling(Z, count_bins=4),
    "autoregressive": lambda: transforms.spline_autoregressive(Z, count_bins=4),
    "conditional": lambda: transforms.conditional_spline(Z, D, count_bins=4),
}


class Flow(nn.Module):
    """A guide whose posterior is a standard normal through a flow."""

    def __init__(self, flow, scale=1.0):
        super().__init__()
        self.decoder, self.flow, self.scale = nn.Linear(Z, D), flow, scale

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("flow", self.flow)
        flow = self.flow.condition(x) if hasattr(self.flow, "condition") else self.flow
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(x.new_zeros(len(x), Z), self.scale).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def make_flow(name, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Flow(SPLINES[name](), **more)


def data(count=6):
    return torch.bernoulli(torch.full((count, D), 0.4), generator=torch.Generator().manual_seed(1))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return re.match(r"Expected .*; got .*\. Try .*\.$", text)


# ---- spline flows


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", SPLINES)
def test_a_spline_flow_is_refused(name, scale):
    """At scale 1e-3 every draw of the trace and of the check is inside the spline: both select as many entries."""
    with (
        CompiledEngine(make_flow(name, scale=scale), SampledKL(), inductor=False) as engine,
        pytest.raises(InputError, match=r"shapes are the same in each step.*by a mask.*engine=.svi") as error,
    ):
        engine.prepare(data())
    assert one_line(error)


class Engines(Hook):
    """Keeps the name of the engine and the reason for it."""

    def started(self, loop):
        self.name, self.why = loop.engine_name, loop.why
        loop.stop("seen")


@pytest.mark.parametrize("name", ["linear", "coupling"])
def test_auto_trains_a_spline_flow_by_svi_and_says_why(name, monkeypatch):
    monkeypatch.setattr(select, "AMORTISES_FROM", 2)
    monkeypatch.setattr(select, "has_compiler", lambda device: True)
    seen = Engines()
    fit(make_flow(name), data(40), epochs=2, batch_size=20, device="cpu", hooks=[seen])
    assert seen.name == "svi"
    assert re.match(r"it cannot be compiled: Expected a program whose shapes are the same", seen.why)


def test_evaluation_takes_a_spline_flow_uncompiled():
    program, x = make_flow("linear"), data()
    with evaluating(program, x.device, seed=0):
        assert not can_be_compiled(program, x)
        with pytest.raises(InputError, match="shapes are the same in each step"):
            CompiledTerms(program)(x, 3)


# ---- which selections depend on values


def in_place(z, mask):
    chosen = torch.zeros_like(z)
    chosen[:1].copy_(z[:1])  # through a view
    return z[chosen > 0]


VARYING = {
    "a mask of the data": lambda z, mask: z[z > 0],
    "nonzero": lambda z, mask: torch.nonzero(z * mask),
    "masked_select": lambda z, mask: torch.masked_select(z, z > 0),
    "a mask of noise": lambda z, mask: mask[torch.rand(4) > 0.5],
    "a mask written in place": in_place,
    "unique": lambda z, mask: torch.unique(z),
}
FIXED = {
    "a mask that is a constant": lambda z, mask: z[mask > 0],
    "a mask made in place of constants": lambda z, mask: z[torch.zeros(4).copy_(mask) > 0],
    "where": lambda z, mask: torch.where(z > 0, z, mask),
    "indices of the data": lambda z, mask: mask[z.argsort()],
    "filled by a mask": lambda z, mask: z.masked_fill(z > 0, 1.0),
}


@pytest.mark.parametrize("name", [*VARYING, *FIXED])
def test_only_selections_that_vary_are_refused(name):
    graph = make_fx({**VARYING, **FIXED}[name])(torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    if name in FIXED:
        return refuse_varying_shapes(graph, range(1, 2))
    with pytest.raises(InputError, match="shapes are the same in each step"):
        refuse_varying_shapes(graph, range(1, 2))
    return None


# ---- errors of any kind


class Failing(nn.Module):
    """Raises in one of its runs: the first is the reference, the second the trace."""

    def __init__(self, error, run):
        super().__init__()
        self.loc, self.error, self.run, self.runs = nn.Parameter(torch.tensor([0.5])), error, run, 0

    def model(self, x):
        pyro.module("failing", self)
        self.runs += 1
        if self.runs == self.run:
            raise self.error
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + x.new_zeros(D), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, :1], 0.5).to_event(1))


class OddError(Exception):
    """Of no class that torch raises."""


@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("error", [OddError("first\nsecond"), AssertionError(), NotImplementedError("no")], ids=repr)
def test_any_error_while_tracing_is_a_refusal(error, run):
    program = Failing(error, run)
    with CompiledEngine(program, SampledKL(), inductor=False) as engine, pytest.raises(InputError) as raised:
        engine.prepare(data())
    assert one_line(raised)
    assert type(error).__name__ in str(raised.value)
    assert "test_refusals.py" in str(raised.value)
    assert type(raised.value.__cause__) is type(error)


def test_auto_names_the_error(monkeypatch):
    monkeypatch.setattr(select, "has_compiler", lambda device: True)
    value, _, why = Auto().choose(Failing(OddError("odd"), 2), SampledKL(), "adam", None, data(), 10**6)
    assert value == StockSVI()
    assert re.search(r"cannot be compiled: .*OddError at .*test_refusals.py:\d+: odd", why)


def test_an_error_of_the_graph_itself_is_a_refusal(monkeypatch):
    """A graph that runs on the noise of its trace alone, past the check of its shapes: at scale 5 many are outside."""
    monkeypatch.setattr(trace, "refuse_varying_shapes", lambda graph, constants: None)
    with (
        CompiledEngine(make_flow("linear", scale=5.0), SampledKL(), inductor=False) as engine,
        pytest.raises(InputError, match=r"other data and noise.*RuntimeError.*engine=.svi") as error,
    ):
        engine.prepare(data())
    assert one_line(error)


def test_an_error_of_inductor_is_a_refusal(monkeypatch):
    def fail(*arguments, **more):
        raise OddError("no kernel")

    monkeypatch.setattr(inductor.torch._inductor, "compile", fail)
    with (
        CompiledEngine(small_vae(), SampledKL()) as engine,
        pytest.raises(InputError, match=r"Inductor compiles; got OddError.*: no kernel\. Try .*inductor=false.*svi"),
    ):
        engine.prepare(binary())


def test_an_error_while_batching_over_replicates_is_a_refusal(monkeypatch):
    def fail(*arguments, **more):
        raise NotImplementedError("no batching rule")

    with CompiledEngine(Replicates([small_vae(), small_vae()]), SampledKL(), inductor=False) as engine:
        monkeypatch.setattr("pyro_vae.engines.compiled.replicated._each", fail)
        with pytest.raises(InputError, match=r"over replicates; got NotImplementedError.*one run per seed"):
            engine.prepare(binary())


# ---- objects in place of names

SGD = torch.optim.SGD([torch.zeros(1)], lr=0.1)
OBJECTS = {
    "class": (torch.optim.Adam, r'got Adam itself\. Try optimizer="adam"\.$'),
    "object": (SGD, r'got an object of class SGD\. Try optimizer="sgd", learning_rate=0\.1\.$'),
    "pyro's": (
        pyro.optim.AdamW({"lr": 0.02}),
        r'class PyroOptim\. Try optimizer="adamw", learning_rate=0\.02\.$',
    ),
    "pyro's function": (pyro.optim.Adam, r'got Adam itself\. Try optimizer="adam"\.$'),
    "scheduler": (torch.optim.lr_scheduler.StepLR(SGD, 3), r'got an object of class StepLR\. Try optimizer="adam"\.$'),
    "none": (None, r'got an object of class NoneType\. Try optimizer="adam"\.$'),
}


@pytest.mark.parametrize("value", [StockSVI(), Compiled(inductor=False), Auto()])
@pytest.mark.parametrize("what", OBJECTS)
def test_an_optimizer_given_as_an_object_is_said(what, value):
    optimizer, match = OBJECTS[what]
    with pytest.raises(InputError, match=r"^Expected an optimizer by name, as text; .*" + match):
        fit(small_vae(), binary(), engine=value, optimizer=optimizer, epochs=1, batch_size=4, device="cpu")


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
@pytest.mark.parametrize(
    "schedule", [torch.optim.lr_scheduler.StepLR(SGD, 3), torch.optim.lr_scheduler.StepLR, lambda epoch: 0.5]
)
def test_a_schedule_given_as_an_object_is_said(schedule, engine):
    with pytest.raises(InputError, match=r"^Expected the name of schedule .*, as text; got .*\. Try '\w+'\.$"):
        fit(small_vae(), binary(), engine=engine, schedule=schedule, epochs=1, batch_size=4, device="cpu")
