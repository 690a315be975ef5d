"""Engine ``compiled`` against the program, every epoch: what changed is named, buffers may change, nothing moves."""

import copy
import random
import re
import types
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from torch import nn

from pyro_vae import Hook, InputError, Replicates, fit
from pyro_vae.elbo import SampledKL
from pyro_vae.engines import Compiled, StockSVI
from pyro_vae.engines.compiled import recheck
from pyro_vae.engines.compiled.held import changes, held_values
from pyro_vae.engines.compiled.recheck import differing
from pyro_vae.engines.compiled.step import StepFunction

D, Z = 5, 2
PLAIN = Compiled(inductor=False)
TAU = 1.0
HYPER = types.SimpleNamespace(tau=1.0, other=[1.0, 2.0])


class Program(nn.Module):
    """A VAE with a temperature in each place where a program may keep one."""

    by_class = 1.0

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(D, 7, bias=False), nn.BatchNorm1d(7), nn.Dropout(0.3), nn.Linear(7, 2 * Z)
            )
            self.decoder = nn.Sequential(nn.Linear(Z, 7), nn.Tanh(), nn.Linear(7, D))
        self.tau, self.options, self.loose = 1.0, {"tau": 1.0}, torch.tensor(1.0)
        self.unused, self.calls = 3, 0
        self.register_buffer("temperature", torch.tensor(1.0))
        self.scaled = lambda value: value * TAU

    def scale(self):
        hyper = HYPER.tau * HYPER.other[1] / 2.0
        return self.scaled(self.temperature * self.loose * self.tau * self.options["tau"] * self.by_class * hyper)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        self.calls += 1
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) * self.scale()).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data(count=40):
    return torch.bernoulli(torch.full((count, D), 0.4), generator=torch.Generator().manual_seed(1))


class Change(Hook):
    """Calls a function on the program: after the first epoch, or after a step."""

    def __init__(self, change, *, step=None):
        self.change, self.step, self.epochs = change, step, 0

    def stepped(self, loop, info):
        if loop.position.step == self.step:
            self.change(loop.program)

    def epoch_ended(self, loop, record):
        self.epochs += 1
        if self.step is None and record.epoch == 1:
            self.change(loop.program)


def train(engine, change=None, program=None, **more):
    hook = change if isinstance(change, Hook) else Change(change or (lambda program: None))
    settings = {"epochs": 3, "batch_size": 16, "device": "cpu", "learning_rate": 0.01, "hooks": [hook]} | more
    return fit(program or Program(), data(), engine=engine, **settings)


@pytest.fixture(autouse=True)
def restored():
    """Put back what a test changes in this file."""
    yield
    globals()["TAU"], HYPER.tau, HYPER.other, Program.by_class = 1.0, 1.0, [1.0, 2.0], 1.0


def setter(place, name, value):
    return lambda program: setattr(program if place is None else place, name, value)


def set_global(program):
    globals()["TAU"] = 0.5


def replace_tanh(program):
    program.decoder[1] = nn.ReLU()


def replace_network(program):
    program.decoder = nn.Sequential(nn.Linear(Z, 9), nn.Tanh(), nn.Linear(9, D))


