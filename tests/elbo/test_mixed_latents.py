"""Every objective with every gradient strategy per site, on mixed latents, against exact gradients.

Programs of a continuous latent, alone (strategy ``pathwise``) or with a discrete one, each first in turn; the exact
gradient over two particles is an enumeration of the discrete values and a Gauss-Hermite quadrature of the noise. The
table in docs/estimators.md is made of this grid: ``python docs/gradients.py``.
"""

import itertools
import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean
from gradients import PAGE, read, table, written
from torch import Tensor
from toys import gauss_hermite

from pyro_vae import InputError, elbo
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction

DRAWS = 60_000
NODES = 24
X = 0.7


@dataclass(frozen=True, eq=False)
class Mixed:
    """A latent d in {0, 1} and a latent z in R; ``first`` says which the guide samples first.

    p: d ~ Bernoulli(1/2), z ~ N(u d, 1), x ~ N(θ z + d, 1). q: d first: d ~ Bernoulli(logit a), z ~ N(m + s d, 0.8); or
    z first: z ~ N(m, 0.8), d ~ Bernoulli(logit a + s z); "alone": d is 1, and z ~ N(m + s, 0.8).
    Parameters (B,): every example has a gradient of its own.
    """

    first: str
    theta: Tensor
    u: Tensor
    a: Tensor
    m: Tensor
    s: Tensor
    strategy: tuple[tuple[str, str], ...] = ()

    @property
    def parameters(self):
        return [self.theta, self.u, self.a, self.m, self.s]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            coin = dist.Bernoulli(torch.full_like(x, 0.5))
            d = torch.ones_like(x) if self.first == "alone" else pyro.sample("d", coin)
            z = pyro.sample("z", dist.Normal(self.u * d, 1.0))
            pyro.sample("x", dist.Normal(self.theta * z + d, 1.0), obs=x)

    def guide(self, x):
        infer = {
            site: {"enumerate": "parallel"} if how == "enumerate" else {"gradient": how} for site, how in self.strategy
        }
        with pyro.plate("data", len(x), dim=-1):
            if self.first == "alone":
                pyro.sample("z", dist.Normal(self.m + self.s, 0.8), infer=infer.get("z"))
            elif self.first == "d":
                d = pyro.sample("d", dist.Bernoulli(logits=self.a), infer=infer.get("d"))
                pyro.sample("z", dist.Normal(self.m + self.s * d, 0.8), infer=infer.get("z"))
            else:
                z = pyro.sample("z", dist.Normal(self.m, torch.tensor(0.8, dtype=x.dtype)), infer=infer.get("z"))
                pyro.sample("d", dist.Bernoulli(logits=self.a + self.s * z), infer=infer.get("d"))

    @property
    def values(self):
        """The values of d to enumerate."""
        return [1.0] if self.first == "alone" else [0.0, 1.0]

    def at(self, d, noise, fixed=False):
        """Return log p, log q and log of the probability of d, at d and z = its mean + 0.8 noise, or that z fixed."""
        normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
        mean = self.m + (0.0 if self.first == "z" else self.s * d)
        z = mean + 0.8 * noise
        z = z.detach() if fixed else z
        log_qd = bernoulli(logits=self.a if self.first == "d" else self.a + self.s * z).log_prob(d)
        log_qd = torch.zeros_like(z) if self.first == "alone" else log_qd.expand_as(z)
        log_q = normal(mean, 0.8).log_prob(z) + log_qd
        log_p = normal(self.u * d, 1.0).log_prob(z) + normal(self.theta * z + d, 1.0).log_prob(torch.tensor(X))
        return log_p - math.log(len(self.values)), log_q, log_qd

    def gradient(self, total):
        found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]


def mixed(first, batch, strategy=()):
    values = torch.tensor([0.9, 0.4, -0.3, 0.2, 0.5], dtype=torch.float64)
    return Mixed(first, *(v.expand(batch).clone().requires_grad_() for v in values), strategy=strategy)


def nodes():
    """The noise of two particles and its log weight, (nodes, 1) each."""
    points, log_weights = gauss_hermite(NODES)
    pair = [each.reshape(-1, 1) for each in torch.meshgrid(points, points, indexing="ij")]
    return pair, (log_weights[:, None] + log_weights).reshape(-1, 1)


def expected(program, of_particles, fixed=False):
    """E[of_particles(log p (2, ·), log q (2, ·))] over two particles; differentiable, or at fixed particles."""
    noise, log_weight = nodes()
    total = 0.0
    for values in itertools.product(program.values, repeat=2):
        d = [torch.tensor(value, dtype=torch.float64) for value in values]
        pair = [program.at(*each, fixed) for each in zip(d, noise, strict=True)]
        log_p, log_q, log_qd = (torch.stack(each) for each in zip(*pair, strict=True))
        weight = (log_weight + log_qd.sum(0)).exp()
        total = total + ((weight.detach() if fixed else weight) * of_particles(log_p, log_q)).sum()
    return total


