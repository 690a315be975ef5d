"""Estimators side by side: the statistics against what they name, on problems where the answer is known."""

import copy
import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from PIL import Image
from pyro.infer import RenyiELBO
from torch import nn
from toys import NOISE

from pyro_vae import VAE, InputError, elbo, fit
from pyro_vae.base.registry import split_specs
from pyro_vae.base.statistics import Estimate, Moments, estimate, jackknife
from pyro_vae.cli.main import main
from pyro_vae.cli.tables import comparison_tables
from pyro_vae.data import as_images
from pyro_vae.evaluation import chunking
from pyro_vae.evaluation.methods.bounds import importance_bounds
from pyro_vae.program.contexts import own_store
from pyro_vae.studies.gradients import compare_gradients, effective_sample_size, parameter_groups
from pyro_vae.studies.training import Lap, Race, race, training_points


class Known(nn.Module):
    """The Gaussian toy with one number for each parameter: z ~ N(0, 1), x ~ N(θ z, σ²), q = N(a x + m, e^{2r})."""

    def __init__(self, off):
        super().__init__()
        precision = 1 + 0.81 / NOISE**2
        self.theta = nn.Parameter(torch.tensor([0.9], dtype=torch.float64))
        self.guide_net = nn.ParameterList(
            torch.tensor([value], dtype=torch.float64)
            for value in (0.9 / NOISE**2 / precision, off, -0.5 * math.log(precision) + off)
        )

    def model(self, x):
        theta = pyro.param("theta", self.theta)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]), 1.0))
            pyro.sample("x", dist.Normal((theta * z)[..., None], NOISE).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("guide", self.guide_net)
        a, m, r = self.guide_net
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x[:, 0] + m, r.exp()))


EVIDENCE = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(0.81 + NOISE**2))
X = torch.full((1, 1), 0.4, dtype=torch.float64)


def reported(estimators, off=0.35, draws=1000, reference_draws=2000):
    found = compare_gradients(Known(off), X, estimators, draws, reference_draws)
    return {r.estimator: {g.group: g for g in r.gradients} | {"all": r} for r in found}


# --- the report itself ------------------------------------------------------------------------------------


def test_a_comparison_prints_as_a_table_and_turns_into_numbers():
    wanted = {"plain": elbo.SampledKL(), "tvo": elbo.TVO(3)}
    found = compare_gradients(Known(0.35), X, wanted, draws=20, reference_draws=2000)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["estimator", "K", "bound", "group", "variance", "SNR", "bias²", "ms"]
    assert [(line.split()[0], "–" in line) for line in lines[1:]] == [("plain", False)] * 2 + [("tvo", True)] * 2
    assert str(found[0].gradients[0].variance) in lines[1]
    assert found._repr_html_().count("<tr") == 5
    frame = found.to_dataframe()
    assert list(frame["estimator"] + " " + frame["group"]) == ["plain theta", "plain phi", "tvo theta", "tvo phi"]
    assert frame.loc[1, "snr"] == found[0].gradients[1].snr.value
    assert frame.loc[1, "snr_standard_error"] == found[0].gradients[1].snr.standard_error
    assert frame["bias_squared"].isna().tolist() == [False, False, True, True]
    assert all(frame[column].dtype == float for column in frame if column.startswith("bias"))


def test_a_race_prints_as_a_table_and_turns_into_numbers():
    found = Race([Lap("iwae", "equal steps", 20, 1.25, Estimate(-90.5, 0.25, 100), 500)])
    assert repr(found).splitlines()[1].split() == ["iwae", "equal", "steps", "20", "1.25", "-90.50", "±", "0.25"]
    assert "L_500" in repr(found)
    assert "-90.50 ± 0.25" in found._repr_html_()
    row = found.to_dataframe().iloc[0]
    assert (row["log_evidence"], row["log_evidence_standard_error"], row["steps"]) == (-90.5, 0.25, 20)


# --- what is refused --------------------------------------------------------------------------------------