CHANGED = {
    "a float": (setter(None, "tau", 0.5), r"tau changed from 1\.0 to 0\.5: the loss off by .*the gradient of enc"),
    "a float by a little": (setter(None, "tau", 0.9998), r"got tau changed from 1\.0 to 0\.9998: the loss off by"),
    "to where it fails": (
        setter(None, "tau", "half"),
        r"got tau changed from 1\.0 to 'half': now it raises TypeError: ",
    ),
    "to no number": (setter(None, "tau", float("nan")), r"got tau changed from 1\.0 to nan: the loss off by inf"),
    "in a dictionary": (lambda p: p.options.update(tau=0.5), r"got options\['tau'\] changed from 1\.0 to 0\.5: "),
    "of the class": (setter(Program, "by_class", 0.5), r"got by_class changed from 1\.0 to 0\.5: "),
    "a global": (set_global, r"got the global TAU changed from 1\.0 to 0\.5: "),
    "in a global object": (setter(HYPER, "tau", 0.5), r"got the global HYPER\.tau changed from 1\.0 to 0\.5: "),
    "in a list": (lambda p: HYPER.other.__setitem__(1, 3.0), r"HYPER\.other\[1\] changed from 2\.0 to 3\.0: "),
    "a tensor in place": (lambda p: p.loose.fill_(0.5), r"got loose changed in place, .* no registered buffer: "),
    "a tensor": (setter(None, "loose", torch.tensor(0.5)), r"got loose replaced: "),
    "a function": (setter(None, "scaled", lambda value: value * 0.5), r"got scaled replaced: "),
    "a submodule": (replace_tanh, r"the module decoder\.1 replaced: "),
    "a network": (replace_network, r"got decoder\.0\.weight replaced by another tensor, decoder\.0\.bias .* more\. "),
    "a buffer assigned": (
        setter(None, "temperature", torch.tensor(0.5)),
        r"got temperature replaced by another tensor",
    ),
    "data of a parameter": (
        lambda p: setattr(p.decoder[0].bias, "data", torch.ones(7)),
        r"got decoder\.0\.bias replaced by another tensor\.",
    ),
    "a frozen network": (lambda p: p.decoder.requires_grad_(False), r"got decoder\.0\.weight frozen .* 1 more\."),
    "a new parameter": (setter(None, "extra", nn.Parameter(torch.ones(2))), r"got extra added\."),
}
HINT = r".*docs/engines\.md|tensors changed in place.*anew after freezing"


@pytest.mark.parametrize("what", CHANGED)
def test_a_change_between_epochs_is_named(what):
    change, match = CHANGED[what]
    hook = Change(change)
    with pytest.raises(InputError, match=f"{match}.*({HINT}).*engine=.svi") as error:
        train(PLAIN, hook)
    assert hook.epochs == 1
    assert "\n" not in str(error.value)


STEPPED = {**CHANGED, "a mode": (lambda p: p.encoder.eval(), r"got encoder\.training changed from True to False, ")}


@pytest.mark.parametrize("what", STEPPED)
def test_a_change_in_the_last_epoch_is_named_at_its_end(what):
    change, match = STEPPED[what]
    hook = Change(change, step=8)
    with pytest.raises(InputError, match=match):
        train(PLAIN, hook)
    assert hook.epochs == 2


def test_a_mode_that_a_hook_changes_between_epochs_is_put_back_by_either_engine():
    """An epoch begins in training mode."""
    runs = [train(engine, lambda p: p.encoder.eval()) for engine in (PLAIN, StockSVI())]
    for mine, other in zip(*(run.program.parameters() for run in runs), strict=True):
        assert_close(mine.detach(), other.detach(), 1e-4)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
def test_a_frozen_parameter_that_is_unfrozen_is_named():
    program = Program()
    program.decoder[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"decoder\.0\.weight unfrozen \(requires_grad=True\), decoder\.0\.bias unf"):
        train(PLAIN, lambda p: p.requires_grad_(True), program)


def test_a_change_that_no_attribute_shows_is_found():
    """A closure of a closure in a C iterator: only the eager step tells."""
    cell = iter([1.0] * 100)
    program = Program()
    program.scaled = lambda value, state=[cell, 1.0]: value * state[1]
    with pytest.raises(InputError, match=r"got a change of what the program reads: the loss off by"):
        train(PLAIN, lambda p: p.scaled.__defaults__[0].__setitem__(1, 0.5), program)


def halve(program):
    program.temperature.mul_(0.5)


@pytest.mark.parametrize("engine", [PLAIN, "compiled"])
def test_a_buffer_that_changes_in_place_trains_as_engine_svi(engine):
    """A temperature that is halved between epochs."""
    runs = [train(kind, halve, epochs=2) for kind in (engine, StockSVI())]
    constant = train(StockSVI(), epochs=2)
    assert runs[0].program.temperature == 0.5
    for mine, other in zip(*(run.program.state_dict().values() for run in runs), strict=True):
        assert_close(mine, other, 1e-4)
    assert not torch.allclose(constant.program.decoder[2].bias, runs[0].program.decoder[2].bias, rtol=1e-3)


