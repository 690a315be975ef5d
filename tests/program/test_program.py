"""Users' programs: the adapter finds their parameters, and validation rejects what would train wrongly."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean
from programs import PROGRAMS, D, ModuleProgram, Z, data, make_functions
from pyro import poutine
from torch import nn

from pyro_vae import VAE, FunctionProgram, InputError, fit
from pyro_vae.data import as_images
from pyro_vae.evaluation.methods.bounds import held_out_bound, held_out_elbo
from pyro_vae.program.adapter import as_program
from pyro_vae.program.contexts import own_store
from pyro_vae.program.predictive import decode, latent_shapes, posterior_means, reconstruct, sample_prior
from pyro_vae.program.validation import check_program


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", PROGRAMS)
class TestUsersProgram:
    def test_trains_and_every_parameter_moves(self, name):
        x = data(40)
        program = as_program(PROGRAMS[name](), x)
        before = {n: p.detach().clone() for n, p in program.named_parameters()}
        assert before
        result = fit(program, x, epochs=8, batch_size=20, learning_rate=0.01, validation=data(30, seed=1), device="cpu")
        assert result.program is program
        for parameter_name, parameter in program.named_parameters():
            assert not torch.equal(parameter, before[parameter_name]), parameter_name
        assert result.history[-1].bound > result.history[0].bound

    def test_state_travels_to_a_second_instance(self, name):
        x = data(40)
        trained = fit(as_program(PROGRAMS[name](), x), x, epochs=2, batch_size=20, device="cpu").program
        fresh = as_program(PROGRAMS[name](), x)
        images = as_images(x)
        assert not torch.equal(held_out_elbo(fresh, images), held_out_elbo(trained, images))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(held_out_elbo(fresh, images), held_out_elbo(trained, images))

    def test_generates(self, name):
        x = data(5)
        program = as_program(PROGRAMS[name](), x)
        program.train(False)
        for generated in (sample_prior(program, x), reconstruct(program, x)):
            assert generated.mean.shape == generated.sample.shape == x.shape
            assert set(generated.latents) == set(latent_shapes(program, x))
        assert sample_prior(program, x[:1].expand(9, D)).mean.shape == (9, D)
        for latent, shape in latent_shapes(program, x).items():
            assert posterior_means(program, x)[latent].shape == (5, *shape)

    def test_the_store_is_left_empty(self, name):
        program = as_program(PROGRAMS[name](), data())
        held_out_bound(program, as_images(data()))
        check_program(program, data())
        assert len(pyro.get_param_store()) == 0


def test_decode_holds_the_latent_fixed():
    x = data(4)
    vae = VAE((D,), Z, (4,), "gaussian")
    z = torch.randn(4, Z)
    generated = decode(vae, {"z": z}, x)
    assert torch.equal(generated.latents["z"], z)
    assert torch.equal(generated.mean, vae.decode(z).mean)


def test_decode_tells_latent_from_data_of_the_same_shape():
    vae = VAE((Z,), Z, (4,), "gaussian")
    z = torch.randn(4, Z)
    assert torch.equal(decode(vae, {"z": z}, torch.zeros(4, Z)).mean, vae.decode(z).mean)


def test_samples_have_the_models_marginal():
    """A linear Gaussian model: mean b and variance W Wᵀ + σ² of x are known."""
    vae = VAE((D,), Z, (), "gaussian:scale=0.5")
    samples = sample_prior(vae, torch.zeros(20000, D)).sample
    weight, bias = (p.detach().double() for p in vae.decoder.parameters())
    assert_mean(samples, bias)
    assert_mean((samples.double() - bias) ** 2, (weight**2).sum(1) + 0.25)


def test_functions_keep_buffers_constraints_and_dotted_names():
    model, guide = make_functions()
    program = FunctionProgram(model, guide, data())
    state = program.state_dict()
    assert any("running_mean" in key for key in state)
    assert "free.noise/scale" in state
    assert state["free.noise/scale"].item() == pytest.approx(torch.tensor(0.5).log().item())
    with own_store(program):
        assert pyro.get_param_store()["noise.scale"].item() == pytest.approx(0.5)


def test_two_programs_of_the_same_names_do_not_share():
    """Pyro's global store would train the first one's tensors in place of the second's."""
    x = data(40)
    first, second = VAE((D,), Z, (4,), "gaussian"), VAE((D,), Z, (4,), "gaussian")
    before = [p.detach().clone() for p in first.parameters()]
    fit(second, x, epochs=1, batch_size=20, device="cpu")
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), before, strict=True))
    fit(first, x, epochs=1, batch_size=20, device="cpu")
    assert not any(torch.equal(p, q) for p, q in zip(first.parameters(), before, strict=True))


