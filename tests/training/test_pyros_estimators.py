"""Pyro's own ELBO objects, given to ``fit``: the parameters of a plain SVI loop bit for bit, resuming, and refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from pyro.infer.tracetmc_elbo import TraceTMC_ELBO
from torch import nn
from torch.distributions import constraints

from pyro_vae import Hook, InputError, elbo, fit
from pyro_vae.base.random import generator, isolated_rng

N, D, Z, Y = 24, 5, 2, 3
CPU = torch.device("cpu")
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
OPTIONS = {"engine": "svi", "epochs": 2, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"}


# ---- programs


def halves(output):
    loc, log_scale = output.chunk(2, -1)
    return loc, log_scale.exp()


def joined(*parts):
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def vae():
    """Takes the observations of a sleep phase, as ``ReweightedWakeSleep`` hands them to the guide."""
    encoder, decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)

    def model(x, observations=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x, observations=None):
        pyro.module("encoder", encoder)
        x = x if observations is None else observations["x"]
        with pyro.plate("data", x.shape[-2], dim=-1):
            pyro.sample("z", dist.Normal(*halves(encoder(x))).to_event(1))

    return model, guide


def left_out():
    """A label that the model enumerates and the guide leaves out."""
    model, _ = enumerated_label()
    style = nn.Linear(D, 2 * Z)

    def guide(x):
        pyro.module("style", style)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = style(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def enumerating(x):
        return pyro.infer.config_enumerate(model)(x)

    return enumerating, guide


def enumerated_label():
    """A label that the guide enumerates, and a style that depends on it."""
    label, style, decoder = nn.Linear(D, Y), nn.Linear(D + Y, 2 * Z), nn.Linear(Z + Y, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(Y)))
            pyro.sample("x", dist.Normal(decoder(joined(z, y)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("label", label)
        pyro.module("style", style)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=label(x)))
            pyro.sample("z", dist.Normal(*halves(style(joined(x, y)))).to_event(1))

    return model, config_enumerate(guide)


def mixture(count=None):
    """Weights and means are latent and shared; the guide leaves the enumerated assignment out."""

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(Y)))
        with pyro.plate("components", Y):
            means = pyro.sample("means", dist.Normal(x.new_zeros(()), 3.0))
        with pyro.plate("data", count or len(x), subsample=torch.arange(len(x))):
            which = pyro.sample("which", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(means[which], 1.0), obs=x[:, 0])

    def guide(x):
        concentration = pyro.param("concentration", torch.ones(Y), constraint=constraints.positive)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        scale = pyro.param("scale", torch.full((Y,), 0.3), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))
        with pyro.plate("components", Y):
            pyro.sample("means", dist.Normal(loc, scale))

    return config_enumerate(model), guide


def binary_latents(learned=False, **baseline):
    """Bernoulli latents; their score has a running mean or a network as its baseline."""
    encoder, decoder = nn.Linear(D, 2), nn.Linear(2, D)
    network = nn.Sequential(nn.Linear(D, 1), nn.Flatten(0)) if learned else None

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((2,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        infer = {"baseline": dict(baseline)}
        if network is not None:
            pyro.module("network", network)
            infer = {"baseline": {"nn_baseline": network, "nn_baseline_input": x}}
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=infer)

    return model, guide


def running_mean():
    return binary_latents(use_decaying_avg_baseline=True, baseline_beta=0.9)


def learned_baseline():
    return binary_latents(learned=True)


ROWS = {
    "trace": (vae, lambda: Trace_ELBO(num_particles=2)),
    "mean field": (vae, lambda: TraceMeanField_ELBO(num_particles=2)),
    "renyi": (vae, lambda: RenyiELBO(alpha=0.5, num_particles=3)),
    "renyi in a plate": (
        vae,
        lambda: RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ),
    "graph": (vae, lambda: TraceGraph_ELBO(num_particles=2)),
    "graph, score": (binary_latents, lambda: TraceGraph_ELBO(num_particles=2)),
    "graph, running mean": (running_mean, TraceGraph_ELBO),
    "graph, learned baseline": (learned_baseline, TraceGraph_ELBO),
    "enumerated label": (enumerated_label, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "enumerated label, sampled": (enumerated_label, lambda: TraceTMC_ELBO(max_plate_nesting=1)),
    "mixture": (mixture, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "subsampled mixture": (lambda: mixture(100), lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "wake": (vae, lambda: ReweightedWakeSleep(num_particles=3, vectorize_particles=False)),
    "wake in a plate": (vae, lambda: ReweightedWakeSleep(num_particles=3, max_plate_nesting=1)),
    "wake and sleep": (vae, lambda: ReweightedWakeSleep(insomnia=0.5, vectorize_particles=False)),
    "sleep": (vae, lambda: ReweightedWakeSleep(insomnia=0.0, model_has_params=False, vectorize_particles=False)),
    "discrepancy": (vae, lambda: Trace_MMD(kernel=RBF(Z), num_particles=4, max_plate_nesting=1)),
}


# ---- a plain loop, and fit


def built(make):
    torch.manual_seed(3)
    return make()


def parameters():
    """Every parameter in the store, unconstrained; ``fit`` puts those of modules back into the modules."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}


