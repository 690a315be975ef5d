"""Batches of several tensors: tuples are positional arguments, mappings keyword arguments, labels are ``y``."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import VAE, Hook, Images, InputError, NonFiniteError, Replicates, evaluate, fit
from pyro_vae.base.batch import Arguments
from pyro_vae.data import Columns, as_images
from pyro_vae.elbo import IWAE, SampledKL
from pyro_vae.engines import Compiled
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.compiled.cuda_graphs import Recording
from pyro_vae.engines.compiled.engine import CompiledEngine, build_optimizer
from pyro_vae.engines.compiled.step import StepFunction
from pyro_vae.engines.compiled.terms import CompiledTerms
from pyro_vae.engines.compiled.trace import traced
from pyro_vae.evaluation.methods.bounds import held_out_elbo, importance_bounds
from pyro_vae.program import evaluating

D, CLASSES = 5, 3
N = 50  # batches of 8: the last one is smaller
UNCOMPILED = Compiled(inductor=False)


class Conditional(nn.Module):
    """p(x|z, y), q(z|x, y) over networks; y is a class."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.decoder, self.encoder = nn.Linear(2 + CLASSES, D), nn.Linear(D + CLASSES, 4)

    def model(self, x, y):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = self.decoder(torch.cat([z, one_hot(y).expand(*z.shape[:-1], CLASSES)], -1))
            pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(torch.cat([x, one_hot(y)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Joined(Conditional):
    """The same program on one tensor, the class written behind x: the reference."""

    def model(self, xy):
        return super().model(xy[..., :D], xy[..., D].long())

    def guide(self, xy):
        return super().guide(xy[..., :D], xy[..., D].long())


class Optional(Conditional):
    """Labels have the default None, which means zeros here."""

    def model(self, x, y=None):
        return super().model(x, x.new_zeros(len(x)).long() if y is None else y)

    def guide(self, x, y=None):
        return super().guide(x, x.new_zeros(len(x)).long() if y is None else y)


class Sequences(nn.Module):
    """Rows of which only the first ``lengths`` entries count; x is not finite where the mask is of other lengths."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def model(self, x, lengths, *, mask):
        x = torch.where((mask.sum(-1) == lengths)[:, None], x, torch.nan)
        pyro.module("sequences", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            mean = z[..., None].expand(*z.shape, D)
            pyro.sample("x", dist.Normal(mean, self.scale.exp()).mask(mask).to_event(1), obs=x)

    def guide(self, x, lengths, *, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x * mask).sum(-1) / lengths, self.scale.exp()))


def one_hot(y):
    return (y[..., None] == torch.arange(CLASSES)).float()  # nn.functional.one_hot cannot be traced


def labelled(n=N, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=noise), torch.randint(CLASSES, (n,), generator=noise)


def run(program, data, **changes):
    return fit(program, data, **{"epochs": 2, "batch_size": 8, "device": "cpu", "engine": "svi", **changes})


def parameters(result):
    return torch.cat([p.detach().flatten() for p in result.program.parameters()])


class Stop(Hook):
    """Stops after a number of steps."""

    def __init__(self, at):
        self.at = at

    def stepped(self, loop, info):
        if loop.position.step == self.at:
            loop.stop("enough")


def loader(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=8, shuffle=True)


x, y = labelled()
FORMS = {
    "tuple": (x, y),
    "list": [x, y],
    "mapping": {"y": y, "x": x},
    "columns": Columns((x,), {"y": y}),
    "labelled images": Images(x, y),
    "arrays": (x.numpy(), y.numpy()),
    "data set": TensorDataset(x, y),
    "loader": loader(x, y),
}


@pytest.mark.parametrize("engine", ["svi", UNCOMPILED])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_to_the_bits_of_the_program_of_one_tensor(form, engine):
    joined = torch.cat([x, y[:, None].float()], -1)
    held_out = labelled(20, seed=1)
    reference = held_out_elbo(Joined(seed=3), as_images(torch.cat([held_out[0], held_out[1][:, None].float()], -1)))
    assert torch.equal(held_out_elbo(Conditional(seed=3), Columns(held_out)), reference)
    found = run(Conditional(), FORMS[form], engine=engine)
    wanted = run(Joined(), joined, engine=engine)
    assert torch.equal(parameters(found), parameters(wanted))
    assert [r.objective for r in found.history] == [r.objective for r in wanted.history]


def test_labels_make_a_difference():
    """The reference would hold if y were ignored by both."""
    right, wrong = run(Conditional(), (x, y)), run(Conditional(), (x, y.roll(1)))
    assert not torch.equal(parameters(right), parameters(wrong))


PLAIN = {
    "tuple of one": lambda x: (x,),
    "array": lambda x: x.numpy(),
    "double array": lambda x: x.double().numpy(),
    "read-only array": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "data set": lambda x: TensorDataset(x),
    "loader": lambda x: loader(x),
}


@pytest.mark.parametrize("form", PLAIN)
def test_a_single_tensor_in_any_form_is_the_plain_tensor(form):
    def trained(data):
        return parameters(run(make(), data, validation=data, epochs=1))

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return VAE((D,), 2, (4,), "gaussian:scale=0.5")

    assert torch.equal(trained(PLAIN[form](x)), trained(x))


def test_lengths_and_masks_stay_with_their_examples():
    lengths = torch.randint(1, D + 1, (N,), generator=torch.Generator().manual_seed(0))
    data = Columns((x, lengths), {"mask": torch.arange(D) < lengths[:, None]})
    for engine in ("svi", UNCOMPILED):
        history = run(Sequences(), data, validation=data.subset(torch.arange(20)), engine=engine).history
        assert history[0].bound is not None
    with pytest.raises(InputError, match="site 'x'; got values outside"):
        run(Sequences(), Columns((x, lengths.roll(1)), data.kwargs))


def test_engines_agree_on_the_same_noise():
    svi, compiled = run(Conditional(), (x, y), estimator="sampled_kl"), run(Conditional(), (x, y), engine=UNCOMPILED)
    assert torch.allclose(parameters(svi), parameters(compiled), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["svi", UNCOMPILED])
@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_a_resumed_state_ends_in_the_same_bits(form, engine):
    settings = {"epochs": 3, "validation": FORMS[form], "kl_warmup": 2.0, "seed": 2, "engine": engine}
    settings["estimator"] = "sampled_kl"
    whole = run(Conditional(), FORMS[form], **settings)
    state = run(Conditional(), FORMS[form], hooks=[Stop(9)], **settings).state
    resumed = run(Conditional(seed=99), FORMS[form], resume=state, **settings)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert [(r.objective, r.bound) for r in resumed.history] == [(r.objective, r.bound) for r in whole.history]


def test_replicates_get_the_labels():
    def two():
        return Replicates([Conditional(seed) for seed in range(2)])

    settings = {"epochs": 1, "engine": UNCOMPILED}
    same, other = (run(two(), (x, z), **settings) for z in (y, y.roll(1)))
    assert not torch.equal(parameters(same), parameters(other))
    assert torch.equal(parameters(run(two(), Images(x, y), **settings)), parameters(same))


def test_steps_on_the_device_equal_single_steps():
    data = Columns((x,), {"y": y})
    order, count = torch.randperm(N, generator=torch.Generator().manual_seed(2)), -(-N // 8)
    batches = Batches(data, order, 8, 0, (0,), [0.01] * count, [1.0] * count)
    one, other = Conditional(), Conditional()
    function = StepFunction(one, SampledKL())
    graphs = {}

    def graph_for(batch, weight):
        if len(batch) not in graphs:
            graphs[len(batch)] = traced(function, batch, weight)
        return graphs[len(batch)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        recorded = Recording(function, graph_for, build_optimizer("adam", function.groups), data, size=8)
        rows = [row for _, found in recorded.epoch(batches) for row in found]
    with torch.random.fork_rng(), CompiledEngine(other, SampledKL(), inductor=False) as engine:
        torch.manual_seed(0)
        infos = [info for found in engine.run(batches) for info in found]
    assert [norm for _, [norm] in rows] == pytest.approx([info.grad_norm for info in infos], rel=1e-5)
    assert torch.allclose(*(torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (one, other)), rtol=1e-5)


def test_traced_terms_are_the_programs():
    program, batch = Conditional(), Arguments((x[:7], y[:7]))
    with evaluating(program, torch.device("cpu"), 0):
        terms = CompiledTerms(program)(batch, 4)
        assert terms.log_weight.shape == (4, 7)
    bounds = importance_bounds(program, Columns((x, y)), num_particles=200, seed=1)
    assert bounds.shape == (N,)
    assert (importance_bounds(program, Columns((x, y.roll(1))), 200, seed=1) - bounds).abs().max() > 0.1


def test_images_are_binarized_beside_their_labels():
    grey = Images((x.sigmoid() * 255).to(torch.uint8), y, binarize="dynamic")
    alone = Images(grey.pixels, binarize="dynamic")
    both = Columns((grey,), {"y": y})
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    index = torch.tensor([3, 1, 4])
    batch = both.batch(index, generators[0])
    assert torch.equal(batch.args[0], alone.batch(index, generators[1]))
    assert torch.equal(batch.kwargs["y"], y[index])
    assert torch.equal(both.binarized(7).args[0], alone.binarized(7))
    assert len(both.to("cpu").subset(index)) == 3


def test_the_sleep_phase_keeps_the_labels():
    found = run(Conditional(), Images(x, y), estimator="wake_sleep")
    assert all(torch.isfinite(torch.tensor(r.objective)) for r in found.history)


def test_a_step_that_is_not_finite_names_its_site():
    program = Conditional()
    with torch.no_grad():
        program.encoder.bias.fill_(1e6)
    with pytest.raises(NonFiniteError, match="site z"):
        run(program, (x, y))


# ---- labels


def functions(program):
    return program.model, program.guide


@pytest.mark.parametrize("thing", [Optional(), functions(Optional())])
def test_labels_are_given_to_a_default_of_none(thing):
    """Without labels, y stays None; a pair of functions is asked as a module is."""
    before = copy.deepcopy(thing if isinstance(thing, nn.Module) else thing[0].__self__).state_dict()
    found = {}
    for name, data in {
        "given": Images(x, y),
        "none": Images(x),
        "plain": x,
        "zeros": (x, torch.zeros(N).long()),
    }.items():
        (thing if isinstance(thing, nn.Module) else thing[0].__self__).load_state_dict(before)
        found[name] = parameters(run(thing, data, epochs=1))
    assert torch.equal(found["none"], found["plain"])
    assert torch.equal(found["none"], found["zeros"])
    assert not torch.equal(found["given"], found["none"])


def test_programs_that_do_not_ask_get_no_labels():
    vae = VAE((8, 8), 2, (4,))
    grey = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    with_labels, without = (run(copy.deepcopy(vae), Images(grey, labels)) for labels in (torch.arange(20), None))
    assert torch.equal(parameters(with_labels), parameters(without))


def test_labels_that_cannot_be_given_are_refused():
    with pytest.raises(
        InputError, match=r"labels, which the program asks for as y; got images without labels\. Try fit"
    ):
        run(Conditional(), x)
    one = Conditional()
    with pytest.raises(
        InputError, match=r"y as a parameter of model and guide; got none in guide\. Try def guide\(x, y"
    ):
        run((one.model, lambda x: None), Images(x, y))


# ---- refusals

BAD = {
    "sizes": ((x, y[:-1]), r"one number of examples; got \{0: 50, 1: 49\}"),
    "uint8": (
        (x, y.to(torch.uint8)),
        r"argument 2 of a type that says .*; got torch\.uint8\. Try Images\(x\) for grey",
    ),
    "not finite": ({"x": x, "y": x[:, 0] / 0}, r"finite numbers as argument 'y'; got NaN or infinity"),
    "scalar": ((x, torch.tensor(1.0)), r"argument 2 of shape \(N, \.\.\.\), with examples; got shape \(\)"),
    "empty": ((), "at least one tensor; got an empty tuple"),
    "text": ((x, ["a"] * N), r"a tensor, an array or Images as argument 2; got list"),
    "names": ({"x": x, "y of x": y}, r"arguments of model and guide as keys; got 'y of x'"),
    "too many": ((x, y, y), r"a tensor for every argument of model\(x, y\); got 3 positional: too many positional"),
    "too few": ((x,), r"labels, which the program asks for as y"),
    "other names": ({"x": x, "labels": y}, r"every argument of model\(x, y\); got 0 positional, x=, labels=: missing"),
    "complex": ((x, torch.zeros(N, dtype=torch.complex64)), r"real numbers as argument 2; got torch\.complex64"),
}


@pytest.mark.parametrize("what", BAD)
def test_data_that_cannot_be_arguments_are_refused(what):
    data, message = BAD[what]
    with pytest.raises(InputError, match=message):
        run(Conditional(), data)


def test_validation_data_of_another_kind_are_refused():
    message = r"validation data of shape \(5,\) as 0, \(\) as 1, as the training data; got \(5,\) as x, \(\) as y"
    with pytest.raises(InputError, match=message):
        run(Conditional(), (x, y), validation={"x": x, "y": y})
    with pytest.raises(InputError, match=r"validation data of shape \(5,\) as 0, \(\) as y, .*; got \(5,\)\. Try"):
        run(Optional(), Images(x, y), validation=x)


def test_evaluation_takes_them_too():
    for data in ((x, y), Images(x, y)):
        assert evaluate(Conditional(), data, device="cpu", only=["bounds"], iwae=[4])["elbo"].count == N
    card = evaluate(Optional(), DataLoader(TensorDataset(x)), device="cpu", only=["bounds"], iwae=[4])
    assert card["elbo"].count == N


def test_other_estimators_take_the_tensors():
    for estimator in (IWAE(3), "dreg", "vimco", "trace_mean_field_elbo", pyro.infer.RenyiELBO(num_particles=2)):
        run(Conditional(), (x, y), estimator=estimator, epochs=1)


def test_one_number_an_example_is_given_by_name():
    """A tensor (N,) may be a single image without its dimension of examples; the message names the way out."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 1.0))

    x, options = torch.randn(20, generator=torch.Generator().manual_seed(0)), {"epochs": 1, "batch_size": 5}
    with pyro.get_param_store().scope():
        with pytest.raises(InputError, match=r"got shape \(20,\)\. Try .* or a mapping \{'x': x\} for one number"):
            fit((model, guide), x, device="cpu", **options)
        found = fit((model, guide), {"x": x}, validation={"x": x}, device="cpu", **options)
    assert found.history[0].step == 4
    assert found.history[0].bound < 0
