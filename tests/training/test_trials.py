"""Before the first step a program runs a few times at most, and a program that is refused stays as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, InputError, fit
from pyro_vae.elbo import IWAE, SampledKL, WakeSleep, trace_elbo
from pyro_vae.engines import select
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.training import setup

D, Z, N, BATCH = 5, 2, 34, 8


def data(n=N, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


class Counts:
    """How often model and guide ran."""

    def __init__(self):
        self.model = self.guide = 0


def counted_module():
    counts = Counts()

    class Counted(VAE):
        def model(self, x):
            counts.model += 1
            return super().model(x)

        def guide(self, x):
            counts.guide += 1
            return super().guide(x)

    return Counted((D,), Z, (4,), "gaussian:scale=0.5"), counts


def counted_functions():
    counts, decoder, encoder = Counts(), nn.Linear(Z, D), nn.Linear(D, Z)

    def model(x):
        counts.model += 1
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        counts.guide += 1
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return (model, guide), counts


class Enough(Exception):
    """The first step is about to be taken."""


def runs_before_the_first_step(make, monkeypatch, **settings):
    """Return how often model and guide ran until the engine takes its first step."""
    program, counts = make()

    def halt(self, *args, **kwargs):
        raise Enough

    monkeypatch.setattr("pyro_vae.engines.svi.SVIEngine.step", halt)
    monkeypatch.setattr("pyro_vae.engines.compiled.engine.CompiledEngine.step", halt)
    with pytest.raises(Enough):
        fit(program, data(), device="cpu", batch_size=BATCH, **settings)
    return counts.model, counts.guide


def trace_only(monkeypatch):
    """Compile no graph, which takes long and does not run the program."""
    build = CompiledEngine.__init__
    monkeypatch.setattr(
        CompiledEngine, "__init__", lambda *args, **options: build(*args, **{**options, "inductor": False})
    )


MAKE = {"module": counted_module, "functions": counted_functions}
ENGINES = {
    "svi": {"engine": "svi"},
    "compiled": {"engine": "compiled:inductor=false"},
    "auto, few steps": {"engine": "auto"},
    "auto, many steps": {"engine": "auto", "epochs": 10**6},
}
ESTIMATORS = {"pyro": trace_elbo(), "elbo": SampledKL(), "iwae": IWAE(3), "wake-sleep": WakeSleep(3)}


@pytest.mark.parametrize("validation", [None, data(9, 1)], ids=["alone", "validated"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("estimator", ["pyro", "elbo", "iwae"])
@pytest.mark.parametrize("make", MAKE)
def test_the_program_runs_at_most_four_times_before_the_first_step(make, estimator, engine, validation, monkeypatch):
    settings = {"estimator": ESTIMATORS[estimator], "validation": validation, **ENGINES[engine]}
    monkeypatch.setattr(select, "has_compiler", lambda device: True)
    trace_only(monkeypatch)
    model, guide = runs_before_the_first_step(MAKE[make], monkeypatch, **settings)
    most = 7 if settings["estimator"].num_particles > 1 else 4  # several particles: three runs compare them one by one
    assert 1 <= model <= most
    assert 1 <= guide <= most


def test_an_estimator_may_run_the_program_more_than_once(monkeypatch):
    model, guide = runs_before_the_first_step(counted_functions, monkeypatch, estimator=WakeSleep(3), engine="svi")
    assert max(model, guide) <= 10  # three more runs ask whether the model looks at x


def test_a_run_too_many_is_counted(monkeypatch):
    """A planted trial more for each of these makes the count say so."""
    few = runs_before_the_first_step(counted_module, monkeypatch, engine="svi")
    check = setup.check_once
    monkeypatch.setattr(setup, "check_once", lambda *args, **options: [check(*args, **options) for _ in range(4)])
    many = runs_before_the_first_step(counted_module, monkeypatch, engine="svi")
    assert max(few) <= 4 < min(many)


# ---- what is refused stays as it was


class Discrete(nn.Module):
    """A latent without a closed KL: its scales differ from those of the data's site, which IWAE refuses."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(()))
        self.loc = nn.Parameter(torch.zeros(D))

    def model(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(self.loc + z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.logits))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
def test_a_program_that_the_estimator_refuses_keeps_its_mode(engine, training):
    program = Discrete().train(training)
    with pytest.raises(InputError, match="one scale for all sites, or one for all latents"):
        fit(program, data(), estimator="iwae:num_particles=3", engine=engine, device="cpu", batch_size=BATCH)
    assert program.training is training
    assert all(p.grad is None for p in program.parameters())


def hard_coded(size):
    """A plate of a number in the place of ``len(x)``."""
    decoder, encoder = nn.Linear(Z, D), nn.Linear(D, Z)

    def plate(x):
        return pyro.plate("data", size or len(x), subsample_size=len(x), dim=-1)

    def model(x):
        pyro.module("decoder", decoder)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with plate(x):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
def test_a_scale_multiplies_the_loss(engine):
    """As N/B does in Pyro: by SGD the steps are so many times as long."""
    ends = {}
    for factor in (1.0, N / BATCH):
        torch.manual_seed(0)
        program = tuple(pyro.poutine.scale(function, scale=factor) for function in hard_coded(None))
        settings = {"estimator": "sampled_kl", "optimizer": "sgd", "engine": engine, "device": "cpu"}
        rate = 1e-4 / factor
        result = fit(program, data()[: 2 * BATCH], learning_rate=rate, batch_size=BATCH, epochs=2, **settings)
        ends[factor] = torch.cat([p.detach().flatten() for p in result.program.parameters()])
    assert torch.allclose(*ends.values(), rtol=1e-5, atol=1e-7)


def narrow():
    """A model that takes latents without a dimension of particles alone."""
    encoder = nn.Linear(D, Z)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1).reshape(len(x), 1).expand(len(x), D), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide


@pytest.mark.parametrize("engine", ["svi", "compiled:inductor=false"])
@pytest.mark.parametrize("estimator", ["trace_elbo", "sampled_kl"])
def test_held_out_bounds_need_a_program_that_broadcasts(engine, estimator):
    settings = {"estimator": estimator, "engine": engine, "device": "cpu", "batch_size": BATCH, "epochs": 1}
    with pytest.raises(InputError, match=r"that broadcasts over particles.*; got RuntimeError at .*test_trials\.py"):
        fit(narrow(), data(), validation=data(9, 1), eval_particles=2, **settings)
    assert len(fit(narrow(), data(), validation=data(9, 1), **settings).history) == 1  # one particle needs no plate
    if (estimator, engine) == ("trace_elbo", "svi"):  # Pyro's own takes one particle at a time
        assert len(fit(narrow(), data(), **settings).history) == 1