def few(**change):
    given = {"program": Known(0.35), "x": X, "estimators": {"stl": "stl"}, "draws": 20, "reference_draws": 20}
    return compare_gradients(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 1}, "draws of at least 20; got 1. Try draws=20"),
        ({"reference_draws": 0}, "reference_draws of at least 20; got 0"),
        ({"x": as_images(X)}, r"a batch, a tensor \(B, ...\); got Images. Try data.validation.binarized"),
        ({"estimators": {}}, "estimators by name, at least one; got {}"),
        ({"estimators": [elbo.STL()]}, r"estimators by name, at least one; got \[STL"),
        ({"estimators": "stl"}, "estimators by name, at least one; got 'stl'"),
        ({"estimators": {"a": 3}}, "an estimator by name, or a pyro.infer.ELBO; got 3"),
        ({"estimators": {"a": "slt"}}, "got 'slt'. Try 'stl'"),
    ],
    ids=str,
)
def test_a_comparison_refuses_what_it_cannot_use(change, message):
    with pytest.raises(InputError, match=message):
        few(**change)


def test_a_comparison_takes_estimators_by_name_and_a_pair_of_functions():
    program = Known(0.35)
    assert repr(few()[0].gradients) == repr(few(estimators={"stl": elbo.STL()})[0].gradients)
    pair = few(program=(program.model, program.guide))
    assert repr([pair[0].bound, pair[0].gradients]) == repr([few()[0].bound, few()[0].gradients])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimators": {}}, "estimators by name, at least one"),
        ({"steps": 0}, "steps of at least 1; got 0. Try steps=1000"),
        ({"num_particles": 0}, "a num_particles that is a whole number of at least 1; got 0"),
        ({"test": "x"}, "images, a tensor or an array; got str"),
    ],
    ids=str,
)
def test_a_race_refuses_what_it_cannot_use(change, message):
    given = {"program": VAE((4,), 2, (3,)), "train": torch.ones(20, 4), "test": torch.ones(5, 4), "steps": 2}
    with pytest.raises(InputError, match=message):
        race(**{**given, "estimators": {"stl": "stl"}, "batch_size": 10, **change})


def test_a_race_takes_tensors_and_estimators_by_name():
    given = {"train": torch.ones(20, 4), "test": torch.ones(5, 4), "steps": 2, "num_particles": 5, "batch_size": 10}
    laps = race(VAE((4,), 2, (3,)), **given, estimators={"stl": "stl", "iwae": elbo.IWAE(3)})
    assert [(lap.estimator, lap.after) for lap in laps[:2]] == [("stl", "equal steps"), ("iwae", "equal steps")]


# --- moments and jackknife --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 37])
def test_moments_are_mean_and_variance_of_the_whole_stream(count):
    values = 1000 + torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments(blocks=10)
    for value in values:
        moments.add(value)
    left_out = moments.left_out()
    assert moments.count == left_out.count[0] == count
    assert_close(moments.mean(), values.mean(0), tolerance=1e-13)
    assert moments.variance() == pytest.approx(values.var(0, correction=1).sum().item(), rel=1e-9)
    kept = [i for i in range(count) if i % 10 != 3]
    assert_close(left_out.mean[0], values.mean(0), tolerance=1e-13)
    assert_close(left_out.mean[4], values[kept].mean(0), tolerance=1e-13)
    assert left_out.variance[4].item() == pytest.approx(values[kept].var(0, correction=1).sum().item(), rel=1e-9)
    assert left_out.count[4] == len(kept)
    signal = values[kept].mean(0).square().sum() - values[kept].var(0, correction=1).sum() / len(kept)
    assert left_out.signal[4].item() == pytest.approx(signal.item(), rel=1e-9)


def test_jackknife_of_a_mean_over_blocks_is_its_standard_error():
    values = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, error = jackknife(lambda b: values[[i for i in range(10) if i != b]].mean().item(), 10)
    assert value == pytest.approx(values.mean().item())
    assert error == pytest.approx(estimate(values).standard_error)


# --- gradients --------------------------------------------------------------------------------------------


