"""fit(): schedules, warm-up, early stopping, reproducibility, what it leaves alone and what it refuses."""

import copy
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import VAE, Hook, InputError, NonFiniteError, fit
from pyro_vae.base.random import generator
from pyro_vae.base.registry import from_spec
from pyro_vae.data import Images
from pyro_vae.elbo.score import ReinforceMovingAverage
from pyro_vae.engines.schedules import SCHEDULES

N, BATCH = 22, 6  # four batches an epoch, the last of four examples


def make_vae(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE((3, 3), latent_dim=2, hidden=(8,), **options)


def make_images(n=N, seed=0, binarize="dynamic"):
    levels = torch.randint(0, 256, (n, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Images(levels, binarize=binarize)


def run(program=None, data=None, **settings):
    program = make_vae() if program is None else program
    data = make_images() if data is None else data
    return fit(program, data, **{"device": "cpu", "batch_size": BATCH, **settings})


def parameters(result):
    return torch.cat([p.detach().flatten() for p in result.program.parameters()])


class Watch(Hook):
    """Keeps every step and, at the steps asked for, a copy of the state."""

    def __init__(self, at=(), stop=None):
        self.infos, self.states, self.calls, self.at, self.stop = [], {}, [], at, stop

    def started(self, loop):
        self.calls.append("started")

    def stepped(self, loop, info):
        self.infos.append(info)
        self.calls.append("stepped")
        if loop.position.step in self.at:
            self.states[loop.position.step] = copy.deepcopy(loop.state_dict())
        if loop.position.step == self.stop:
            loop.stop("enough")

    def epoch_ended(self, loop, record):
        self.calls.append("epoch_ended")

    def stopped(self, loop):
        self.calls.append("stopped")

    def closed(self):
        self.calls.append("closed")


class Mean(nn.Module):
    """x ~ N(loc, 1), z unused: the loss's gradient is Σ (loc − x), free of noise."""

    def __init__(self, start=0.0):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def model(self, x):
        pyro.module("mean", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.loc, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


# ---- the loop


def test_equals_a_plain_loop_of_pyro():
    """Batches from (seed, epoch, batch), noise from one stream: a page of plain Pyro gives the same bits."""
    data, seed, epochs = make_images(), 11, 3
    ours = run(data=data, epochs=epochs, seed=seed, learning_rate=0.01, estimator=Trace_ELBO())

    vae, cpu = make_vae(), torch.device("cpu")
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
        for epoch in range(epochs):
            order = torch.randperm(N, generator=generator(cpu, seed, epoch, 0))
            for batch, index in enumerate(order.split(BATCH)):
                svi.step(data.batch(index, generator(cpu, seed, epoch, 1, batch)))
    assert torch.equal(parameters(ours), torch.cat([p.detach().flatten() for p in vae.parameters()]))


def test_every_epoch_takes_every_example_once_in_a_fresh_order():
    seen = []

    class Listening(Mean):
        def model(self, x):
            if self.training and torch.is_grad_enabled():
                seen.append(x.flatten().tolist())
            super().model(x)

    x = torch.arange(N, dtype=torch.float64)[:, None]
    run(Listening(), x, epochs=2, learning_rate=1e-6)
    epochs = [[value for batch in seen[start : start + 4] for value in batch] for start in (0, 4)]
    assert [len(batch) for batch in seen] == [6, 6, 6, 4] * 2
    assert sorted(epochs[0]) == sorted(epochs[1]) == x.flatten().tolist()
    assert epochs[0] != epochs[1]


def test_records_are_means_over_the_data_with_a_standard_error():
    """The objective of an epoch weighs the smaller last batch by its size; the bound is over the held-out data."""
    x = torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held_out = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = run(Mean(0.3), x, validation=held_out, epochs=1, learning_rate=1e-300)
    (record,) = result.history

    def log_p(data):
        return dist.Normal(torch.tensor(0.3, dtype=torch.float64), 1.0).log_prob(data[:, 0])

    terms = log_p(held_out)
    assert record.objective == pytest.approx(log_p(x).mean().item(), rel=1e-12)
    assert record.bound == pytest.approx(terms.mean().item(), rel=1e-12)
    assert record.bound_standard_error == pytest.approx(terms.std().item() / 3, rel=1e-12)
    assert (record.epoch, record.step, record.kl_weight, record.improved) == (1, 4, 1.0, True)


def test_without_validation_there_is_no_bound():
    (record,) = run(epochs=1).history
    assert (record.bound, record.bound_standard_error, record.improved) == (None, None, False)


def test_more_particles_judge_the_held_out_bound_more_surely():
    sure = [run(validation=make_images(200, 1), epochs=1, eval_particles=k).history[0] for k in (1, 50)]
    assert sure[1].bound_standard_error < sure[0].bound_standard_error
    assert abs(sure[0].bound - sure[1].bound) < 5 * sure[0].bound_standard_error


def test_hooks_are_called_in_order():
    watch = Watch()
    run(epochs=2, hooks=[watch])
    assert watch.calls == [
        "started",
        *["stepped"] * 4,
        "epoch_ended",
        *["stepped"] * 4,
        "epoch_ended",
        "stopped",
        "closed",
    ]


def test_a_hook_stops_the_loop_after_the_step():
    watch = Watch(stop=6)
    result = run(epochs=5, hooks=[watch])
    assert result.stopped == "enough"
    assert watch.calls == ["started", *["stepped"] * 4, "epoch_ended", *["stepped"] * 2, "stopped", "closed"]


# ---- schedules and warm-up


@pytest.mark.parametrize(
    ("spec", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("cosine:final=0.2", [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5)]),
        ("exponential:gamma=0.5", [1, 0.5, 0.25, 0.125]),
        ("exponential", [1, 0.99, 0.99**2, 0.99**3]),
        ("multistep:every=2", [1, 1, 0.1, 0.1]),
        ("multistep:every=1,gamma=0.3", [1, 0.3, 0.09, 0.027]),
    ],
)
def test_schedules(spec, factors):
    """The table holds the factors at the start of each of four epochs; the loop must use these rates."""
    schedule = from_spec(SCHEDULES, spec, "schedule")
    assert [schedule(epoch, 4) for epoch in range(4)] == pytest.approx(factors, rel=1e-12)
    watch = Watch()
    run(Mean(), torch.zeros(N, 1, dtype=torch.float64), epochs=4, schedule=spec, learning_rate=0.02, hooks=[watch])
    rates = [info.learning_rate for info in watch.infos]
    assert rates[::4] == pytest.approx([0.02 * factor for factor in factors], rel=1e-12)
    within = [schedule(step / 4, 4) * 0.02 for step in range(16)]
    assert rates == pytest.approx(within, rel=1e-12)


def test_cosine_falls_within_an_epoch_and_ends_at_its_final_value():
    watch = Watch()
    run(epochs=1, schedule="cosine", hooks=[watch], learning_rate=1.0, optimizer="sgd", clip_norm=1e-3)
    expected = [0.5 * (1 + math.cos(math.pi * batch / 4)) for batch in range(4)]
    assert [info.learning_rate for info in watch.infos] == pytest.approx(expected, rel=1e-12)
    assert from_spec(SCHEDULES, "cosine:final=0.2", "schedule")(7.0, 4) == pytest.approx(0.2)


@pytest.mark.parametrize("resumed_at", [None, 3, 4, 7])
def test_the_optimizer_used_the_scheduled_rates(resumed_at):
    """Gradient descent on Σ (loc − x)²/2 by the formula, also in the first step after resuming."""
    x = torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    settings = {"epochs": 3, "learning_rate": 0.02, "schedule": "cosine:final=0.1", "optimizer": "sgd", "seed": 4}
    program = Mean(3.0)
    if resumed_at is not None:
        watch = Watch(at=[resumed_at], stop=resumed_at)
        run(Mean(3.0), x, hooks=[watch], **settings)
        settings["resume"] = watch.states[resumed_at]
    run(program, x, **settings)

    loc, cpu = 3.0, torch.device("cpu")
    for epoch in range(3):
        order = torch.randperm(N, generator=generator(cpu, 4, epoch, 0))
        for batch, index in enumerate(order.split(BATCH)):
            share = (epoch + batch / 4) / 3
            rate = 0.02 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
            loc -= rate * (loc - x[index]).sum().item()
    assert program.loc.item() == pytest.approx(loc, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "weights"),
    [
        (0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        (1.0, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        (1.5, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1]),
        (2.0, [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1]),
        (0.1, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_kl_warm_up_is_linear(warmup, weights):
    watch = Watch()
    result = run(epochs=2, kl_warmup=warmup, hooks=[watch])
    assert [info.kl_weight for info in watch.infos] == pytest.approx(weights, rel=1e-12)
    assert [record.kl_weight for record in result.history] == pytest.approx([weights[0], weights[4]], rel=1e-12)


def test_the_held_out_bound_is_never_down_weighted():
    """Two runs that differ by the warm-up alone start from one program: its bound must be the same."""
    bounds = []
    for warmup in (0.0, 100.0):
        result = run(validation=make_images(30, 1), epochs=1, kl_warmup=warmup, learning_rate=1e-30)
        bounds.append(result.history[0].bound)
    assert bounds[0] == bounds[1]


# ---- early stopping


def worsening(**settings):
    """Start at the optimum of the held-out data, and move away from it."""
    x, held_out = torch.full((6, 1), 5.0, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.float64)
    return run(Mean(), x, validation=held_out, learning_rate=0.01, optimizer="sgd", epochs=7, **settings)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_stops_when_out_of_patience(patience):
    result = worsening(patience=patience)
    assert [record.improved for record in result.history] == [True] + [False] * patience
    assert result.stopped == f"no better held-out bound for {patience} epochs"


def test_early_stopping_is_off_by_default():
    result = worsening()
    assert len(result.history) == 7
    assert result.stopped == ""
    assert [record.improved for record in result.history] == [True] + [False] * 6


def test_patience_starts_anew_at_every_better_epoch():
    x, held_out = torch.full((6, 1), 5.0, dtype=torch.float64), torch.full((6, 1), 1.0, dtype=torch.float64)
    result = run(Mean(), x, validation=held_out, learning_rate=0.01, optimizer="sgd", epochs=30, patience=2)
    locs = [5 * (1 - 0.94**epoch) for epoch in range(1, 31)]
    best = min(range(30), key=lambda i: abs(locs[i] - 1.0)) + 1
    assert best > 2, "the test would not see patience start anew"
    assert [record.epoch for record in result.history if record.improved] == list(range(1, best + 1))
    assert len(result.history) == best + 2


# ---- reproducibility, and what is left alone


def test_one_seed_one_result_another_seed_another():
    first, again, other = (run(epochs=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(parameters(first), parameters(again))
    assert not torch.equal(parameters(first), parameters(other))
    assert [r.objective for r in first.history] == [r.objective for r in again.history]


@pytest.mark.parametrize("at", [1, 4, 5, 12])
def test_resuming_a_state_ends_in_the_same_bits(at):
    settings = {"epochs": 3, "validation": make_images(8, 1), "kl_warmup": 2.0, "schedule": "cosine", "seed": 2}
    whole = run(**settings)
    watch = Watch(at=[at], stop=at)
    run(hooks=[watch], **settings)
    resumed = run(make_vae(seed=99), resume=watch.states[at], **settings)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert [(r.objective, r.bound) for r in resumed.history] == [(r.objective, r.bound) for r in whole.history]


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_and_the_parameter_store_are_left_as_they_were(fails):
    with pyro.get_param_store().scope():
        mine = pyro.param("encoder$$$layers.0.weight", torch.tensor(3.0))
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
        if fails:
            with pytest.raises(NonFiniteError):
                run(learning_rate=1e30, epochs=2)
        else:
            run(epochs=1, validation=make_images(8, 1))
        after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert (before[2] == after[2]).all()
        assert list(pyro.get_param_store().keys()) == ["encoder$$$layers.0.weight"]
        assert pyro.get_param_store()["encoder$$$layers.0.weight"] is mine


def test_the_result_does_not_depend_on_the_random_state_of_the_caller():
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append(parameters(run(epochs=1)))
    assert torch.equal(*results)


def test_one_step_of_newton_reaches_the_best_bound():
    """The loss is quadratic in loc: a whole batch at rate 1/N ends at the mean, and the bound is log p(x) there."""
    x = torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2.0
    result = run(Mean(), x[:300], validation=x[300:], epochs=1, batch_size=300, learning_rate=1 / 300, optimizer="sgd")
    best = dist.Normal(x[:300].mean(), 1.0).log_prob(x[300:]).mean().item()
    assert result.history[-1].bound == pytest.approx(best, rel=1e-12)


# ---- what is not finite


def test_a_learning_rate_beyond_reason_is_a_non_finite_error():
    program = make_vae()
    with pytest.raises(NonFiniteError, match=r"in step [23], not finite: .*site z") as caught:
        run(program, learning_rate=1e30, optimizer="sgd", epochs=2)
    assert caught.value.step in (2, 3)


def test_parameters_are_those_of_the_last_good_step():
    x = torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[generator_order(seed=0)[2 * BATCH]] = 1e200  # squared it overflows, in the third batch
    program, watch = Mean(), Watch(at=[2])
    with pytest.raises(NonFiniteError, match="in step 3, not finite: log p of site x"):
        run(program, x, hooks=[watch])
    assert program.loc.item() == watch.states[2]["program"]["loc"].item() != 0.0
    assert watch.calls == ["started", "stepped", "stepped", "closed"]


def generator_order(seed):
    return torch.randperm(N, generator=generator(torch.device("cpu"), seed, 0, 0))


def test_parameters_ruined_by_the_last_step_of_an_epoch_are_named():
    """The held-out bound is the first to meet them; it used to end in a traceback."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    settings = {"optimizer": "sgd", "learning_rate": 1e30, "batch_size": 12, "epochs": 1, "device": "cpu"}
    with pytest.raises(NonFiniteError, match=r"in step 1, .*(parameter|held-out)"):
        fit(VAE((3,), 2, (4,), "gaussian"), x, validation=x, **settings)


# ---- what is refused

X = torch.zeros(N, 3, 3)
REFUSED = [
    ({"epochs": 0}, r"epochs as a whole number of at least 1; got 0\. Try epochs=1"),
    ({"epochs": 2.0}, r"epochs as a whole number .*; got 2\.0"),
    ({"epochs": True}, "epochs as a whole number .*; got True"),
    ({"batch_size": 0}, "batch_size as a whole number"),
    ({"batch_size": -4}, "batch_size as a whole number of at least 1; got -4"),
    ({"batch_size": N + 1}, f"a batch_size of at most {N}, the number of examples; got {N + 1}"),
    ({"eval_particles": 0}, "eval_particles as a whole number"),
    ({"patience": 0, "validation": X}, "patience as a whole number"),
    ({"patience": 2}, "validation data for patience; got none"),
    ({"learning_rate": 0.0}, "learning_rate as a finite number above 0; got 0.0"),
    ({"learning_rate": -1e-3}, "learning_rate as a finite number above 0; got -0.001"),
    ({"learning_rate": math.nan}, "learning_rate as a finite number above 0; got nan"),
    ({"learning_rate": "fast"}, "learning_rate as a finite number above 0; got 'fast'"),
    ({"learning_rate": None}, "learning_rate as a finite number above 0; got None"),
    ({"epochs": None}, "epochs as a whole number .*; got None"),
    ({"clip_norm": 0}, "clip_norm as a finite number above 0; got 0"),
    ({"clip_norm": math.inf}, "clip_norm as a finite number above 0; got inf"),
    ({"kl_warmup": -1.0}, r"kl_warmup as a finite number of epochs, 0 or more; got -1\.0"),
    ({"seed": -1}, r"a seed from 0 to 2\*\*63 - 1; got -1"),
    ({"seed": 2**63}, "a seed from 0 to .*; got 9223372036854775808"),
    ({"seed": 1.5}, "a seed from 0 to .*; got 1.5"),
    ({"estimator": "trace_elb"}, "got 'trace_elb'. Try 'trace_elbo'"),
    ({"estimator": "trace_elbo:num_particles=0"}, "num_particles that is a whole number of at least 1; got 0"),
    ({"estimator": "trace_elbo:num_particles=1.5"}, "num_particles that is a whole number"),
    ({"estimator": "trace_elbo:particles=3"}, "estimator trace_elbo, one of num_particles, vectorize_particles; got"),
    ({"estimator": 3}, "an estimator"),
    ({"engine": "svj"}, "got 'svj'. Try 'svi'"),
    ({"optimizer": "adagrat"}, "got 'adagrat'. Try 'adagrad'"),
    ({"optimizer": torch.optim.Adam}, "an optimizer by name, as text; got Adam itself"),
    ({"hooks": print}, r"hooks as a list of pyro_vae\.Hook; got <built-in function print>"),
    ({"hooks": [print]}, r"hooks as a list of pyro_vae\.Hook"),
    ({"schedule": "cosin"}, "got 'cosin'. Try 'cosine'"),
    ({"schedule": "cosine:final=2"}, "a final from 0 to 1; got 2"),
    ({"schedule": "exponential:gamma=x"}, "a gamma from 0 to 1; got x"),
    ({"schedule": "multistep:every=0"}, "every as a whole number of epochs, at least 1; got 0"),
    ({"schedule": "multistep:every=1.5"}, "every as a whole number of epochs"),
    ({"schedule": "constant:gamma=1"}, "Expected no argument; got 'gamma'"),
    ({"max_steps": 0}, r"max_steps as a whole number of at least 1; got 0\. Try max_steps=1"),
    ({"device": "gpu"}, "a device, one of auto, cpu, cuda; got 'gpu'"),
    ({"validation": torch.zeros(5, 4, 4)}, r"validation data of shape \(3, 3\), as the training data; got \(4, 4\)"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_refuses_settings(settings, message):
    program = make_vae()
    with pytest.raises(InputError, match=message) as caught:
        fit(program, X, **{"batch_size": BATCH, "device": "cpu", **settings})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(program.parameters(), make_vae().parameters(), strict=True))


def test_an_unknown_keyword_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'learningrate'"):
        fit(make_vae(), X, learningrate=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((5, 3, 3), None), r"an array of numbers; got dtype object\. Try np\.stack\(rows\)"),
        ("mnist", r"images, a tensor or an array; got str\. Try data\.train or data\.test, or torch\.as_tensor"),
        (torch.zeros(5, 3, 3, dtype=torch.int64), r"uint8 or floating pixels; got torch\.int64"),
        (torch.zeros(9), r"images of shape \(N, \.\.\.\); got shape \(9,\)"),
        (torch.zeros(0, 3, 3), "at least one image"),
        (torch.full((5, 3, 3), math.nan), "finite pixels; got NaN or infinity"),
        (torch.full((5, 3, 3), math.inf), "finite pixels; got NaN or infinity"),
        (torch.full((5, 3, 3), 0.5), "binary pixels: a Bernoulli gives grey levels no probability"),
        (torch.zeros(5, 4, 4), r"an input of shape \(\.\.\., 3, 3\); got \(5, 4, 4\)"),
        (torch.zeros(1, 3, 3), "a batch_size of at most 1, the number of examples; got 5"),
    ],
)
def test_refuses_data(data, message):
    with pytest.raises(InputError, match=message):
        fit(make_vae(), data, batch_size=5, device="cpu")


@pytest.mark.parametrize("program", [3, "vae", VAE, nn.Linear(2, 2), (lambda x: x,), None])
def test_refuses_what_is_no_program(program):
    with pytest.raises(InputError, match=r"a program: an nn.Module with model.x. and guide.x., or a pair of functions"):
        fit(program, X, batch_size=5, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_where_there_is_none_is_refused():
    with pytest.raises(InputError, match=r"a CUDA device; got a machine on which torch sees none. Try device='cpu'"):
        fit(make_vae(), X, device="cuda")


def test_a_state_of_another_program_is_refused_in_one_line():
    watch = Watch(at=[2], stop=2)
    run(epochs=1, hooks=[watch])
    other = VAE((3, 3), latent_dim=5, hidden=(8,))
    with pytest.raises(InputError, match=r"a state of this program; got .*size mismatch") as caught:
        run(other, epochs=1, resume=watch.states[2])
    assert "\n" not in str(caught.value)


def test_the_loss_of_a_step_is_minus_the_bound_per_example():
    x = torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    watch = Watch()
    run(Mean(0.7), x, epochs=1, learning_rate=1e-300, hooks=[watch])
    order = generator_order(seed=0)
    for info, index in zip(watch.infos, order.split(BATCH), strict=True):
        log_p = dist.Normal(torch.tensor(0.7, dtype=torch.float64), 1.0).log_prob(x[index, 0])
        assert_close(torch.tensor(info.objective, dtype=torch.float64), log_p.mean(), 1e-12)
        assert_close(torch.tensor(info.grad_norm, dtype=torch.float64), (0.7 - x[index]).sum().abs(), 1e-12)


def test_running_baseline_of_an_estimator_is_resumed():
    """The estimator has a running mean; stopped and resumed at step 3, the run ends where the whole one does."""
    x = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    settings = {"epochs": 2, "batch_size": 6, "device": "cpu", "learning_rate": 0.01}

    def program():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return VAE((4,), latent_dim=2, hidden=(5,))

    class Cut(Hook):
        state = None

        def stepped(self, loop, info):
            if loop.position.step == 3:
                self.state = copy.deepcopy(loop.state_dict())

    cut = Cut()
    whole = fit(program(), x, estimator=ReinforceMovingAverage(3), hooks=[cut], **settings).program
    assert cut.state["engine"]["estimator"]["baseline"] != 0
    resumed = fit(program(), x, estimator=ReinforceMovingAverage(3), resume=cut.state, **settings).program
    forgetful = {**cut.state, "engine": {**cut.state["engine"], "estimator": {"baseline": 0.0}}}
    other = fit(program(), x, estimator=ReinforceMovingAverage(3), resume=forgetful, **settings).program
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert not all(map(torch.equal, whole.parameters(), other.parameters()))
