"""Evaluation and comparison of programs that take several tensors: a linear-Gaussian one, whose log p(x|y) is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from torch import nn

from pyro_vae import Images, InputError, evaluate
from pyro_vae.base import Arguments
from pyro_vae.evaluation import to_inference_data
from pyro_vae.studies.gradients import compare_gradients
from pyro_vae.studies.training import race

D, Z, C, N = 4, 2, 3, 40
NOISE = 0.6
LITTLE = {
    **{"num_particles": 60, "iwae": [4, 8], "importance_examples": N, "prior_examples": 8, "device": "cpu"},
    **{"annealing_examples": 8, "annealing_chains": 4, "annealing_temperatures": 60, "hmc_examples": 2},
    **{"hmc_samples": 20, "gap_examples": 4, "gap_steps": 200, "surgery_examples": 20, "simulations": 100},
}


class Conditional(nn.Module):
    """x = W z + V y + noise; q(z|x, y) is the posterior, its mean times ``shrink``."""

    def __init__(self, shrink=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(D, Z, generator=generator).double())
        self.shift = nn.Parameter(torch.randn(C, D, generator=generator).double())
        self.shrink = nn.Parameter(torch.tensor(shrink).double())

    def model(self, x, y):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.shift[y], NOISE).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("program", self)
        precision = torch.eye(Z).to(x) + self.weight.T @ self.weight / NOISE**2
        loc = (x - self.shift[y]) @ self.weight / NOISE**2 @ precision.inverse()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(self.shrink * loc, precision_matrix=precision))

    @torch.no_grad()
    def log_evidence(self, x, y):
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(D).double()
        return dist.MultivariateNormal(self.shift[y], covariance).log_prob(x)


def examples(program):
    """Pairs of x and y from the model."""
    generator = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(N, d, generator=generator).double() for d in (Z, D))
    y = torch.arange(N) % C
    return (z @ program.weight.T + program.shift[y] + NOISE * noise).detach(), y


FORMS = {"tuple": lambda x, y: (x, y), "mapping": lambda x, y: {"x": x, "y": y}, "labels": lambda x, y: Images(x, y)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vectorize_particles", [True, False])
def test_where_q_is_the_posterior_every_figure_is_log_p(form, vectorize_particles):
    program = Conditional()
    x, y = examples(program)
    parts = ["bounds", "importance", *(["annealing", "hmc", "gaps"] if vectorize_particles and form == "tuple" else [])]
    how = {"vectorize_particles": vectorize_particles, "only": parts}
    card = evaluate(program, FORMS[form](x, y), **LITTLE | how)
    truth = program.log_evidence(x, y)[card.index]
    for name in ("elbo", "iwae_4", "iwae_8", "log_evidence"):
        assert_close(card.per_example[name], truth)
    for name, sign in (("annealed", 1), ("from_posterior", -1), ("local_evidence", 1)):
        if name in card.per_example:
            found = card.per_example[name]
            assert_mean((sign * (found - truth[: len(found)])).exp(), 1.0)


def test_labels_of_other_examples_are_caught():
    program = Conditional()
    x, y = examples(program)
    card = evaluate(program, (x, y.roll(1)), **LITTLE, only=["bounds"])
    with pytest.raises(AssertionError):
        assert_close(card.per_example["elbo"], program.log_evidence(x, y)[card.index])


def test_importance_sampling_is_unbiased():
    program = Conditional(shrink=0.7)
    x, y = examples(program)
    card = evaluate(program, (x, y), **LITTLE, only=["importance"])
    assert_mean((card.per_example["log_evidence"] - program.log_evidence(x, y)[card.index]).exp(), 1.0)


def test_what_works_on_x_alone_is_left_out():
    program = Conditional(shrink=0.9)
    x, y = examples(program)
    card = evaluate(program, Images(x, y), train=Images(x, y), **LITTLE)
    assert set(card.left_out) == {"sandwich", "calibration", "probe", "sample_elbo"}
    assert all(
        "data of x alone, for what simulates x or probes latents; got Columns(" in w for w in card.left_out.values()
    )
    assert {"squared_error", "active_units_z", "mutual_information", "local_evidence", "annealed", "elbo_bits"} <= {
        entry.name for entry in card.entries
    }
    assert card.about["data"] == "40 of shape 4 as 0, () as y"
    for part in ("sandwich", "calibration"):
        with pytest.raises(InputError, match="data of x alone, for what simulates x"):
            evaluate(program, (x, y), only=[part], device="cpu")
    with pytest.raises(InputError, match="data of x alone, for what simulates x"):
        to_inference_data(program, (x, y), device="cpu")


def test_the_squared_error_is_that_of_x():
    program = Conditional()
    x, y = examples(program)
    card = evaluate(program, (x, y), **LITTLE, only=["pictures"])
    with torch.no_grad():
        precision = torch.eye(Z).double() + program.weight.T @ program.weight / NOISE**2
        loc = (x - program.shift[y]) @ program.weight / NOISE**2 @ precision.inverse()
        spread = (program.weight @ precision.inverse() @ program.weight.T).diagonal().mean()
        truth = (x - program.shift[y] - loc @ program.weight.T).square().mean(1) + spread
    assert_mean(card.per_example["squared_error"] - truth[card.index], 0.0)


def test_compare_and_race():
    program = Conditional()
    x, y = examples(program)
    truth = program.log_evidence(x, y).mean()
    laps = race(program, (x, y), (x, y), {"stl": "stl"}, 3, num_particles=50, batch_size=20, learning_rate=1e-12)
    assert [lap.after for lap in laps] == ["equal steps", "equal time"]
    assert laps[0].log_evidence.value == pytest.approx(truth.item(), abs=1e-6)
    program = Conditional(shrink=0.5)
    for batch in (Arguments((x, y)), Arguments(kwargs={"x": x, "y": y})):
        report = compare_gradients(program, batch, {"stl": "stl:num_particles=2"}, draws=20, reference_draws=20)[0]
        assert report.bound.value < truth
    with pytest.raises(InputError, match="a batch, a tensor"):
        compare_gradients(program, (x, y), {"stl": "stl"})