def exact_elbo_gradient(off):
    """Norm of the mean, total variance and cosine of the sampled-KL gradient (K = 1) in θ and φ, by quadrature."""
    nodes = torch.linspace(-8, 8, 1001, dtype=torch.float64)  # evenly: θ's cosine is a sign, which jumps
    weight, program, x = torch.distributions.Normal(0.0, 1.0).log_prob(nodes).softmax(0), Known(off), X[0, 0]
    a, m, r = program.guide_net
    rows = []
    for eps in nodes:
        z = a * x + m + r.exp() * eps
        normal = torch.distributions.Normal
        log_w = normal(0.0, 1.0).log_prob(z) + normal(program.theta * z, NOISE).log_prob(x)
        log_w = log_w - normal(a * x + m, r.exp()).log_prob(z)
        rows.append(torch.cat(torch.autograd.grad(log_w, [program.theta, a, m, r])))
    rows = torch.stack(rows)
    found = {}
    for group, columns in (("theta", rows[:, :1]), ("phi", rows[:, 1:])):
        mean = weight @ columns
        cosines = columns @ mean / columns.norm(dim=1) / mean.norm()
        found[group] = (mean.norm(), (weight @ (columns - mean) ** 2).sum(), weight @ cosines)
    return found


@pytest.mark.parametrize("group", ["theta", "phi"])
def test_norm_variance_snr_and_cosine_are_those_of_the_exact_gradient(group):
    found = reported({"plain": elbo.SampledKL()})["plain"][group]
    norm, variance, cosine = (value.item() for value in exact_elbo_gradient(0.35)[group])
    assert abs(found.variance.value - variance) <= 5 * found.variance.standard_error
    assert abs(found.snr.value - norm / math.sqrt(variance)) <= 5 * found.snr.standard_error
    assert abs(found.cosine.value - cosine) <= 5 * found.cosine.standard_error
    assert found.norm == pytest.approx(norm, rel=0.3)


def test_a_figure_that_is_not_known_has_a_reason_instead():
    """The gradients in a and m are proportional, so φ spans two dimensions; at the posterior it has no direction."""
    (phi,) = (g for g in compare_gradients(Known(0.35), X, {"a": "sampled_kl"}, 20, 2000)[0].gradients[1:])
    assert (phi.dsnr, len(phi.unknown)) == (None, 1)
    assert phi.unknown[0].startswith("DSNR: Expected gradients that span at least 4 dimensions; got 2,")
    found = compare_gradients(Known(0.0), X, {"a": "sampled_kl"}, 20, 20)
    _, at_posterior = found[0].gradients
    assert (at_posterior.bias_squared, at_posterior.dsnr, at_posterior.cosine) == (None, None, None)
    assert [line.split(":")[0] for line in at_posterior.unknown] == ["bias²", "DSNR", "cosine"]
    assert at_posterior.distance_squared is not None
    assert at_posterior.snr.standard_error > 0
    row = found.to_dataframe().iloc[1]
    assert [math.isnan(row[name]) for name in ("dsnr", "dsnr_standard_error", "cosine", "bias_squared")] == [True] * 4
    table = comparison_tables(found, "here")[2]
    assert [list(table.columns[i].cells) for i in (3, 4, 5)] == [["–"]] * 3
    assert table.caption.count("a, ") == 3
    assert at_posterior.unknown[2].replace("[", "\\[") in table.caption


@pytest.mark.slow
def test_bias_is_found_where_it_is_and_nowhere_else():
    names = {
        "iwae": elbo.IWAE(5),
        "dreg": elbo.DReG(5),
        "iwae_stl": elbo.IWAESTL(5),
        "stl": elbo.STL(),
    }
    found = reported(names)
    for name, groups in found.items():
        bias = groups["phi"].distance_squared
        biased = bias.value > 5 * bias.standard_error
        assert biased == (name == "iwae_stl"), f"{name}: {bias}"
        assert abs(groups["theta"].distance_squared.value) <= 5 * groups["theta"].distance_squared.standard_error