def plain(make, estimator):
    """Two epochs of ``SVI`` on the batches and the noise of ``fit``: the parameters, and the losses of each epoch."""
    with pyro.get_param_store().scope(), isolated_rng(CPU):
        pair = built(make)
        with isolated_rng(CPU, seed=0):
            svi = SVI(*pair, pyro.optim.Adam({"lr": OPTIONS["learning_rate"]}), loss=estimator)
            losses = []
            for epoch in range(OPTIONS["epochs"]):
                order = torch.randperm(N, generator=generator(CPU, 0, epoch, 0))
                losses.append([svi.step(X[rows]) for rows in order.split(OPTIONS["batch_size"])])
        return parameters(), losses


def fitted(make, estimator, **more):
    """``fit`` likewise: the same parameters in the same order, and the result."""
    with pyro.get_param_store().scope(), isolated_rng(CPU):
        result = fit(built(make), X, estimator=estimator, **(OPTIONS | more))
        return [parameter.detach().clone() for parameter in result.program.parameters()], result


def difference(ours, theirs):
    """The largest difference between the closest tensors of the same shape; infinite where one has no partner."""
    return [min((float((a - b).abs().max()) for b in theirs if b.shape == a.shape), default=torch.inf) for a in ours]


@pytest.mark.parametrize("row", ROWS)
def test_fit_is_a_plain_loop_of_svi_bit_for_bit(row):
    make, estimator = ROWS[row]
    expected, losses = plain(make, estimator())
    found, result = fitted(make, estimator())
    assert max(difference(found, expected.values())) == 0
    start, _ = fitted(make, estimator(), learning_rate=1e-30)
    assert max(difference(start, expected.values())) > 0
    totals = [sum(one[-1 if row == "sleep" else 0] if isinstance(one, tuple) else one for one in e) for e in losses]
    assert [record.objective for record in result.history] == pytest.approx([-total / N for total in totals])


@pytest.mark.parametrize("row", ROWS)
def test_training_resumes_bit_for_bit(row):
    make, estimator = ROWS[row]
    whole, result = fitted(make, estimator())
    _, half = fitted(make, estimator(), max_steps=4)
    resumed, rest = fitted(make, estimator(), resume=half.state)
    assert max(difference(resumed, whole)) == 0
    assert rest.history[-1].objective == result.history[-1].objective


def test_a_running_mean_that_is_lost_shows():
    """Planted: a checkpoint without the mean that TraceGraph_ELBO keeps in the store."""
    whole, _ = fitted(running_mean, TraceGraph_ELBO())
    _, half = fitted(running_mean, TraceGraph_ELBO(), max_steps=4)
    assert list(half.state["engine"]["estimator"]) == ["__baseline_avg_downstream_cost_z"]
    half.state["engine"]["estimator"] = {}
    resumed, _ = fitted(running_mean, TraceGraph_ELBO(), resume=half.state)
    assert max(difference(resumed, whole)) > 0


