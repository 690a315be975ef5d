"""Evaluation of programs with other plates than the plainest: the figures are those of the plain form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from pyro import poutine
from torch import nn

from pyro_vae import Images, InputError, evaluate
from pyro_vae.evaluation import Sizes, to_inference_data
from pyro_vae.program import Joint, own_store

D, Z, N, NOISE = 4, 2, 24, 0.6
LITTLE = {
    **{"num_particles": 60, "iwae": [4, 8], "importance_examples": N, "prior_examples": 8, "device": "cpu"},
    **{"annealing_examples": 4, "annealing_chains": 4, "annealing_temperatures": 20, "sandwich_examples": 4},
    **{"gap_examples": 4, "gap_steps": 60, "surgery_examples": 20, "simulations": 100, "skip": ["hmc"]},
}


class Plain(nn.Module):
    """z of each example, a level of each pixel, x; ``scale`` multiplies every site."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(Z, D, generator=generator).double())
        self.scale = scale

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            level = pyro.sample("level", dist.Normal(z @ self.weight, 0.8).to_event(1))
            pyro.sample("x", dist.Normal(level, NOISE).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(0.2 * x @ self.weight.T, 0.5).to_event(1))
            pyro.sample("level", dist.Normal(0.5 * x + 0.3 * z @ self.weight, 0.5).to_event(1))


class Nested(Plain):
    """The same: examples in dimension -2, pixels in a plate inside."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, Z), 1.0).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                level = pyro.sample("level", dist.Normal((z @ self.weight).squeeze(-2), 0.8))
                pyro.sample("x", dist.Normal(level, NOISE), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal((0.2 * x @ self.weight.T).unsqueeze(-2), 0.5).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("level", dist.Normal(0.5 * x + 0.3 * (z @ self.weight).squeeze(-2), 0.5))


class Deeper(Plain):
    """The same: examples in dimension -2, nothing in -1."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, Z), 1.0).to_event(1))
            level = pyro.sample("level", dist.Normal(z @ self.weight, 0.8).to_event(1))
            pyro.sample("x", dist.Normal(level, NOISE).to_event(1), obs=x.unsqueeze(1))

    def guide(self, x):
        pyro.module("program", self)
        x = x.unsqueeze(1)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.2 * x @ self.weight.T, 0.5).to_event(1))
            pyro.sample("level", dist.Normal(0.5 * x + 0.3 * z @ self.weight, 0.5).to_event(1))


class Outside(Plain):
    """The same: pixels in a plate outside that of the examples."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            with pyro.plate("pixels", D, dim=-2):
                level = pyro.sample("level", dist.Normal((z @ self.weight).movedim(-1, -2).reshape(*self.wide(z)), 0.8))
                pyro.sample("x", dist.Normal(level, NOISE), obs=x.T)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.2 * x @ self.weight.T, 0.5).to_event(1))
            with pyro.plate("pixels", D, dim=-2):
                mean = (0.3 * z @ self.weight).movedim(-1, -2).reshape(*self.wide(z))
                pyro.sample("level", dist.Normal(0.5 * x.T + mean, 0.5))

    @staticmethod
    def wide(z):
        """(..., 1, B, Z) of particles becomes (..., D, B)."""
        return (*z.shape[:-3], D, z.shape[-2]) if z.dim() > 2 else (D, len(z))


class Unsized(Plain):
    """The same: a plate without a size."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), Z), 1.0).to_event(1))
            level = pyro.sample("level", dist.Normal(z @ self.weight, 0.8).to_event(1))
            pyro.sample("x", dist.Normal(level, NOISE).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(0.2 * x @ self.weight.T, 0.5).to_event(1))
            pyro.sample("level", dist.Normal(0.5 * x + 0.3 * z @ self.weight, 0.5).to_event(1))


def examples(count=N):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(1)).double()


def card_of(program, **more):
    data = Images(examples(), torch.arange(N) % 3)
    return evaluate(program, data, train=data, **LITTLE | more)


@pytest.fixture(scope="module")
def plain():
    return card_of(Plain())


def differing(one, other):
    pairs = {entry.name: (entry.value, other[entry.name].value) for entry in one.entries}
    return [name for name, (a, b) in pairs.items() if not math.isclose(a, b, rel_tol=1e-7, abs_tol=1e-9)]


@pytest.mark.parametrize("program", [Nested, Deeper, Unsized])
def test_the_whole_card_is_that_of_the_plain_form(program, plain):
    card = card_of(program())
    assert card.left_out == plain.left_out == {}
    assert [e.name for e in card.entries] == [e.name for e in plain.entries]
    assert differing(plain, card) == []
    for site, values in plain.per_latent.items():
        for name, of_plain in values.items():
            assert_close(torch.tensor(card.per_latent[site][name]), torch.tensor(of_plain), 1e-7)


def test_a_pixel_left_out_is_caught(plain, monkeypatch):
    total = Joint._total
    monkeypatch.setattr(Joint, "_total", lambda self, sites: total(self, [s for s in sites if s["name"] != "level"]))
    assert {"annealed", "local_evidence", "mutual_information"} <= set(differing(plain, card_of(Nested())))


@pytest.mark.parametrize("program", [Nested, Deeper])
def test_particles_one_by_one(program):
    how = {"vectorize_particles": False, "only": ["bounds", "importance", "latents", "pictures", "calibration"]}
    assert differing(card_of(Plain(), **how), card_of(program(), **how)) == []


@pytest.mark.parametrize("program", [Nested, Deeper])
def test_the_joint_density_is_that_of_the_plain_form(program):
    x, found = examples(5), {}
    u = torch.randn(3, 5, Z + D, generator=torch.Generator().manual_seed(2)).double()
    for kind in (Plain, program):
        made = kind()
        with own_store(made):
            joint = Joint(made, x)
            terms = joint.of_unconstrained(u)
            found[kind] = terms.log_joint, joint.log_q(terms.latents)
            assert_close(joint.unconstrain(terms.latents), u)
    assert_close(found[program][0], found[Plain][0])
    assert_close(found[program][1], found[Plain][1])


def test_draws_for_arviz():
    sizes = Sizes(num_examples=6, num_draws=40, num_predictive=2)
    plain, nested = (to_inference_data(kind(), examples(), sizes=sizes, device="cpu") for kind in (Plain, Nested))
    weights = (torch.from_numpy(found.sample_stats["log_weight"].values) for found in (plain, nested))
    assert_close(*weights)
    assert nested.posterior["level"].shape == (1, 40, 6, D)
    assert nested.posterior["z"].shape == (1, 40, 6, 1, Z)


def test_where_another_plate_is_outside_the_bounds_stay(plain):
    card = card_of(Outside())
    assert {entry.part for entry in card.entries} == {"bounds", "importance"}
    reason = "others. Try"
    assert all(reason in why or "to the left of all other" in why for why in card.left_out.values())
    for name in ("elbo", "log_evidence"):
        assert abs(card[name].value - plain[name].value) < 5 * plain[name].standard_error


def test_scaled_programs_keep_their_bounds(plain):
    card = card_of(Plain(scale=0.3))
    assert {entry.part for entry in card.entries} == {"bounds", "importance"}
    assert "site 'z' without a scale; got 0.3" in card.left_out["latents"]
    assert [card[name].value for name in ("elbo", "log_evidence")] == [plain[n].value for n in ("elbo", "log_evidence")]
    with pytest.raises(InputError, match=r"site 'z' without a scale; got 0\.3"):
        card_of(Plain(scale=0.3), only=["gaps"], skip=[])