def test_reference_is_the_plain_estimator_of_the_same_bound():
    names = {
        "dreg": elbo.DReG(5),
        "pyro": elbo.trace_elbo(),
        "piwae": elbo.PIWAE(2, 3),
        "vimco": elbo.VIMCO(4),
        "beta": elbo.beta_vae(beta=2.0, estimator="stl"),
        "weighted": elbo.Weighted(elbo.CIWAE(3, beta=0.1), beta=0.5),
        "tvo": elbo.TVO(3),
        "wake_sleep": elbo.WakeSleep(2),
    }
    found = reported(names, draws=20, reference_draws=20)
    assert found["dreg"]["phi"].reference == "IWAE(num_particles=5)"
    assert found["vimco"]["phi"].reference == "IWAE(num_particles=4)"
    assert found["beta"]["phi"].reference == "Weighted(estimator=SampledKL(num_particles=1), beta=2.0)"
    assert found["weighted"]["phi"].reference == (
        "Weighted(estimator=ByAutograd(estimator=CIWAE(num_particles=3, beta=0.1)), beta=0.5)"
    )
    assert found["tvo"]["phi"].reference is None
    assert found["wake_sleep"]["phi"].reference is None
    assert found["wake_sleep"]["theta"].reference == "SampledKL(num_particles=2)"
    assert found["pyro"]["phi"].reference == "SampledKL(num_particles=1)"
    assert (found["piwae"]["theta"].reference, found["piwae"]["phi"].reference) == (
        "IWAE(num_particles=6)",
        "IWAE(num_particles=2)",
    )


class NoReference(elbo.Estimator):
    """An estimator that does not define its reference."""

    num_particles = 1

    def weighting(self, terms):
        return elbo.TotalDerivative.of(terms.log_weight.mean(0), torch.ones_like(terms.log_weight))


class Coin(nn.Module):
    """A Bernoulli latent in model and guide: no reparameterization."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        self.phi = nn.Parameter(torch.tensor([-0.4], dtype=torch.float64))

    def model(self, x):
        theta = pyro.param("theta", self.theta)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros_like(x[:, 0])))
            pyro.sample("x", dist.Normal((theta * z)[..., None], NOISE).to_event(1), obs=x)

    def guide(self, x):
        phi = pyro.param("phi", self.phi)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=phi * x[:, 0]))


def test_an_estimator_without_a_reference_is_an_error_and_no_bias_of_zero():
    with pytest.raises(InputError, match=r"defines its reference.* got NoReference, which does not"):
        reported({"no_reference": NoReference()}, draws=20, reference_draws=20)
    with pytest.raises(InputError, match=r"got NoReference, which does not"):  # for discrete latents, too
        compare_gradients(Coin(), X, {"no_reference": NoReference()}, 20, 20)
    with pytest.raises(InputError, match="got RenyiELBO, which defines none"):
        reported({"renyi": RenyiELBO(alpha=0.5)}, draws=20, reference_draws=20)


def test_where_no_reference_is_known_no_bias_is_reported():
    found = reported({"tvo": elbo.TVO(3), "rws": elbo.RWS(3), "sleep": elbo.WakeSleep(2)}, draws=20, reference_draws=20)
    assert [found[name]["phi"].bias_squared for name in found] == [None, None, None]
    assert [found[name]["phi"].distance_squared for name in found] == [None, None, None]
    assert [found[name]["theta"].distance_squared is None for name in found] == [True, False, False]
    table = comparison_tables([groups["all"] for groups in found.values()], "here")[2]
    assert list(table.columns[3].cells) == ["–", "–", "–"]


def test_without_reparameterization_a_bias_is_found_where_there_is_one():
    """The reference takes the score; the concrete relaxation follows another objective, here for θ above all."""
    estimators = {"disarm": elbo.DisARM(2), "rebar": elbo.Rebar(2), "concrete": elbo.Concrete(2)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = compare_gradients(Coin(), X, estimators, 1500, 1500)
    for report in found:
        for gradient in report.gradients:
            assert gradient.reference == "SampledKL(num_particles=2)"
            errors = gradient.distance_squared.value / gradient.distance_squared.standard_error
            biased = (report.estimator, gradient.group) == ("concrete", "theta")
            assert errors > 5 if biased else abs(errors) <= 5


def without_score(kind):
    """A biased relative of an importance-weighted estimator: its gradient without the score term."""
    return dataclasses.dataclass(frozen=True)(type(f"{kind.__name__}STL", (kind,), {"gradient": elbo.PathDerivative}))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (elbo.CIWAE(5, beta=0.1), without_score(elbo.CIWAE)(5, beta=0.1)),
        (elbo.Renyi(5, alpha=0.1), without_score(elbo.Renyi)(5, alpha=0.1)),
    ],
    ids=["ciwae", "renyi"],
)
def test_bias_is_found_in_relatives_of_estimators_with_a_bound_of_their_own(right, wrong):
    """No other estimator maximises these bounds. If each were its own reference, any bias would read as 0."""
    found = reported({"right": right, "wrong": wrong}, draws=1500, reference_draws=1500)
    bias = {name: groups["phi"].distance_squared for name, groups in found.items()}
    assert bias["wrong"].value > 5 * bias["wrong"].standard_error
    assert abs(bias["right"].value) <= 5 * bias["right"].standard_error


def test_wrong_weights_show_as_a_bias_against_the_derivative_of_the_value():
    class Uneven(elbo.IWAE):
        def weighting(self, terms):
            found = super().weighting(terms)
            return elbo.TotalDerivative(found.value, found.theta**2)

        def reference(self, group):
            return elbo.ByAutograd(self)

    found = reported({"uneven": Uneven(5)}, draws=1500, reference_draws=1500)["uneven"]["phi"]
    assert found.distance_squared.value > 5 * found.distance_squared.standard_error
    assert found.reference.startswith("ByAutograd(estimator=")


class OwnReference(elbo.IWAESTL):
    """A biased estimator that names itself as its reference."""

    def reference(self, group):
        return self


def test_an_estimator_as_its_own_reference_is_an_error():
    with pytest.raises(InputError, match=r"a reference other than itself; got OwnReference.* Try .*ByAutograd\(self\)"):
        reported({"own": OwnReference(5)}, draws=20, reference_draws=20)


def test_a_wrong_reference_shows_as_a_bias():
    """A planted estimator of another bound than its reference's: the checker must see it."""

    class Planted(elbo.IWAE):
        def reference(self, group):
            return elbo.SampledKL(1)

    found = reported({"planted": Planted(20)}, draws=1500, reference_draws=1500)
    bias = found["planted"]["phi"].distance_squared
    assert bias.value > 5 * bias.standard_error