def test_a_running_mean_leaves_no_optimizer_behind():
    """Pyro makes a new tensor of it in every step, and an optimiser for each."""

    class Count(Hook):
        def stepped(self, loop, info):
            self.count = len(loop.engine.state_dict()["optimizer"])

    hook = Count()
    fitted(running_mean, TraceGraph_ELBO(), hooks=[hook])
    assert hook.count == 4  # weight and bias of encoder and decoder


@pytest.mark.parametrize(
    "estimator", ["sampled_kl", "iwae", Trace_ELBO(), RenyiELBO(num_particles=1), TraceGraph_ELBO()]
)
def test_the_objective_has_the_scales_of_the_program(estimator):
    """It is −loss/B: a plate of 100 that holds the batch of 8 multiplies it by 100/8, whatever the estimator."""

    def normals(count):
        def model(x):
            with pyro.plate("data", count or len(x), subsample=torch.arange(len(x))):
                z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            weight = pyro.param("weight", torch.tensor(0.5))
            with pyro.plate("data", count or len(x), subsample=torch.arange(len(x))):
                pyro.sample("z", dist.Normal(weight * x, 1.0).to_event(1))

        return lambda: (model, guide)

    found = [
        fitted(normals(count), estimator, learning_rate=1e-30, epochs=1)[1].history[0].objective
        for count in (None, 100)
    ]
    assert found[1] == pytest.approx(100 / 8 * found[0], rel=1e-5)


# ---- held-out bounds and other engines


@pytest.mark.parametrize("row", [r for r in ROWS if "label" not in r and "mixture" not in r])
def test_the_held_out_bound_is_that_of_the_program(row):
    """Whatever the estimator: the ELBO by one particle, the same as under another one at the same parameters."""
    make, estimator = ROWS[row]
    frozen = {"validation": X, "learning_rate": 1e-30}
    bounds = [fitted(make, one, **frozen)[1].history[-1].bound for one in (estimator(), Trace_ELBO())]
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize("engine", ["compiled", "compiled:inductor=false"])
def test_engine_compiled_refuses_what_it_has_no_equal_of(engine):
    for row in ROWS.keys() - {"trace", "mean field"}:
        make, estimator = ROWS[row]
        with pytest.raises(InputError, match=rf"engine compiled can trace.*got {type(estimator()).__name__}") as caught:
            fitted(make, estimator(), engine=engine)
        assert "\n" not in str(caught.value)


def test_engine_auto_says_why_it_does_not_compile():
    class Why(Hook):
        def started(self, loop):
            self.name, self.why = loop.engine_name, loop.why
            loop.stop("seen")

    hook = Why()
    fitted(vae, RenyiELBO(num_particles=2), engine="auto", epochs=5_000, hooks=[hook])
    assert hook.name == "svi"
    assert "RenyiELBO" in hook.why


# ---- refusals


