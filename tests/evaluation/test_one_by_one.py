"""Particles one by one in evaluation: the figures of particles in a plate, also of programs that do not broadcast."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from torch import nn

from pyro_vae import VAE, Images, InputError, evaluate, fit
from pyro_vae.cli.main import main
from pyro_vae.data import as_images
from pyro_vae.elbo import ESTIMATORS, IWAE, Draw
from pyro_vae.evaluation import Sizes, to_inference_data
from pyro_vae.evaluation.methods.bounds import held_out_elbo, importance_bounds
from pyro_vae.evaluation.methods.psis import weight_diagnostics
from pyro_vae.studies.gradients import compare_gradients
from pyro_vae.studies.training import race
from pyro_vae.training.settings import Settings

SIDE, Z, N = (
    4,
    8,
    48,
)  # B Z a multiple of 16: torch fills a plate with the noise that single runs draw one after another
PLACED = {"annealing", "sandwich", "prior", "hmc", "gaps", "surgery"}
LITTLE = {
    **{"num_particles": 40, "iwae": [4, 12], "simulations": 100, "device": "cpu", "draws_at_once": 40 * N},
    **{"skip": ["hmc", "annealing", "sandwich", "gaps", "prior", "surgery"], "seed": 3},
}


class Conv(nn.Module):
    """Convolutions that take (B, 1, H, W) alone; with ``broadcasts`` leading dimensions are folded around them."""

    def __init__(self, broadcasts=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(1), nn.Linear(32, 2 * Z))
            self.decoder = nn.Sequential(nn.Linear(Z, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 1, 1))
        self.broadcasts = broadcasts
        self.double()

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoded(z)).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(x.unsqueeze(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def decoded(self, z):
        if self.broadcasts:
            return self.decoder(z.flatten(0, -2)).squeeze(1).unflatten(0, z.shape[:-1])
        return self.decoder(z).squeeze(1)


def examples(count=N):
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((count, SIDE, SIDE), 0.3).double(), generator=generator)


def labelled():
    return Images(examples(), torch.arange(N) % 3)


def card_of(program, vectorize_particles):
    return evaluate(program, labelled(), train=labelled(), vectorize_particles=vectorize_particles, **LITTLE)


def differing(one, other):
    """The names of figures and of values per example that differ."""
    assert [e.name for e in one.entries] == [e.name for e in other.entries]
    pairs = {e.name: (e.value, other[e.name].value) for e in one.entries}
    wrong = [name for name, (a, b) in pairs.items() if not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-10)]
    each = one.per_example
    return wrong + [n for n in each if not torch.allclose(each[n], other.per_example[n], rtol=1e-9, equal_nan=True)]


def test_the_figures_are_those_of_a_plate():
    program = Conv(broadcasts=True)
    plate, single = (card_of(program, vectorize) for vectorize in (True, False))
    assert {"elbo", "iwae_12", "log_evidence", "ess", "active_units_z", "dispersion_z", "squared_error", "probe"} <= {
        entry.name for entry in single.entries
    }
    assert differing(plate, single) == []
    assert plate.per_latent.keys() == single.per_latent.keys()
    assert "particles" not in plate.about
    assert "particles   in runs one by one" in str(single)


def test_a_run_taken_for_all_is_caught(monkeypatch):
    program = Conv(broadcasts=True)
    plate = card_of(program, True)
    monkeypatch.setattr(Draw, "of_runs", lambda self, found: torch.stack([found[0]] * len(found)))
    assert {"dispersion_z"} <= set(differing(plate, card_of(program, False)))


def test_a_program_that_does_not_broadcast_has_a_card():
    with pytest.raises(InputError, match=r"that broadcasts over particles.*Try vectorize_particles=False"):
        evaluate(Conv(), examples(), device="cpu")
    narrow, wide = (card_of(Conv(broadcasts), broadcasts) for broadcasts in (False, True))
    assert differing(wide, narrow) == []


def test_parts_that_place_latents_are_refused_with_their_reason():
    settings = {name: value for name, value in LITTLE.items() if name != "skip"}
    card = evaluate(Conv(), examples(), vectorize_particles=False, **settings)
    assert set(card.left_out) == PLACED | {"probe"}
    assert all("got vectorize_particles=False" in card.left_out[part] for part in PLACED)
    with pytest.raises(
        InputError, match="Expected particles in a plate, for latents that are not drawn from the guide"
    ):
        evaluate(Conv(), examples(), vectorize_particles=False, only=["gaps"], device="cpu")


def test_vectorize_particles_is_true_or_false():
    with pytest.raises(InputError, match="vectorize_particles as True or False; got 'no'"):
        evaluate(Conv(), examples(), vectorize_particles="no")
    with pytest.raises(InputError, match="vectorize_particles as True or False; got 0"):
        Settings(vectorize_particles=0)


def test_methods_agree_with_those_of_a_plate():
    narrow, wide, data = Conv(), Conv(broadcasts=True), as_images(examples(8))
    for method in (
        lambda p, **how: held_out_elbo(p, data, 5, 2, **how),
        lambda p, **how: importance_bounds(p, data, 60, **how),
    ):
        assert_close(method(narrow, vectorize_particles=False), method(wide))
    found = weight_diagnostics(narrow, examples(8), 60, vectorize_particles=False)
    assert_close(found.k_hat, weight_diagnostics(wide, examples(8), 60).k_hat)
    with pytest.raises(InputError, match=r"compiled particles in a plate; got vectorize_particles=False"):
        importance_bounds(narrow, data, 60, compiled=True, vectorize_particles=False)


def test_draws_for_arviz_are_those_of_a_plate():
    sizes = Sizes(num_examples=8, num_draws=40, num_predictive=2)
    settings = {"sizes": sizes, "device": "cpu", "draws_at_once": 8 * 40}
    narrow = to_inference_data(Conv(), examples(), vectorize_particles=False, **settings)
    wide = to_inference_data(Conv(broadcasts=True), examples(), **settings)
    weights = (torch.from_numpy(d.sample_stats["log_weight"].values) for d in (narrow, wide))
    assert_close(*weights)
    assert narrow.posterior["z"].shape == (1, 40, 8, Z)


# ---- training and comparison


def test_every_estimator_by_name_takes_it():
    assert {name for name in ESTIMATORS if not one_by_one(name)} == set()
    assert Settings(estimator="iwae:num_particles=3", vectorize_particles=False).elbo == IWAE(
        3, vectorize_particles=False
    )
    own = IWAE(3)
    assert Settings(estimator=own, vectorize_particles=False).elbo is own


def one_by_one(name):
    found = Settings(estimator=name, vectorize_particles=False).elbo
    return not (found.vectorized if hasattr(found, "vectorized") else found.vectorize_particles)


@pytest.mark.parametrize("estimator", ["iwae:num_particles=3", "trace_elbo:num_particles=3"])
def test_fit_and_its_held_out_bounds(estimator):
    settings = {"estimator": estimator, "engine": "svi", "device": "cpu", "batch_size": 16, "eval_particles": 4}
    narrow = fit(Conv(), examples(), validation=examples(8), epochs=2, vectorize_particles=False, **settings)
    wide = fit(Conv(broadcasts=True), examples(), validation=examples(8), epochs=2, **settings)
    assert [r.bound for r in narrow.history] == pytest.approx([r.bound for r in wide.history], abs=1e-8)
    with pytest.raises(InputError, match=r"vectorize_particles.*False.*with which training began; got"):
        fit(Conv(), examples(), validation=examples(8), epochs=3, resume=narrow.state, **settings)


def test_compare_and_race():
    x = examples()
    names = {"iwae": "iwae:num_particles=3"}
    laps = race(Conv(), x, x[:8], names, 2, num_particles=20, batch_size=16, vectorize_particles=False)
    wide = race(Conv(broadcasts=True), x, x[:8], names, 2, num_particles=20, batch_size=16)
    assert laps[0].log_evidence.value == pytest.approx(wide[0].log_evidence.value, abs=1e-8)
    values = {"trace_elbo": "trace_elbo:num_particles=2,vectorize_particles=false"}
    report = compare_gradients(Conv(), x[:8], values, draws=20, reference_draws=20)[0]
    assert 0.5 <= report.ess.value <= 1


def test_a_plain_vae_needs_no_word_of_it():
    assert "particles" not in evaluate(VAE((4,), latent_dim=2), torch.ones(10, 4), only=["bounds"], device="cpu").about


# ---- the command

NARROW = """
import pyro, pyro.distributions as dist, torch
from torch import nn

encoder = nn.Linear(64, 2)

def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z.sum(-1)[:, None, None].expand(len(x), 8, 8)
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(encoder(x.flatten(1)), 0.5).to_event(1))
"""


def test_the_commands_take_it_and_a_run_keeps_it(tmp_path, capsys):
    (tmp_path / "narrow.py").write_text(NARROW)
    model = ["--model", str(tmp_path / "narrow.py"), "--device", "cpu", "--vectorize_particles", "false"]
    run = str(tmp_path / "run")
    assert main(["train", *model, "--epochs", "1", "--eval_particles", "2", "--out", run]) == 0
    few = ["--only", "bounds", "--iwae", "[3]", "--num_examples", "10", "--device", "cpu"]
    assert main(["evaluate", run, *few]) == 0  # as it was trained
    assert "particles in runs one by one" in " ".join(capsys.readouterr().out.split())
    own = ["--estimators", "iwae:num_particles=2", "--draws", "20", "--reference_draws", "20", "--batch", "4"]
    judged = ["--steps", "2", "--judge_particles", "3", "--judge_examples", "4", "--batch_size", "64"]
    assert main(["compare", *model, *own, *judged]) == 0