def test_stl_at_the_posterior_has_no_variance_and_every_bound_is_log_evidence():
    found = reported({"stl": elbo.STL(), "iwae": elbo.IWAE(5)}, off=0.0, draws=50, reference_draws=50)
    assert found["stl"]["phi"].variance.value < 1e-25
    evidence = EVIDENCE.log_prob(X[0, 0]).item()
    for name in found:
        assert found[name]["all"].bound.value == pytest.approx(evidence, rel=1e-12)
        assert found[name]["all"].ess.value == pytest.approx(1.0, rel=1e-12)


def test_effective_sample_size_is_between_one_particle_and_all():
    with own_store(program := Known(2.0)):
        size = effective_sample_size(program, X, 50)
    assert 1 / 50 <= size.value < 0.6


def test_groups_are_the_models_and_the_guides_parameters():
    vae = VAE((4,), 2, (3,))
    with own_store(vae):
        groups = parameter_groups(vae, torch.ones(3, 4))
    assert {id(t) for t in groups["theta"]} == {id(p) for p in vae.decoder.parameters()}
    assert {id(t) for t in groups["phi"]} == {id(p) for p in vae.encoder.parameters()}


def test_comparison_leaves_parameters_and_random_states_alone_and_repeats_itself():
    program, before = Known(0.3), torch.get_rng_state()
    runs = [compare_gradients(program, X, {"stl": elbo.STL()}, 20, 20, seed=3)[0] for _ in range(2)]
    first, second = (str(found.gradients) for found in runs)
    assert first == second
    assert str(compare_gradients(program, X, {"stl": elbo.STL()}, 20, 20, seed=4)[0].gradients) != first
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in program.parameters())


# --- held-out evidence and the race -----------------------------------------------------------------------


def test_importance_bounds_are_log_evidence_at_the_posterior_and_rise_with_particles():
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    evidence = EVIDENCE.log_prob(x[:, 0])
    assert_close(importance_bounds(Known(0.0), as_images(x), 250), evidence.to(torch.float64), tolerance=1e-12)
    many = as_images(x.repeat(300, 1))
    low, high = (importance_bounds(Known(0.8), many, k, seed=k) for k in (2, 300))
    difference = high - low
    assert difference.mean() > 5 * difference.std() / math.sqrt(len(difference))
    assert (high.mean() - evidence.mean()).abs() < 0.05


