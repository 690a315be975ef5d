"""A particle with log w = −∞ has importance weight 0: bounds that are finite keep finite and right weights."""

import math
from decimal import Decimal, localcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from toys import discrete, repeated, seeded

from pyro_vae import elbo
from pyro_vae.base.statistics import importance_weights

SURVIVORS = [Decimal(w) for w in (3, 1, 8, 2, 5)]
DEAD = Decimal(0)


def as_terms(weights):
    """Terms of given weights w, (K,): for w = 0 log p(x|z) is −∞."""
    log_px_z = torch.tensor([[float(w.ln()) if w else -math.inf] for w in weights], dtype=torch.float64)
    return elbo.Terms(log_px_z, torch.zeros_like(log_px_z), torch.zeros_like(log_px_z))


def parts(estimator, weights):
    """Value and the weights of the three terms, in one form for all classes."""
    found = estimator.weighting(as_terms(weights))
    found = found.three_terms() if hasattr(found, "three_terms") else found
    theta, path, score = (getattr(found, part, None) for part in ("theta", "path", "score"))
    return found.value, {"theta": theta, "path": path, "score": score}


def normalised(weights, power=1):
    tempered = [w**power if w else w for w in weights]
    return [w / sum(tempered) for w in tempered]


def log_mean(weights):
    return (sum(weights) / len(weights)).ln()


def replaced(weights, k, value):
    return [*weights[:k], value, *weights[k + 1 :]]


def geometric(weights):
    if not all(weights):
        return DEAD
    return (sum(w.ln() for w in weights) / len(weights)).exp()


def vimco(weights):
    without = [log_mean(replaced(weights, k, geometric(weights[:k] + weights[k + 1 :]))) for k in range(len(weights))]
    return [log_mean(weights) - b - w for b, w in zip(without, normalised(weights), strict=True)]


def ovis(weights):
    without = [log_mean(replaced(weights, k, DEAD)) for k in range(len(weights))]
    return [log_mean(weights) - b - w for b, w in zip(without, normalised(weights), strict=True)]


def ovis_mc(weights):
    """Of the first particles, the last one their replacement."""
    first, further = weights[:-1], weights[-1]
    found = []
    for k, own in enumerate(normalised(first)):
        other = replaced(first, k, further)
        found.append(log_mean(first) - own - log_mean(other) + normalised(other)[k])
    return [*found, DEAD]


def minus(weights):
    return [-w for w in weights]


def squares(weights):
    return [w * w for w in weights]


