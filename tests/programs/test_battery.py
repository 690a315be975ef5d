"""Every estimator on every program of the table: the value and the gradient are right, or the refusal says why.

The truth is one particle at a time, in float64. Draws are paired by their seeds: on the same noise a difference is an
error, on other noise a mean must be within five standard errors. The short form takes DRAWS draws, the form marked
``long`` many more.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from programs.reference import LocalWitness, Witness, assert_same_means, sampled, seeded, step
from programs.table import CASES
from pyro_vae import InputError, elbo, fit
from pyro_vae.data import as_data
from pyro_vae.evaluation.methods.bounds import held_out_elbo
from pyro_vae.program.contexts import evaluating

K = 3
DRAWS = [16, pytest.param(500, marks=pytest.mark.long)]
ELBOS = {"sampled_kl": elbo.SampledKL, "stl": elbo.STL, "reinforce": elbo.Reinforce}
IWAES = {"iwae": elbo.IWAE, "dreg": elbo.DReG, "vimco": elbo.VIMCO}
ESTIMATORS = ELBOS | IWAES | {"local_iwae": elbo.LocalIWAE}
SCORES = ("reinforce", "vimco")
FITTED = [name for name, case in CASES.items() if not case.traits & {"whole", "no_terms"}]


def make(name, num_particles=K, **more):
    return ESTIMATORS[name](num_particles=num_particles, **more)


@contextmanager
def expecting(case, *checks):
    """The block is right on this program, or raises one line that matches a refusal in the table for these checks."""
    pattern = "|".join(filter(None, map(case.expected, checks)))
    if not pattern:
        yield
        return
    with pytest.raises(InputError, match=pattern) as caught:
        yield
    assert "\n" not in str(caught.value)


@cache
def reference(name, family, draws):
    """The draws of the reference on a program: shared by the estimators of a family."""
    with CASES[name].running() as users:
        if family == "local":
            return sampled(LocalWitness(K), users, draws)
        return sampled(Witness(K, elbo=family == "elbo", mixed="mixes" in CASES[name].traits), users, draws)


def family_of(estimator, case):
    """Without latents that the examples share, weights given those are the importance weights."""
    if estimator == "local_iwae" and "global" in case.traits:
        return "local"
    return "elbo" if estimator in ELBOS else "iwae"


def truth(case, estimator):
    """A straight-through site's pathwise gradient is biased: the score function's is that of the site without it."""
    return "one hot" if "straight_through" in case.traits and estimator in SCORES else case.name


def pyros_elbo(case):
    """Trace_ELBO samples an enumerated site, and warns."""
    return TraceEnum_ELBO(max_plate_nesting=1) if "enumerated" in case.traits else Trace_ELBO()


# ---- value and gradient


@pytest.mark.parametrize("name", CASES)
def test_one_particle_is_trace_elbo(name):
    """``SampledKL()`` as users write it: the same noise, the same number; without a score, the same gradient.

    A site that the guide enumerates is summed over, as ``TraceEnum_ELBO`` does.
    """
    case = CASES[name]
    with case.running() as users, expecting(case, "sampled_kl"):
        seeded(0, users.call, elbo.SampledKL().loss)
        ours, stock = (seeded(1, step, one, users) for one in (elbo.SampledKL(), pyros_elbo(case)))
        assert torch.allclose(ours["loss"], stock["loss"], rtol=1e-10)
        if not case.traits & {"discrete", "rejected", "factor_score"}:
            wrong = [n for n in stock if not torch.allclose(ours[n], stock[n], rtol=1e-9, atol=1e-10)]
            assert wrong == []


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, estimator, draws):
    case = CASES[name]
    family = family_of(estimator, case)
    with case.running() as users, expecting(case, estimator):
        draws *= 12 if "rejected" in case.traits else 1  # heavy tails
        found = sampled(make(estimator, vectorize_particles=False), users, draws)
        assert_same_means(found, reference(truth(case, estimator), family, draws))


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("estimator", ["sampled_kl", "iwae", "vimco", "local_iwae"])
@pytest.mark.parametrize("name", CASES)
def test_vectorized_particles_are_those_one_by_one(name, estimator, draws):
    """Other noise, the same mean; a program that particles change is refused, and the message says what to do."""
    case = CASES[name]
    family = family_of(estimator, case)
    with case.running() as users, expecting(case, estimator, "vectorized"):
        found = sampled(make(estimator, vectorize_particles=True), users, draws)
        assert_same_means(found, reference(truth(case, estimator), family, draws))


# ---- training and evaluation


def trained(users, **more):
    settings = {"engine": "svi", "epochs": 2, "batch_size": len_of(users.data), "learning_rate": 0.01, "device": "cpu"}
    return fit(users.pair, users.data, estimator="sampled_kl", **(settings | more))


def tensors(data):
    return list(data.values()) if isinstance(data, dict) else [data] if isinstance(data, torch.Tensor) else list(data)


def len_of(data):
    return len(tensors(data)[0])


def repeated(data, times):
    """The examples several times over: the noise of a held-out mean gets small."""
    more = [torch.cat([tensor] * times) for tensor in tensors(data)]
    if isinstance(data, dict):
        return dict(zip(data, more, strict=True))
    return more[0] if isinstance(data, torch.Tensor) else tuple(more)


def run(name, **more):
    """Train a fresh copy of a program; return its state and the history."""
    with CASES[name].running() as users:
        result = trained(users, **more)
        return result, {key: value.clone() for key, value in result.program.state_dict().items()}


def assert_equal_states(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    wrong = [n for n in expected if not torch.allclose(found[n], expected[n], rtol=tolerance, atol=tolerance)]
    assert wrong == []


@pytest.mark.parametrize("name", FITTED)
def test_fit_resumes_bit_for_bit(name):
    case = CASES[name]
    with expecting(case, "fit", "sampled_kl"):
        whole, state = run(name)
        half, _ = run(name, epochs=1)
        _, resumed = run(name, resume=half.state)
        assert [record.step for record in whole.history] == [1, 2]
        assert_equal_states(resumed, state)


@pytest.mark.parametrize("name", FITTED)
def test_engine_compiled_takes_the_steps_of_svi(name):
    case = CASES[name]
    with expecting(case, "compiled", "sampled_kl"):
        _, eager = run(name)
        _, traced = run(name, engine="compiled:inductor=false")
        assert_equal_states(traced, eager, tolerance=1e-8)


@pytest.mark.parametrize("name", [n for n in FITTED if not CASES[n].traits & {"global", "scaled"}])
def test_the_held_out_bound_is_that_of_trace_elbo(name):
    """In evaluation mode, as ``fit`` runs it with validation data."""
    case, times = CASES[name], 30
    with case.running() as users, expecting(case, "evaluate", "sampled_kl"):
        held_out = repeated(users.data, times)
        result = trained(users, epochs=1, validation=held_out)
        with evaluating(result.program, torch.device("cpu"), seed=1):
            stock = stock_bound(result.program, users, pyros_elbo(case))
        found = held_out_elbo(result.program, as_data(held_out), seed=1)
        assert len(found) == times * len_of(users.data)
        assert abs(found.mean() - stock) <= 5 * found.std() / len(found) ** 0.5
        assert result.history[-1].bound == pytest.approx(float(held_out_elbo(result.program, as_data(held_out)).mean()))


def stock_bound(program, users, elbo_of):
    """The mean of Pyro's bound per example over many draws."""
    with torch.no_grad():
        losses = [elbo_of.loss(program.model, program.guide, *users.args, **users.kwargs) for _ in range(200)]
    return -sum(losses) / len(losses) / len_of(users.data)