class Averages(Program):
    """Assigns its buffer anew in each step."""

    def model(self, x):
        self.temperature = 0.9 * self.temperature + 0.1 * x.mean()
        super().model(x)


def test_a_buffer_that_the_program_assigns_trains_as_engine_svi():
    states = []
    for value in (PLAIN, StockSVI()):
        program = Averages()
        with torch.random.fork_rng(), value.start(program, SampledKL()) as engine:
            torch.manual_seed(0)
            for _ in range(3):
                engine.step(data(), 0.01, 1.0)
        states.append(program.state_dict())
    assert states[0]["temperature"] < 0.9
    for mine, other in zip(*(state.values() for state in states), strict=True):
        assert_close(mine, other, 1e-4)


@pytest.mark.parametrize("engine", [PLAIN, StockSVI()])
def test_a_change_between_stopping_and_resuming_is_traced(engine):
    """Training that resumes traces the program as it is then: both engines train the same."""
    result = train(engine, max_steps=3)
    result.program.tau = 0.5
    program = train(engine, program=result.program, resume=result.state).program
    reference = train(StockSVI(), max_steps=3)
    reference.program.tau = 0.5
    other = train(StockSVI(), program=reference.program, resume=reference.state).program
    for mine, theirs in zip(program.parameters(), other.parameters(), strict=True):
        assert_close(mine.detach(), theirs.detach(), 1e-4)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
def test_freezing_between_stopping_and_resuming_is_named():
    result = train(PLAIN, max_steps=3)
    result.program.decoder[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"got decoder\.0\.weight frozen since, .*Try fit\(program, .*without resume"):
        train(PLAIN, program=result.program, resume=result.state)
    assert len(train(PLAIN, program=result.program).history) == 3


# ---- what stays as it was


