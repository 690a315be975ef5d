"""max_steps and the state of a result: a training that stops and resumes is one training."""

import copy
import math

import pyro
import pytest
import torch

from pyro_vae import VAE, Hook, InputError, Replicates, fit
from pyro_vae.data import Images
from pyro_vae.elbo import IWAE, STL, ReinforceMovingAverage, SampledKL

N, BATCH = 22, 6  # four batches an epoch, the last of four examples


def make_vae(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE((3, 3), latent_dim=2, hidden=(8,))


def make_images(n=N, seed=0):
    levels = torch.randint(0, 256, (n, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Images(levels, binarize="dynamic")


def run(program=None, **settings):
    program = make_vae() if program is None else program
    chosen = {"device": "cpu", "batch_size": BATCH, "epochs": 3, "learning_rate": 0.01, "seed": 2, **settings}
    return fit(program, make_images(), validation=make_images(8, 1), **chosen)


def parameters(result):
    return torch.cat([p.detach().flatten() for p in result.program.parameters()])


def figures(result):
    return [(r.epoch, r.step, r.objective, r.bound, r.kl_weight, r.learning_rate) for r in result.history]


SETTINGS = {
    "plain": {},
    "scheduled": {"kl_warmup": 2.0, "schedule": "cosine", "optimizer": "sgd:momentum=0.9", "clip_norm": 5.0},
    "estimator with a state": {"estimator": ReinforceMovingAverage(3)},
}


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_resuming_a_result_equals_one_training_bit_for_bit(engine, settings, at):
    def start():
        return copy.deepcopy({"engine": engine, **settings})  # an estimator has a state of its own

    whole = run(max_steps=11, **start())
    first = run(max_steps=at, **start())
    assert not torch.equal(parameters(first), parameters(whole))
    resumed = run(make_vae(seed=99), max_steps=11, resume=first.state, **start())
    assert torch.equal(parameters(resumed), parameters(whole))
    assert figures(resumed) == figures(whole)
    assert resumed.state["position"]["step"] == whole.state["position"]["step"] == 11


def test_resuming_twice_from_one_state_gives_the_same_twice():
    """The optimiser works in place, but not on the state of a result."""
    first = run(max_steps=5)
    before = copy.deepcopy(first.state)
    again = [parameters(run(make_vae(seed=99), max_steps=9, resume=first.state)) for _ in range(2)]
    assert torch.equal(*again)
    optimizer, kept = (next(iter(state["engine"]["optimizer"].values())) for state in (first.state, before))
    assert torch.equal(optimizer["state"][0]["exp_avg"], kept["state"][0]["exp_avg"])
    assert all(torch.equal(first.state["program"][name], value) for name, value in before["program"].items())


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
def test_a_state_is_a_copy_which_training_the_program_further_leaves_alone(engine):
    program = make_vae()
    first = run(program, max_steps=5, engine=engine)
    before = copy.deepcopy(first.state)
    once = parameters(run(program, max_steps=9, resume=first.state, engine=engine)).clone()
    assert all(torch.equal(first.state["program"][name], value) for name, value in before["program"].items())
    assert torch.equal(parameters(run(program, max_steps=9, resume=first.state, engine=engine)), once)


@pytest.mark.parametrize(
    ("max_steps", "epochs", "stopped"),
    [(1, 0, "max_steps=1"), (4, 1, "max_steps=4"), (6, 1, "max_steps=6"), (12, 3, ""), (99, 3, "")],
)
def test_steps_epochs_and_reason(max_steps, epochs, stopped):
    result = run(max_steps=max_steps)
    assert result.state["position"]["step"] == min(max_steps, 12)
    assert len(result.history) == epochs
    assert result.stopped == stopped


def test_steps_that_are_done_are_not_taken_again():
    first = run(max_steps=7)
    resumed = run(make_vae(seed=99), max_steps=7, resume=first.state)
    assert torch.equal(parameters(resumed), parameters(first))
    assert (resumed.stopped, resumed.state["position"]["step"]) == ("max_steps=7", 7)


def test_schedules_are_those_of_all_epochs_not_of_the_steps():
    class Rates(Hook):
        def __init__(self):
            self.rates = []

        def stepped(self, loop, info):
            self.rates.append(info.learning_rate)

    watch = Rates()
    run(schedule="cosine", max_steps=6, hooks=[watch])
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(6)]
    assert watch.rates == pytest.approx(expected, rel=1e-12)


def test_replicates_stop_and_resume():
    def replicates():
        return Replicates([make_vae(seed) for seed in range(2)])

    settings = {"engine": "compiled:inductor=false"}
    whole = run(replicates(), max_steps=7, **settings)
    first = run(replicates(), max_steps=3, **settings)
    resumed = run(replicates(), max_steps=7, resume=first.state, **settings)
    assert torch.equal(parameters(resumed), parameters(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": "s.pt"}, "the state of a result to resume from; got str. Try resume=result.state"),
        ({"resume": {}}, "the state of a result to resume from; got dict"),
        ({"train": torch.ones(20, 4)}, "the training data that the state began with; got 2 batches per epoch"),
        ({"batch_size": 3}, "batch_size 10, with which training began; got 3. Try batch_size=10"),
        ({"learning_rate": 0.1}, "learning_rate 0.001, with which training began; got 0.1"),
        ({"seed": 3}, "seed 0, with which training began; got 3"),
        ({"optimizer": "sgd"}, "optimizer 'adam', with which training began; got 'sgd'. Try optimizer='adam'"),
        ({"estimator": "iwae"}, r"estimator Trace_ELBO\(num_particles=1\), with which training began; got IWAE"),
        ({"estimator": SampledKL()}, r"Trace_ELBO\(num_particles=1\), with which training began; got SampledKL"),
        ({"max_steps": 3}, "max_steps of at least 7, which are done; got 3. Try max_steps=7"),
        ({"epochs": 1, "max_steps": 20}, "epochs of at least 2, one of them begun; got 1. Try epochs=2"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    """Fewer batches in an epoch than the state has done would otherwise wait for a batch that never comes."""
    given = {"train": torch.ones(50, 4), "epochs": 3, "batch_size": 10, "device": "cpu"}
    state = fit(VAE((4,), 2, (3,)), **given, max_steps=7).state
    with pytest.raises(InputError, match=message):
        fit(VAE((4,), 2, (3,)), **{**given, "resume": state, **change})


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("trace_elbo", pyro.infer.Trace_ELBO(max_plate_nesting=1, vectorize_particles=True)),
        ("iwae:num_particles=5", IWAE(5)),
        (STL(), "stl"),
    ],
    ids=["Trace_ELBO", "IWAE", "STL"],
)
def test_an_estimator_by_name_and_by_value_is_the_same_to_a_state(first, then):
    given = {"train": torch.ones(50, 4), "epochs": 2, "batch_size": 10, "device": "cpu"}
    state = fit(VAE((4,), 2, (3,)), **given, estimator=first, max_steps=7).state
    assert fit(VAE((4,), 2, (3,)), **given, estimator=then, resume=state).state["position"]["step"] == 10


def test_a_state_at_the_end_of_its_training_is_accepted():
    given = {"train": torch.ones(50, 4), "epochs": 1, "batch_size": 10, "device": "cpu"}
    state = fit(VAE((4,), 2, (3,)), **given).state
    assert fit(VAE((4,), 2, (3,)), **given, resume=state).state["position"]["step"] == 5
