"""Evaluation of programs whose examples share a latent: one bound and one log p(data), on conjugate models."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae import VAE, InputError, evaluate, fit
from pyro_vae.evaluation.card import joint
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.subject import look_at

N, NOISE = 30, 0.7
LITTLE = {"num_particles": 400, "iwae": [4], "device": "cpu"}
EACH = {"bounds", "importance", "annealing", "sandwich", "prior", "hmc", "gaps", "latents", "surgery"}


class Shared(nn.Module):
    """mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, NOISE): log p(x) is a normal's; q is the posterior, widened."""

    def __init__(self, wider=1.0, local=True, names=("data", "data")):
        super().__init__()
        self.wider, self.local, self.names = nn.Parameter(torch.tensor(wider).double()), local, names

    def model(self, x):
        pyro.module("program", self)
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate(self.names[0], len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mu, 1.0)) if self.local else mu
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        variance = NOISE**2 + self.local
        precision = 1 + len(x) / variance
        mu = pyro.sample("mu", dist.Normal(x.sum() / variance / precision, self.wider * precision**-0.5))
        if self.local:
            local = 1 + NOISE**-2
            with pyro.plate(self.names[1], len(x), dim=-1):
                pyro.sample("z", dist.Normal((mu + x / NOISE**2) / local, self.wider * local**-0.5))

    def log_evidence(self, x):
        covariance = torch.ones(len(x), len(x)).double() + (NOISE**2 + self.local) * torch.eye(len(x)).double()
        return dist.MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(x).item()


def examples(count=N):
    return 0.5 + torch.randn(count, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("vectorize_particles", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_where_q_is_the_posterior_both_are_log_p_of_the_data(local, vectorize_particles):
    program, x = Shared(local=local), examples()
    card = evaluate(program, {"x": x}, vectorize_particles=vectorize_particles, **LITTLE)
    for name in ("joint_elbo", "joint_log_evidence"):
        assert card[name].value == pytest.approx(program.log_evidence(x), rel=1e-10)
        assert card[name].standard_error == pytest.approx(0, abs=1e-10)
        assert card[name].unit == "nats, all examples jointly"
    assert card["joint_ess"].value == pytest.approx(400)
    assert card["joint_k_hat"].value == 0


def test_joint_importance_weights_are_unbiased():
    program, x = Shared(wider=1.1), examples(6)
    cards = [evaluate(program, {"x": x}, seed=seed, only=["joint"], **LITTLE) for seed in range(20)]
    ratios = torch.tensor([c["joint_log_evidence"].value for c in cards]).double().sub(program.log_evidence(x)).exp()
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / len(ratios) ** 0.5
    relative = [card["joint_log_evidence"].standard_error for card in cards]
    assert sum(relative) / len(relative) == pytest.approx(ratios.std().item(), rel=0.6)
    assert all(card["joint_elbo"].value < program.log_evidence(x) for card in cards)


def test_one_example_left_out_is_caught(monkeypatch):
    program, x = Shared(), examples()
    draw_terms = joint.draw_terms
    monkeypatch.setattr(joint, "draw_terms", lambda p, x, k, **how: draw_terms(p, x[1:], k, **how))
    card = evaluate(program, {"x": x}, only=["joint"], **LITTLE)
    assert card["joint_log_evidence"].value != pytest.approx(program.log_evidence(x), rel=1e-3)


def test_figures_of_each_example_are_refused_and_the_label_says_what_is_had():
    card = evaluate(Shared(), {"x": examples()}, **LITTLE)
    assert set(card.left_out) > EACH
    assert "joint" not in card.left_out
    reason = "Expected a plate of the 30 examples that all sites share, for a held-out bound of each; got site 'mu'"
    assert card.left_out["bounds"].startswith(reason)
    assert "part 'joint' of evaluate" in card.left_out["importance"]
    figure = next(f for f in json.loads(json.dumps(card.as_dict()))["figures"] if f["name"] == "joint_log_evidence")
    assert figure["label"] == "log p(data)"
    assert "latents that the examples share in the joint importance weights; one number for 30" in figure["how"]
    assert "under their prior" in figure["caveat"]
    with pytest.raises(InputError, match=r"all sites share, for a held-out bound of each; got site 'mu' outside it"):
        evaluate(Shared(), {"x": examples()}, only=["bounds"], **LITTLE)


def test_plates_of_two_names_are_one_bound_too():
    class Local(Shared):
        def model(self, x):
            pyro.module("program", self)
            with pyro.plate("rows", len(x), dim=-1):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0)), NOISE), obs=x)

        def guide(self, x):
            pyro.module("program", self)
            local = 1 + NOISE**-2
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x / NOISE**2 / local, self.wider * local**-0.5))

    x = examples()
    with pytest.warns(UserWarning, match="one name for the plate in dimension -1"):
        card = evaluate(Local(), {"x": x}, **LITTLE)
    truth = dist.Normal(torch.zeros(()).double(), (1 + NOISE**2) ** 0.5).log_prob(x).sum().item()
    assert card["joint_log_evidence"].value == pytest.approx(truth, rel=1e-10)


def test_scales_and_subsamples_are_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), subsample_size=len(x) // 2) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    guide = AutoNormal(model)
    x = examples().float()
    result = fit((model, guide), {"x": x}, epochs=2, batch_size=N, device="cpu", estimator="sampled_kl")
    with pytest.raises(InputError, match=r"sites without a scale, for log p of these examples; got one at 'x'"):
        evaluate(result.program, {"x": x}, only=["joint"], **LITTLE)


def test_an_autoguide_trained_by_fit():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, NOISE), obs=x)

    x = examples().float()
    settings = {"estimator": "sampled_kl", "batch_size": N, "learning_rate": 0.02, "device": "cpu", "engine": "svi"}
    result = fit((model, AutoNormal(model)), {"x": x}, epochs=300, **settings)
    card = evaluate(result.program, {"x": x}, **LITTLE)
    truth = Shared(local=False).log_evidence(x.double())
    found = card["joint_log_evidence"]
    assert abs(found.value - truth) < 5 * found.standard_error + 1e-4
    assert card["joint_elbo"].value < truth + 5 * card["joint_elbo"].standard_error


def test_a_program_of_local_latents_has_no_word_of_it():
    vae, x = VAE((4,), latent_dim=2), torch.ones(10, 4)
    assert not PARTS["joint"].concerns(look_at(vae, x, None, x.device, 0, EvaluationOptions()))
    card = evaluate(vae, x, only=["bounds"], device="cpu")
    assert "joint" not in card.left_out
    assert math.isfinite(card["elbo"].value)
    with pytest.raises(InputError, match="a latent that the examples share, for one bound of all jointly"):
        evaluate(vae, x, only=["joint"], device="cpu")
