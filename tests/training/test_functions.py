"""A pair of functions after ``fit``: modules and ``pyro.param``s are the trained ones, together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import data, make_functions
from pyro.infer import Predictive
from torch import nn
from torch.distributions import constraints

from pyro_vae import FunctionProgram, Hook, InputError, NonFiniteError, evaluate, fit

OPTIONS = {"device": "cpu", "engine": "svi", "learning_rate": 0.05, "batch_size": 10}
BOUNDS = {"only": ["bounds"], "device": "cpu", "iwae": [4]}


@pytest.fixture(autouse=True)
def own_store():
    """Training leaves parameters in the store of the caller: here, of one test."""
    with pyro.get_param_store().scope():
        yield


def two_halves():
    """A module in the guide, a positive and a free ``pyro.param`` in the model."""
    encoder = nn.Linear(3, 2)

    def model(x):
        scale = pyro.param("scale", lambda: x.new_tensor(3.0), constraint=constraints.positive)
        shift = pyro.param("shift.of.x", lambda: x.new_zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + shift, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def examples(n=40):
    return 5.0 + 0.3 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def elbo(program, x):
    return evaluate(program, x, **BOUNDS)["elbo"].value


@pytest.mark.parametrize("stop", [{"epochs": 3}, {"epochs": 30, "max_steps": 5}])
def test_the_functions_are_the_trained_program(stop):
    functions, x = two_halves(), examples()
    mine = pyro.param("mine", torch.tensor(2.0), constraint=constraints.positive)
    result = fit(functions, x, **OPTIONS, **stop)
    assert elbo(functions, x) == elbo(result.program, x)
    store = pyro.get_param_store()
    assert sorted(store.keys()) == ["mine", "scale", "shift.of.x"]
    assert store["mine"].unconstrained() is mine.unconstrained()
    free = dict(result.program.free.named_parameters())
    assert torch.equal(pyro.param("scale"), free["scale"].exp()), "constrained as it was trained"
    assert abs(pyro.param("scale").item() - 3) > 0.1
    assert torch.equal(pyro.param("shift.of.x"), free["shift/of/x"])
    with torch.no_grad():  # what the functions find is what counts
        pyro.param("shift.of.x").add_(100.0)
    assert elbo(functions, x) < elbo(two_trained(), x) - 100


def two_trained():
    functions = two_halves()
    with pyro.get_param_store().scope():
        return fit(functions, examples(), epochs=1, **OPTIONS).program


def test_pyro_itself_goes_on_with_the_trained_values():
    model, guide = two_halves()
    x = examples()
    fit((model, guide), x, epochs=20, **OPTIONS)
    drawn = Predictive(lambda x: pyro.deterministic("found", pyro.param("shift.of.x")), num_samples=1)(x)
    assert (drawn["found"] - 5).abs().max() < 3
    predicted = Predictive(pyro.poutine.uncondition(model), guide=guide, num_samples=50)(x)["x"]
    assert (predicted.mean() - 5).abs() < 1
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    before = pyro.param("scale").item()
    svi.step(x)
    assert pyro.param("scale").item() != before


def test_a_second_fit_goes_on_and_the_first_result_with_it():
    functions, x = two_halves(), examples()
    first = fit(functions, x, epochs=5, **OPTIONS)
    half_way = pyro.param("scale").item()
    second = fit(functions, x, epochs=1, **{**OPTIONS, "learning_rate": 1e-6})
    assert pyro.param("scale").item() == pytest.approx(half_way, rel=1e-3)
    assert elbo(first.program, x) == elbo(second.program, x) == elbo(functions, x)
    fit(second.program, x, epochs=1, **OPTIONS)  # the program holds the very parameters of the store
    assert elbo(first.program, x) == elbo(second.program, x) == elbo(functions, x)


def test_training_starts_from_the_values_in_the_callers_store():
    (model, guide), x = two_halves(), examples()
    model(x)
    with torch.no_grad():
        pyro.param("scale").unconstrained().fill_(1.5)
    program = fit((model, guide), x, epochs=1, **{**OPTIONS, "learning_rate": 1e-9}).program
    assert program.free.get_parameter("scale").item() == pytest.approx(1.5, abs=1e-4)
    assert pyro.param("scale").item() == pytest.approx(torch.tensor(1.5).exp().item(), rel=1e-4)


def test_a_training_that_fails_leaves_both_halves_as_they_were_before_the_step():
    (model, guide), x = two_halves(), examples()
    seen = []

    class Spoil(Hook):
        def stepped(self, loop, info):
            seen[:] = [loop.program.free.get_parameter("scale").detach().exp()]
            if loop.position.step == 3:
                next(loop.program.submodules.parameters()).detach().fill_(torch.nan)

    with pytest.raises(NonFiniteError):
        fit((model, guide), x, epochs=9, hooks=[Spoil()], **OPTIONS)
    assert torch.equal(pyro.param("scale"), seen[0])
    assert abs(seen[0] - 3) > 0.05


def test_a_refused_program_leaves_nothing_in_the_store():
    functions, x = two_halves(), examples()
    with pytest.raises(InputError):
        fit(functions, x.round().long() % 3, epochs=1, **OPTIONS)
    with pytest.raises(InputError):
        fit(functions, x, epochs=1, **{**OPTIONS, "batch_size": 1000})
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("other", ["shape", "constraint"])
def test_another_parameter_of_that_name_is_refused(other):
    functions, x = two_halves(), examples()
    if other == "shape":
        pyro.param("shift.of.x", torch.zeros(4))
        message = (
            r"pyro\.param 'shift\.of\.x' of shape \(3,\) under Real\(\), as .*; got \(4,\) under Real\(\) in .*Try del"
        )
    else:
        pyro.param("scale", torch.tensor(1.0))
        message = r"pyro\.param 'scale' of shape \(\) under GreaterThan\(lower_bound=0\.0\).*; got \(\) under Real\(\)"
    with pytest.raises(InputError, match=message):
        fit(functions, x, epochs=1, **OPTIONS)


def test_functions_whose_parameters_would_start_afresh_are_not_evaluated():
    functions, x = two_halves(), examples()
    with pytest.raises(
        InputError, match=r"none of 'scale', 'shift\.of\.x', which would start afresh\. Try evaluate\(re"
    ):
        evaluate(functions, x, **BOUNDS)
    pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
    with pytest.raises(InputError, match=r"none of 'shift\.of\.x', which"):
        evaluate(functions, x, **BOUNDS)
    untrained = FunctionProgram(*functions, x)  # said so
    assert evaluate(untrained, x, **BOUNDS)["elbo"].value < 0


def test_a_program_made_of_functions_by_hand_keeps_its_parameters_to_itself():
    program = FunctionProgram(*make_functions(), data())
    fit(program, data(), epochs=1, **OPTIONS)
    assert list(pyro.get_param_store().keys()) == []