def test_a_check_changes_nothing(monkeypatch):
    """The same run to the last bit, running statistics and random states included, with and without the checks."""

    class States(Hook):
        def __init__(self):
            self.states = []

        def stepped(self, loop, info):
            self.states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()))

    checked, unchecked = States(), States()
    one = train(PLAIN, checked)
    monkeypatch.setattr(recheck.Baseline, "check", lambda self: None)
    monkeypatch.setattr(recheck.Baseline, "check_where_changed", lambda self: None)
    other = train(PLAIN, unchecked)
    assert checked.states == unchecked.states
    assert one.program.encoder[1].num_batches_tracked == 9
    for (name, mine), theirs in zip(one.program.state_dict().items(), other.program.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert [r.objective for r in one.history] == [r.objective for r in other.history]


def test_an_epoch_costs_one_eager_step():
    """Prepared: one eager run and one trace for the batch and for the smaller last one; then one run an epoch."""
    counts = [
        train(PLAIN, epochs=epochs, program=program).program.calls
        for epochs, program in ((1, Program()), (4, Program()))
    ]
    assert counts[1] - counts[0] == 3


def test_a_value_that_does_not_matter_may_change():
    train(PLAIN, lambda p: setattr(p, "unused", 4))
    train(PLAIN, Change(lambda p: setattr(p, "unused", 4), step=8))


class Converged(nn.Module):
    """At its optimum every gradient is rounding error."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    def model(self, x):
        pyro.module("converged", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc + 0 * z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


def test_a_program_at_its_optimum_is_no_difference():
    """The eager step is repeated on its first parameters: gradients that vanish later are not compared."""
    result = fit(
        Converged(), data(), engine=PLAIN, epochs=300, batch_size=40, device="cpu", optimizer="sgd", learning_rate=0.01
    )
    assert len(result.history) == 300


# ---- replicates


def test_a_change_in_any_replicate_is_named():
    for index, match in ((0, r"got tau changed .* of replicate 0: "), (1, r"got tau changed .* of replicate 1: ")):
        replicates = Replicates([Program(0), Program(1)])
        with pytest.raises(InputError, match=match):
            train(PLAIN, lambda p, index=index: setattr(p.programs[index], "tau", 0.5), replicates)


@pytest.mark.parametrize(("change", "match"), [CHANGED["a frozen network"], CHANGED["a buffer assigned"]])
def test_tensors_of_replicates_are_checked(change, match):
    replicates = Replicates([Program(0), Program(1)])
    with pytest.raises(InputError, match=match.partition(" .*")[0] + r".* of replicate 1"):
        train(PLAIN, lambda p: change(p.programs[1]), replicates)


def test_replicates_that_differ_from_the_start_are_refused():
    """All would run the graph of the first."""
    replicates = Replicates([Program(0), Program(1), Program(2)])
    replicates.programs[2].tau = 0.5
    with pytest.raises(InputError, match=r"in replicate 2 against the first, tau changed from 1\.0 to 0\.5: the"):
        train(PLAIN, program=replicates)
    replicates.programs[2].tau, replicates.programs[2].unused = 1.0, 7
    assert len(train(PLAIN, program=replicates).history) == 3


def test_a_buffer_of_each_replicate_may_change():
    def change(replicates):
        for program, value in zip(replicates.programs, (0.5, 2.0), strict=True):
            program.temperature.fill_(value)

    together = train(PLAIN, change, Replicates([Program(0), Program(1)])).program.programs
    assert [float(p.temperature) for p in together] == [0.5, 2.0]


# ---- functions


def test_a_variable_of_a_function_is_named():
    tau = [1.0]
    weight = 1.0

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.param("loc", torch.zeros(D))
            pyro.sample("x", dist.Normal(loc + tau[0] * weight * z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    message = r"got the variable tau of model\[0\] changed from 1\.0 to 0\.5: the loss"
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=message):
        train(PLAIN, lambda p: tau.__setitem__(0, 0.5), (model, guide))


class Pair:
    """Model and guide of an object that is no module."""

    def __init__(self):
        self.tau = 1.0

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.param("loc", torch.zeros(D))
            pyro.sample("x", dist.Normal(loc + self.tau * z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))


def test_an_attribute_of_an_object_is_named():
    pair = Pair()
    message = r"got Pair\.tau changed from 1\.0 to 0\.5: the loss"
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=message):
        train(PLAIN, lambda p: setattr(pair, "tau", 0.5), pair)


# ---- the parts


def test_values_that_are_equal_are_no_change():
    program = Program()
    program.nan, program.array = float("nan"), np.arange(3.0)
    before = held_values(program)
    program.nan, program.array, program.options = float("nan"), np.arange(3.0), {"tau": 1.0}
    assert changes(before, held_values(program)) == []
    program.array[1], program.tau, program.decoder[1] = 7.0, True, nn.ReLU()
    found = changes(before, held_values(program))
    assert [text.partition(" from")[0] for text in found] == ["tau changed", "array changed"]
    program.tau, program.array = 1.0, np.arange(3.0)
    assert changes(before, held_values(program)) == ["the module decoder.1 replaced"]


PLANTED = ["the loss", "the gradient of decoder.0.weight", "encoder.1.running_mean after the step"]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_difference_is_named(planted):
    function = StepFunction(Program(), SampledKL())
    weight = torch.ones((), dtype=torch.float64)
    reference = recheck.reference_run(function, data(), weight, function.inputs())
    again = recheck.reference_run(function, data(), weight, function.inputs())
    assert differing(again, reference, 0.0) == []
    wrong = copy.copy(again)
    wrong[planted] = wrong[planted] * 1.01
    assert [text.partition(" off by")[0] for text in differing(wrong, reference, 1e-3)] == [planted]


# ---- the documentation


def test_the_buffer_of_the_documentation_is_annealed():
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    (block,) = re.findall(r"^```python\n(import torch\n.*?register_buffer.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names = {"__name__": "__main__"}
    exec(compile(block, "engines.md", "exec"), names)
    assert float(names["program"].decoder.temperature) == pytest.approx(2 * 0.9**3)
    broken = block.replace(".temperature.mul_(0.9)", ".temperature = torch.tensor(1.8)")
    with pytest.raises(InputError, match=r"got decoder\.temperature replaced by another tensor"):
        exec(compile(broken, "engines.md", "exec"), dict(names))