def of_bound(value):
    """The gradient of the expected bound, ``value`` of log w (2, ·)."""
    return lambda program: program.gradient(expected(program, lambda log_p, log_q: value(log_p - log_q)))


def of_two_bounds(of_theta, of_phi):
    """The model's parameters, θ and u, follow one bound; the guide's another."""
    return lambda program: of_bound(of_theta)(program)[:2] + of_bound(of_phi)(program)[2:]


def of_weights(estimator):
    """The expectation of the weighted θ and score terms of an estimator that follows no bound."""

    def terms(log_p, log_q):
        weights = estimator.weighting(Terms(log_p.detach(), torch.zeros_like(log_q), log_q.detach()))
        score = 0.0 if weights.score is None else weights.score * log_q
        return (weights.theta * log_p + score).sum(0)

    return lambda program: program.gradient(expected(program, terms, fixed=True))


def of_wake_sleep(program):
    """The wake phase for θ; for φ log q at d and z of the prior."""
    points, log_weights = gauss_hermite(NODES)
    total = 0.0
    for d in program.values:
        z = (program.u * d + points).detach()
        mean = program.m + (0.0 if program.first == "z" else program.s * d)
        logits = program.a if program.first == "d" else program.a + program.s * z
        log_qd = torch.distributions.Bernoulli(logits=logits).log_prob(torch.tensor(d, dtype=torch.float64))
        log_q = torch.distributions.Normal(mean, 0.8).log_prob(z) + (0.0 if program.first == "alone" else log_qd)
        total = total + (log_weights.exp() * log_q).sum() / len(program.values)
    return of_weights(elbo.WakeSleep(2))(program)[:2] + program.gradient(total)[2:]


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def mean(log_w):
    return log_w.mean(0)


ELBO, IWAE = of_bound(mean), of_bound(log_mean_exp)
OBJECTIVES = {
    "sampled_kl": (elbo.SampledKL(2), ELBO),
    "analytic_kl": (elbo.AnalyticKL(2), ELBO),
    "stl": (elbo.STL(2), ELBO),
    "iwae": (elbo.IWAE(2), IWAE),
    "iwae_stl": (elbo.IWAESTL(2), IWAE),
    "dreg": (elbo.DReG(2), IWAE),
    "miwae": (elbo.MIWAE(2, 2), IWAE),
    "miwae_dreg": (elbo.MIWAEDReG(2, 2), IWAE),
    "piwae": (elbo.PIWAE(1, 2), of_two_bounds(log_mean_exp, mean)),
    "piwae_dreg": (elbo.PIWAEDReG(1, 2), of_two_bounds(log_mean_exp, mean)),
    "local_iwae": (elbo.LocalIWAE(2), IWAE),
    "ciwae": (elbo.CIWAE(2, beta=0.3), of_bound(lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w))),
    "renyi": (elbo.Renyi(2, alpha=0.4), of_bound(lambda w: log_mean_exp(0.6 * w) / 0.6)),
    "by_autograd": (elbo.ByAutograd(elbo.IWAE(2)), IWAE),
    "reinforce": (elbo.Reinforce(2), ELBO),
    "reinforce_moving_average": (elbo.ReinforceMovingAverage(2), ELBO),
    "disarm": (elbo.DisARM(2), ELBO),
    "rebar": (elbo.Rebar(2), ELBO),
    "concrete": (elbo.Concrete(2), ELBO),
    "vimco": (elbo.VIMCO(2), IWAE),
    "ovis": (elbo.OVIS(2), IWAE),
    "ovis_mc": (elbo.OVISMonteCarlo(2, 2), IWAE),
    "wake_sleep": (elbo.WakeSleep(2), of_wake_sleep),
    "rws": (elbo.RWS(2), of_weights(elbo.RWS(2))),
    "rws_dreg": (elbo.RWSDReG(2), of_weights(elbo.RWS(2))),
    "tvo": (elbo.TVO(2), of_weights(elbo.TVO(2))),
}
STRATEGIES = {  # strategy -> the programs, by their first latent, and the sites that are marked
    "pathwise": (["alone"], ()),
    "score": (["d", "z"], (("z", "score"),)),
    "pathwise and score": (["d", "z"], ()),
    "enumerate": (["d", "z"], (("d", "enumerate"),)),
    "measure-valued": (["d", "z"], (("d", "measure_valued"), ("z", "measure_valued"))),
    "pathwise and measure-valued": (["d", "z"], (("d", "measure_valued"),)),
}
BERNOULLI = ("disarm", "rebar", "concrete")  # no score: the discrete latent is their own, the other is pathwise
ORDERED = {("analytic_kl", "z")}  # a closed KL needs the model's order of sampling