def test_importance_bounds_do_not_depend_on_the_chunks(monkeypatch):
    """At the posterior each chunk is exact; off it, chunks of particles must be averaged inside the logarithm."""
    x = as_images(torch.full((4000, 1), 0.4, dtype=torch.float64))
    whole = importance_bounds(Known(0.5), x, 60, seed=1)
    monkeypatch.setattr(chunking, "PARTICLES_AT_ONCE", 7)
    cut = importance_bounds(Known(0.5), x, 60, seed=2)
    error = math.hypot(estimate(whole).standard_error, estimate(cut).standard_error)
    assert abs(whole.mean() - cut.mean()) <= 5 * error


def test_race_takes_equal_steps_then_equal_time_and_leaves_the_program_as_it_was():
    x = torch.bernoulli(torch.full((60, 6), 0.3), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((6,), 2, (8,))
    before = [p.detach().clone() for p in vae.parameters()]
    names = {"elbo": elbo.SampledKL(), "iwae": elbo.IWAE(20)}
    laps = race(
        vae, as_images(x[:40]), as_images(x[40:]), names, 7, num_particles=20, batch_size=10, learning_rate=0.01
    )
    assert [(lap.estimator, lap.after) for lap in laps] == [
        ("elbo", "equal steps"), ("iwae", "equal steps"), ("elbo", "equal time"), ("iwae", "equal time"),
    ]  # fmt: skip
    assert [lap.steps for lap in laps[:2]] == [7, 7]
    slowest = max(lap.seconds for lap in laps[:2])
    assert all(lap.seconds >= slowest for lap in laps[2:])
    assert all(lap.log_evidence.count == 20 for lap in laps)
    assert all(map(torch.equal, before, vae.parameters()))
    assert list(training_points(vae, as_images(x), [0], batch_size=10)) == [0]
    assert all(map(torch.equal, before, vae.parameters()))
    assert list(training_points(vae, as_images(x), [3], batch_size=10)) == [3]
    assert not all(map(torch.equal, before, vae.parameters()))


def copies(count):
    """Make equal VAEs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((6,), 2, (8,))
    return [copy.deepcopy(vae) for _ in range(count)]


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
def test_several_points_are_points_of_one_training(engine):
    """Optimiser, order and noise resume: with Adam started anew at each point the parameters would differ."""
    x = as_images(torch.bernoulli(torch.full((50, 6), 0.3), generator=torch.Generator().manual_seed(0)))
    settings = {"batch_size": 12, "learning_rate": 0.01, "seed": 3, "engine": engine}
    through, at_once, fitted = copies(3)
    seen = {steps: parameters(through) for steps in training_points(through, x, [0, 7, 13], **settings)}
    assert list(seen) == [0, 7, 13]
    list(training_points(at_once, x, [13], **settings))
    assert torch.equal(seen[13], parameters(at_once))
    fit(fitted, x, epochs=100, max_steps=7, device="cpu", **settings)
    assert torch.equal(seen[7], parameters(fitted))
    assert torch.equal(seen[0], parameters(copies(1)[0]))


def parameters(program):
    return torch.cat([p.detach().flatten().clone() for p in program.parameters()])


def test_the_second_lap_resumes_the_first():
    """If the time is already over after the first lap, both laps are one training of as many steps."""
    x = torch.bernoulli(torch.full((60, 6), 0.3), generator=torch.Generator().manual_seed(0))
    vae, other = copies(2)
    images, held_out = as_images(x[:40]), as_images(x[40:])
    laps = race(vae, images, held_out, {"elbo": elbo.SampledKL()}, 7, num_particles=20, batch_size=10)
    settings = {"estimator": elbo.SampledKL(), "batch_size": 10, "device": "cpu", "engine": "svi", "epochs": 10**6}
    fit(other, images, max_steps=laps[1].steps, **settings)
    assert laps[1].log_evidence.value == estimate(importance_bounds(other, held_out, 20)).value


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    file = tmp_path_factory.mktemp("compare") / "images.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (80, 4, 3), dtype=np.uint8))
    return file


COMPARE = ["--hidden", "[5]", "--latent_dim", "2", "--batch_size", "16", "--device", "cpu", "--draws", "20"]


def test_command_prints_tables_and_writes_json_and_figure(images, tmp_path, capsys):
    argv = ["compare", "--data", str(images), *COMPARE, "--reference_draws", "20", "--batch", "4", "--at", "[0, 5]"]
    argv += ["--estimators", "trace_elbo,stl,iwae:num_particles=3,ciwae:num_particles=2,beta=0.1,rws", "--steps", "3"]
    argv += ["--judge_particles", "5", "--judge_examples", "8"]
    files = tmp_path / "c.json", tmp_path / "c.png"
    assert main([*argv, "--json", str(files[0]), "--figure", str(files[1])]) == 0
    printed = capsys.readouterr().out
    for word in ("θ (model) at step 5", "φ (guide) at step 0", "SNR", "bias²", "DSNR", "ESS/K", "equal time"):
        assert word in printed
    record = json.loads(files[0].read_text())
    names = ["trace_elbo", "stl", "iwae:num_particles=3", "ciwae:num_particles=2,beta=0.1", "rws"]
    assert list(record["points"]) == ["0", "5"]
    for reports in record["points"].values():
        assert [r["estimator"] for r in reports] == names
        for r in reports:
            assert [g["group"] for g in r["gradients"]] == ["theta", "phi"]
            assert all(g["draws"] == 20 and g["variance"]["value"] > 0 for g in r["gradients"])
            assert r["memory"] > 0
            assert r["seconds"] > 0
    assert [r["particles"] for r in record["points"]["0"]] == [1, 1, 3, 2, 5]
    unbiased, (theta, phi) = record["points"]["0"][2]["gradients"], record["points"]["0"][4]["gradients"]
    assert all(g["distance_squared"]["value"] is not None for g in (*unbiased, theta))
    assert phi["reference"] is None
    assert phi["bias_squared"] is None  # null: no plain estimator is known for φ of RWS
    assert len(record["laps"]) == 10
    assert all(lap["log_evidence"]["count"] == 8 and lap["num_particles"] == 5 for lap in record["laps"])
    assert record["data"]["binarize"] == "dynamic"
    with Image.open(files[1]) as picture:
        assert min(picture.size) > 300


def test_command_takes_a_finished_run(images, tmp_path):
    train = [
        "train",
        "--data",
        str(images),
        "--hidden",
        "[5]",
        "--latent_dim",
        "2",
        "--batch_size",
        "16",
        "--epochs",
        "1",
    ]
    assert main([*train, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    files = sorted(tmp_path.rglob("*"))
    argv = [
        "compare",
        "--run",
        str(tmp_path / "run"),
        "--estimators",
        "stl",
        "--draws",
        "20",
        "--reference_draws",
        "20",
    ]
    assert main([*argv, "--device", "cpu", "--batch", "4"]) == 0
    assert sorted(tmp_path.rglob("*")) == files


BAD = {
    "--estimators stll": "Try 'stl'",
    "--estimators stl --draws 3": "draws of at least 20; got 3",
    "--estimators stl --batch 0": "batch of at least 1; got 0",
    "--estimators stl --at [5,1]": "steps in rising order",
    "--estimators stl --at []": "steps in rising order",
    "--estimators iwae:num_particles=0": "num_particles that is a whole number of at least 1",
    "--estimators stl --run nowhere": "a run folder; got 'nowhere', which does not exist",
    "--estimators stl --run nowhere --at [3]": "--at for a program that is trained here",
    "--draws 20": "estimators",
}


@pytest.mark.parametrize("options", BAD)
def test_command_refuses(options, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--data", str(images), "--device", "cpu", *options.split()]) == 2
    error = capsys.readouterr().err
    assert BAD[options] in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_specs_are_split_where_a_name_begins():
    assert split_specs("a") == ["a"]
    assert split_specs("a,b:x=1,y=2,c,d:z=3") == ["a", "b:x=1,y=2", "c", "d:z=3"]


def test_slope_of_the_experiment_is_that_of_a_power_law():
    path = Path(__file__).parents[2] / "experiments" / "signal_to_noise.py"
    spec = importlib.util.spec_from_file_location("signal_to_noise", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reports = [
        {
            "estimator": f"iwae:num_particles={k}",
            "particles": k,
            "gradients": [{"group": "phi", "snr": {"value": 2.0 * k**-0.5, "standard_error": 0.1 / k}}],
        }
        for k in (1, 4, 16)
    ]
    assert module.slope(reports, "iwae", "phi")["value"] == pytest.approx(-0.5)