@pytest.mark.parametrize(
    ("make", "estimator", "more", "message"),
    [
        (enumerated_label, TraceEnum_ELBO(), {}, r"states its plate nesting.*TraceEnum_ELBO\(max_plate_nesting=1\)"),
        (vae, ReweightedWakeSleep(), {}, r"states its plate nesting.*vectorize_particles=True, max_plate_nesting=1"),
        (vae, JitTrace_ELBO(), {}, r"runs the program in every step; got JitTrace_ELBO.*Try Trace_ELBO"),
        (
            vae,
            TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
            {},
            r"a value to print; got TraceTailAdaptive_ELBO",
        ),
        (vae, EnergyDistance(max_plate_nesting=1), {}, r"a pyro.infer.ELBO; got EnergyDistance\."),
        (running_mean, TraceGraph_ELBO(), {"batch_size": 10}, r"10 examples and 9 after them.*batch_size that divides"),
        (vae, ReweightedWakeSleep(vectorize_particles=False), {"kl_warmup": 1.0}, r"whose KL can be weighted"),
        (mixture, TraceEnum_ELBO(max_plate_nesting=1), {"kl_warmup": 1.0}, r"share a common poutine.scale"),
        (mixture, Trace_ELBO(), {}, r"the same latent sites.*which"),
        (mixture, TraceEnum_ELBO(max_plate_nesting=1), {"validation": X}, r"plate of the \d+ examples.*weights"),
        (
            left_out,
            TraceEnum_ELBO(max_plate_nesting=1),
            {"validation": X},
            r"latents that the guide samples.*'y', which",
        ),
        (vae, TraceEnum_ELBO(max_plate_nesting=0), {}, r"a program that TraceEnum_ELBO takes"),
    ],
)
def test_refused_in_one_line_before_the_first_step(make, estimator, more, message):
    class Steps(Hook):
        def stepped(self, loop, info):
            raise AssertionError("a step was taken")

    with pytest.raises(InputError, match=message) as caught:
        fitted(make, estimator, hooks=[Steps()], **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [RenyiELBO(alpha=0.9, num_particles=3), RenyiELBO(alpha=0.5, num_particles=4)])
def test_another_order_is_another_estimator_for_resuming(changed):
    _, half = fitted(vae, RenyiELBO(alpha=0.5, num_particles=3), max_steps=4)
    with pytest.raises(InputError, match=r"estimator RenyiELBO\(num_particles=3, alpha=0.5\)"):
        fitted(vae, changed, resume=half.state)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (Trace_ELBO(num_particles=2), elbo.SampledKL(2, vectorize_particles=False)),
        (TraceGraph_ELBO(num_particles=2), elbo.SampledKL(2, vectorize_particles=False)),
        (RenyiELBO(alpha=0.5, num_particles=3), elbo.Renyi(3, alpha=0.5, vectorize_particles=False)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_kl_is_warmed_up_as_that_of_ours(theirs, ours):
    """By a scale on the latents as by arithmetic on the terms: the same objectives and parameters on the same noise."""
    (found, result), (expected, other) = (fitted(vae, estimator, kl_warmup=4.0) for estimator in (theirs, ours))
    plain, _ = fitted(vae, ours)
    assert result.history[0].kl_weight == other.history[0].kl_weight == pytest.approx(1 / 12)
    assert result.history[0].objective == pytest.approx(other.history[0].objective, rel=1e-5)
    assert max(difference(found, expected)) < 1e-5 < max(difference(plain, expected))


def test_the_kl_of_an_enumerated_label_is_weighted():
    """Against the sum over the values, in float64: log p(x|y) + β (log p(y) − log q(y|x))."""
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prior = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    start = torch.tensor([0.3, -1.0, 0.4], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=prior))
            pyro.sample("x", dist.Normal(y.to(x), 1.0), obs=x.squeeze(-1))

    def guide(x):
        slope = pyro.param("slope", start.clone())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=slope * x))

    seen = []

    class Weights(Hook):
        def stepped(self, loop, info):
            seen.append((info.kl_weight, info.objective))

    options = OPTIONS | {"batch_size": 6, "epochs": 3, "kl_warmup": 4.0, "learning_rate": 1e-30}
    estimator = TraceEnum_ELBO(max_plate_nesting=1)
    with pyro.get_param_store().scope():
        fit((model, config_enumerate(guide)), x[:, None], estimator=estimator, hooks=[Weights()], **options)
    log_q, log_p = (start * x[:, None]).log_softmax(-1), prior.log_softmax(-1)
    log_px = dist.Normal(torch.arange(3.0, dtype=torch.float64), 1.0).log_prob(x[:, None])
    expected = [(w, float((log_q.exp() * (log_px + w * (log_p - log_q))).sum() / 6)) for w in (0.25, 0.5, 0.75)]
    assert [pair[0] for pair in seen] == [0.25, 0.5, 0.75]
    assert [pair[1] for pair in seen] == pytest.approx([pair[1] for pair in expected], rel=1e-10)