SOFT = {  # estimators by their importance weights: value, theta, path and score in exact arithmetic
    "iwae": (elbo.IWAE, log_mean, normalised, normalised, lambda w: minus(normalised(w))),
    "iwae_stl": (elbo.IWAESTL, log_mean, normalised, normalised, None),
    "dreg": (elbo.DReG, log_mean, normalised, lambda w: squares(normalised(w)), None),
    "miwae": (lambda k: elbo.MIWAE(k, 1), log_mean, normalised, normalised, lambda w: minus(normalised(w))),
    "miwae_dreg": (lambda k: elbo.MIWAEDReG(k, 1), log_mean, normalised, lambda w: squares(normalised(w)), None),
    "piwae": (lambda k: elbo.PIWAE(k, 1), log_mean, normalised, normalised, lambda w: minus(normalised(w))),
    "piwae_dreg": (lambda k: elbo.PIWAEDReG(k, 1), log_mean, normalised, lambda w: squares(normalised(w)), None),
    "ciwae": (lambda k: elbo.CIWAE(k, beta=0), log_mean, normalised, normalised, lambda w: minus(normalised(w))),
    "renyi": (
        lambda k: elbo.Renyi(k, alpha=0.5),
        lambda w: 2 * log_mean([v.sqrt() for v in w]),
        lambda w: normalised([v.sqrt() for v in w]),
        lambda w: normalised([v.sqrt() for v in w]),
        lambda w: minus(normalised([v.sqrt() for v in w])),
    ),
    "rws": (elbo.RWS, log_mean, normalised, None, normalised),
    "rws_dreg": (elbo.RWSDReG, log_mean, normalised, lambda w: [v - v * v for v in normalised(w)], None),
}
SCORES = {
    "vimco": (elbo.VIMCO, log_mean, normalised, None, vimco),
    "ovis": (elbo.OVIS, log_mean, normalised, None, ovis),
    "ovis_mc": (
        lambda k: elbo.OVISMonteCarlo(k - 1, 1),
        lambda w: log_mean(w[:-1]),
        lambda w: [*normalised(w[:-1]), DEAD],
        None,
        ovis_mc,
    ),
}
ALL = SOFT | SCORES
DRAWS = {
    "first": [DEAD, *SURVIVORS],
    "last": [*SURVIVORS, DEAD],
    "largest gone": [*SURVIVORS[:2], DEAD, *SURVIVORS[2:]],
    "two": [DEAD, *SURVIVORS[:2], DEAD, *SURVIVORS[2:]],
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", ALL)
def test_weights_are_those_of_exact_arithmetic(name, draw):
    make, value, *formulas = ALL[name]
    weights = DRAWS[draw]
    found, weighting = parts(make(len(weights)), weights)
    with localcontext() as context:
        context.prec = 50
        assert found.item() == pytest.approx(float(value(weights)), rel=1e-13)
        for formula, weight in zip(formulas, weighting.values(), strict=True):
            expected = None if formula is None else [float(v) for v in formula(weights)]
            assert expected == (None if weight is None else pytest.approx(weight.flatten().tolist(), rel=1e-12))
    gone = torch.tensor([not w for w in weights])
    for part in ("theta", "path"):
        assert weighting[part] is None or (weighting[part][gone] == 0).all()
    assert name in SCORES or weighting["score"] is None or (weighting["score"][gone] == 0).all()


@pytest.mark.parametrize("name", SOFT)
def test_the_others_have_the_weights_of_a_draw_without_it(name):
    """And the bound is lower by log(K/(K − 1)), times 1/(1 − α) for Rényi."""
    make, alpha = SOFT[name][0], 0.5 if name == "renyi" else 0.0
    value, weighting = parts(make(6), DRAWS["largest gone"])
    without, alone = parts(make(5), SURVIVORS)
    assert_close(value, without + math.log(5 / 6) / (1 - alpha), tolerance=1e-14)
    for part, weight in weighting.items():
        assert (weight is None) == (alone[part] is None)
        if weight is not None:
            assert_close(torch.cat([weight[:2], weight[3:]]), alone[part], tolerance=1e-14)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", ALL)
def test_they_are_the_limit_of_weights_that_vanish(name, draw):
    make, weights = ALL[name][0], DRAWS[draw]
    value, weighting = parts(make(len(weights)), weights)
    near, limit = parts(make(len(weights)), [w or Decimal("1e-400000") for w in weights])
    assert_close(value, near, tolerance=1e-12)
    for part, weight in weighting.items():
        assert weight is None or torch.allclose(weight, limit[part], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_one_particle_alone_has_finite_weights(name):
    """All others are dead; of VIMCO and OVIS the weight is bounded, and draws q towards the particle."""
    weights = [DEAD, Decimal(2), DEAD, DEAD]
    value, weighting = parts(ALL[name][0](4), weights)
    assert value.isfinite().all()
    for weight in weighting.values():
        assert weight is None or weight.isfinite().all()
    assert weighting["theta"].flatten().tolist() == [0, 1, 0, 0]
    if name in ("vimco", "ovis", "ovis_mc"):
        assert weighting["score"][1].item() == pytest.approx(-math.log(torch.finfo(torch.float64).tiny) - 1, rel=0.01)


def test_where_all_are_dead_the_bound_is_minus_infinity_and_weights_are_zero():
    for name in ("iwae", "dreg", "miwae", "piwae", "ciwae", "renyi", "vimco", "ovis"):
        value, weighting = parts(ALL[name][0](3), [DEAD] * 3)
        assert value.item() == -math.inf
        assert (weighting["theta"] == 0).all()
    assert importance_weights(torch.tensor([math.nan, 0.0])).isnan().all()  # other non-numbers are not hidden


def test_a_dead_bound_of_piwae_counts_for_theta_alone():
    """The value is the bound of all particles, which is finite: so are φ's weights."""
    weights = [Decimal(3), Decimal(1), DEAD, DEAD]
    for estimator in (elbo.PIWAE(2, 2), elbo.PIWAEDReG(2, 2)):
        value, weighting = parts(estimator, weights)
        assert value.item() == pytest.approx(0.0)
        assert weighting["path"][2:].flatten().tolist() == [0, 0]
        assert weighting["path"].isfinite().all()
    assert parts(elbo.MIWAE(2, 2), weights)[0].item() == -math.inf


@pytest.mark.parametrize(
    "estimator",
    [
        elbo.SampledKL(6),
        elbo.STL(6),
        elbo.Reinforce(6),
        elbo.ReinforceMovingAverage(6),
        elbo.CIWAE(6, beta=0.3),
        elbo.Renyi(6, alpha=1.0),
        elbo.Renyi(6, alpha=2.0),
        elbo.TVO(6),
    ],
    ids=str,
)
def test_bounds_with_an_elbo_in_them_are_minus_infinity(estimator):
    """E_q log w is −∞ where w = 0 has a probability; the TVO's first term is one, at β = 0."""
    assert estimator.weighting(as_terms(DRAWS["first"])).value.item() == -math.inf


def test_by_autograd_has_the_same_gradient():
    """Through the value: no NaN from a branch that is not taken."""
    for estimator in (elbo.Renyi(6, alpha=0.5), elbo.CIWAE(6, beta=0), elbo.IWAE(6)):
        terms = as_terms(DRAWS["first"])
        log_w = terms.log_px_z.requires_grad_()
        (found,) = torch.autograd.grad(estimator.weighting(terms).value.sum(), log_w)
        assert_close(found, estimator.weighting(terms.detach()).theta, tolerance=1e-14)


def test_a_step_without_a_finite_value_leaves_the_running_baseline():
    average = elbo.ReinforceMovingAverage(2).average
    seen = []
    for value in (-math.inf, 4.0, math.nan, -math.inf, 2.0):
        average.update(torch.tensor(value, dtype=torch.float64), 0.5)
        seen.append(float(average.mean))
    assert seen == [0.0, 2.0, 2.0, 2.0, 2.0]


def impossible(batch):
    """The discrete toy, its last class impossible under the model and sampled by the guide."""
    program = discrete(batch)
    theta = torch.cat([program.theta.detach()[:, :2], torch.full((batch, 1), -math.inf, dtype=torch.float64)], -1)
    program.theta = theta.requires_grad_()
    return program


@pytest.mark.parametrize("name", ["vimco", "ovis", "ovis_mc", "rws"])
def test_gradients_of_the_guide_are_finite_and_right(name):
    """By the weights above and the score of the drawn classes, 1 − q or −q."""
    program, x = impossible(50), repeated(50)
    estimator = ALL[name][0](6)
    draw = seeded(estimator.draw, program.model, program.guide, (x,), {})
    dead = draw.terms.log_weight == -math.inf
    assert dead.any()
    assert not dead.all(0).any()
    (found,) = torch.autograd.grad(estimator.of_draw(draw).surrogate, program.phi)
    score = torch.nn.functional.one_hot(draw.drawn["z"], 3) - program.phi.detach().softmax(-1)
    weights = estimator.weighting(draw.terms.detach()).score
    assert_close(found, (weights[..., None] * score).sum(0))


def test_the_baseline_survives_an_impossible_draw():
    estimator = elbo.ReinforceMovingAverage(2)
    possible, x = discrete(20), repeated(20)
    estimator.loss_and_grads(impossible(20).model, possible.guide, x)
    assert float(estimator.state_dict()["baseline"]) == 0.0
    estimator.loss_and_grads(possible.model, possible.guide, x)
    assert math.isfinite(float(estimator.state_dict()["baseline"]))
    assert float(estimator.state_dict()["baseline"]) != 0.0


def test_a_uniform_prior_leaves_particles_outside_without_weight():
    """A program as users write it: the guide reaches beyond the prior's support."""
    x, loc = torch.zeros(30), torch.zeros(30, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(-1.0, 1.0, validate_args=False).expand(x.shape))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.8))

    for name in ("iwae", "vimco", "ovis", "rws"):
        estimator = ALL[name][0](20)
        draw = seeded(estimator.draw, model, guide, (x,), {})
        assert (draw.terms.log_weight == -math.inf).any()
        bound = estimator.of_draw(draw)
        assert bound.value.isfinite().all()
        assert torch.autograd.grad(bound.surrogate, loc)[0].isfinite().all()