def outcome(name, strategy):
    """The cell of the table: what the tests below hold an objective with a strategy to."""
    by_score = OBJECTIVES[name][0].gradient is ScoreFunction
    if name in BERNOULLI and strategy not in ("pathwise", "pathwise and score"):
        return "refused"
    if name == "concrete" and strategy == "pathwise and score":
        return "biased"
    if (by_score and "measure-valued" in strategy) or (name in ("piwae_dreg", "rws_dreg") and strategy != "pathwise"):
        return "refused"
    if name == "iwae_stl" and strategy not in ("score", "measure-valued"):
        return "biased"
    return "by score" if by_score and strategy in ("pathwise", "pathwise and score") else "✓"


def found(estimator, program):
    x = torch.full((len(program.theta),), X, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = replace(estimator).differentiable_loss(program.model, program.guide, x)
        return [-g for g in program.gradient(loss)]


def assert_exact(gradients, truths):
    for gradient, truth in zip(gradients, truths, strict=True):
        assert_mean(gradient, truth.item())


def exact(first, truth):
    return truth(mixed(first, 1))


CELLS = [
    (n, s, f) for n in OBJECTIVES for s, (firsts, _) in STRATEGIES.items() for f in firsts if (n, f) not in ORDERED
]


@pytest.mark.parametrize(("name", "strategy", "first"), CELLS)
def test_the_gradient_is_exact_on_average(name, strategy, first):
    """Or biased, or refused, as the table says."""
    (estimator, truth), (_, marked) = OBJECTIVES[name], STRATEGIES[strategy]
    said, program = outcome(name, strategy), mixed(first, DRAWS, marked)
    if said == "refused":
        with pytest.raises(InputError, match=r"reparameterized latents|for a measure-valued site|without a mark"):
            found(estimator, program)
    elif said == "biased":
        with pytest.raises(AssertionError, match="standard errors"):
            assert_exact(found(estimator, program), exact(first, truth))
    else:
        assert_exact(found(estimator, program), exact(first, truth))


def test_the_documentation_shows_this_grid():
    shown = table(list(OBJECTIVES), list(STRATEGIES), outcome)
    assert read(PAGE.read_text()) == shown, "Try python docs/gradients.py"


def test_the_grid_has_every_estimator():
    assert {*OBJECTIVES} - {"by_autograd"} == {n for n in ESTIMATORS if not n.startswith("trace_")} - {"beta"}


def test_a_planted_mark_in_the_documentation_is_found():
    page = PAGE.read_text()
    wrong = written(page, read(page).replace("| refused |", "| ✓ |", 1))
    assert read(wrong) != read(page)
    assert written(wrong, read(page)) == page


@pytest.mark.parametrize("first", ["d", "z"])
def test_without_the_score_of_the_discrete_site_the_gradient_is_biased(first, monkeypatch):
    monkeypatch.setattr(elbo.IWAE, "advantage", lambda self, terms: torch.zeros_like(terms.log_qz))
    gradients = found(elbo.IWAE(2), mixed(first, DRAWS))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(gradients, exact(first, IWAE))


def test_dreg_without_its_correction_is_biased(monkeypatch):
    """The identity that replaces the score term leaves −w̃ log q of the discrete site beside its advantage."""
    plain = elbo.DReG.advantage
    monkeypatch.setattr(elbo.DReG, "advantage", lambda self, t: plain(self, t) + t.log_weight.softmax(0))
    gradients = found(elbo.DReG(2), mixed("z", DRAWS))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(gradients, exact("z", IWAE))


def test_a_leave_one_out_baseline_lowers_the_variance():
    spread = {}
    for name, estimator in {"with": elbo.IWAE(2), "without": elbo.IWAE(2)}.items():
        program = mixed("d", DRAWS)
        if name == "without":
            program = Mixed("d", *program.parameters)
            original = elbo.IWAE.advantage
            elbo.IWAE.advantage = lambda self, terms: self.weighting(terms).value.expand_as(terms.log_qz)
        try:
            spread[name] = found(estimator, program)[2].var()
        finally:
            if name == "without":
                elbo.IWAE.advantage = original
    assert spread["with"] < 0.5 * spread["without"]


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if outcome(n, "pathwise and score") in ("✓", "by score")])
def test_particles_one_by_one_have_the_same_expectation(name):
    estimator, truth = OBJECTIVES[name]
    assert_exact(found(replace(estimator, vectorize_particles=False), mixed("d", DRAWS)), exact("d", truth))