def test_modules_behind_partial_and_helpers_are_found():
    decoder = nn.Linear(Z, D)

    def helper(z):
        return decoder(z)

    def model(x, width):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), width).to_event(1))
            pyro.sample("x", dist.Normal(helper(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :Z], 1.0).to_event(1))

    program = FunctionProgram(functools.partial(model, width=1.0), guide, data())
    assert {id(p) for p in program.parameters()} == {id(p) for p in decoder.parameters()}


def test_held_out_elbo_leaves_random_states_and_mode_alone():
    vae = VAE((D,), Z, (4,), "gaussian")
    before = torch.get_rng_state()
    first = held_out_elbo(vae, as_images(data()), num_particles=3, seed=5)
    assert torch.equal(first, held_out_elbo(vae, as_images(data()), num_particles=3, seed=5))
    assert not torch.equal(first, held_out_elbo(vae, as_images(data()), num_particles=3, seed=6))
    assert torch.equal(before, torch.get_rng_state())
    assert vae.training


def test_held_out_elbo_is_exact_where_the_guide_is_the_posterior():
    """Then log w = log p(x) for every z, so every example's ELBO has a closed form."""
    weight = torch.tensor(0.8, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * z, 0.6).to_event(1), obs=x)

    def guide(x):
        precision = 1 + weight**2 / 0.36
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(weight * x / 0.36 / precision, precision**-0.5).to_event(1))

    x = torch.randn(50, 1, dtype=torch.float64)
    truth = dist.Normal(0.0, (weight**2 + 0.36).sqrt()).log_prob(x[:, 0])
    found = held_out_elbo(as_program((model, guide), x), as_images(x), num_particles=4)
    assert (found - truth).abs().max() < 1e-12


def broken(what):
    """A pair of functions with one thing wrong."""
    net = nn.Linear(D, Z)

    def model(x):
        size, dim = len(x), -1
        if what == "plate in another dimension":
            dim = -2
        if what == "hard-coded plate":
            size = 20
        if what == "plate of another size":
            size = 2 * len(x)
        if what == "latent outside the plate":
            pyro.sample("theta", dist.Normal(0.0, 1.0))
        if what == "no plate":
            pyro.sample("z", dist.Normal(torch.zeros(len(x), Z), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(2), obs=x)
            return
        with pyro.plate("data", size, dim=dim, subsample_size=len(x) if size != len(x) else None):
            name = "zz" if what == "another latent" else "z"
            if what == "enumerable batch":
                pyro.sample("c", dist.Bernoulli(0.5))
            z = pyro.sample(name, dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            mean = z @ torch.ones(Z, D)
            if what == "missing to_event":
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            elif what == "not in event dimensions":
                pyro.sample("x", dist.Normal(torch.zeros(len(x), 1, D), 1.0).to_event(1), obs=x)
            elif what == "grey under a Bernoulli":
                pyro.sample("x", dist.Bernoulli(logits=mean).to_event(1), obs=x)
            elif what == "outside the support":
                pyro.sample("x", dist.Exponential(mean.exp()).to_event(1), obs=x)
            elif what == "nothing observed":
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1))
            else:
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        if what == "latent outside the plate":
            pyro.sample("theta", dist.Normal(0.0, 1.0))
        if what == "nothing observed":
            with pyro.plate("other", len(x), dim=-1):
                pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        if what != "module not registered":
            pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            if what == "enumerable batch":
                pyro.sample("d", dist.Bernoulli(0.5))
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return (poutine.scale(model, scale=2.0), guide) if what == "scaled" else (model, guide)


class LooseParameter(ModuleProgram):
    """A pyro.param in a method: no module holds it, and checkpoints would lose it."""

    def model(self, x):
        pyro.param("loose", torch.ones(1))
        super().model(x)


def test_parameter_that_no_module_holds_is_refused_and_the_suggested_fix_works():
    with pytest.raises(
        InputError, match=r"held by the program's module .*loose made by pyro.param.*fit\(\(program.model"
    ):
        check_program(LooseParameter(), data())
    program = LooseParameter()
    adapted = as_program((program.model, program.guide), data())
    check_program(adapted, data())
    assert "free.loose" in adapted.state_dict()


def test_trying_out_leaves_no_mark():
    model, guide = make_functions()
    program = FunctionProgram(model, guide, data())
    before, noise = {k: v.clone() for k, v in program.state_dict().items()}, torch.get_rng_state()
    check_program(program, data())
    assert program.training
    assert torch.equal(noise, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


REFUSED = {
    "hard-coded plate": "site 'z' without a scale; got 1.05",
    "missing to_event": r"that runs on a batch.*\.to_event; got ValueError at .*test_program.py:\d+: Shape mismatch",
    "plate in another dimension": "a plate of the 20 examples that all sites share, .*; got plates of other names",
    "plate of another size": "site 'z' without a scale; got 2.0. Try plate sizes of len",
    "latent outside the plate": "site 'theta' inside one plate .*got no plate",
    "no plate": "one event shape of latent 'z' in model and guide; got .2,. in the guide, .20, 2. in the model",
    "another latent": r"same latent sites in model and guide; got model \['zz'\], guide \['z'\]",
    "enumerable batch": r"same latent sites in model and guide; got model \['c', 'z'\], guide \['d', 'z'\]",
    "not in event dimensions": r"site 'x' with batch shape \(20,\).*to_event",
    "grey under a Bernoulli": "binary pixels: a Bernoulli gives grey levels no probability.*binarize='dynamic'",
    "outside the support": "data in the support of Exponential at site 'x'",
    "nothing observed": "an observed site in the model",
    "module not registered": "every trainable parameter registered with Pyro .*pyro.module",
    "scaled": "site '.' without a scale; got 2.0",
}


@pytest.mark.parametrize("what", REFUSED)
def test_broken_program_is_refused(what):
    with pytest.raises(InputError, match=REFUSED[what]):
        check_program(as_program(broken(what), data()), data())


def test_the_same_program_unbroken_is_accepted():
    check_program(as_program(broken("nothing"), data()), data())


@pytest.mark.parametrize("thing", [3, "vae", VAE, (1, 2), nn.Linear(2, 2), (make_functions,)])
def test_what_is_no_program_is_refused(thing):
    with pytest.raises(InputError, match="Expected a program"):
        as_program(thing, data())


def test_module_that_is_not_found_is_refused_unless_given():
    hidden = {"maker": nn.Linear(Z, D)}

    class Box:
        decoder = hidden["maker"]

    def model(x):
        pyro.module("decoder", Box.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(Box.decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :Z], 1.0).to_event(1))

    with pytest.raises(InputError, match=r"pyro.module\('decoder', ...\) on a module that is a global"):
        FunctionProgram(model, guide, data())
    program = FunctionProgram(model, guide, data(), modules=[Box.decoder])
    assert len(list(program.parameters())) == 2
