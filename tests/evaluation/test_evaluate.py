"""Card: figures on oracles, chunks that survive a kill bit for bit, bounded memory, the card."""

import dataclasses
import inspect
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from pyro.infer import SVI
from toys import MAKE, Counted, binary, seeded, small_vae

from pyro_vae import VAE, FunctionProgram, Images, InputError, evaluate
from pyro_vae.base.statistics import Estimate
from pyro_vae.cli.main import main
from pyro_vae.data import as_images
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.card import importance
from pyro_vae.evaluation.card.card import Card
from pyro_vae.evaluation.card.entry import Entry, share_entry
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.card.totals import all_examples_entry
from pyro_vae.evaluation.methods import bounds as likelihood
from pyro_vae.evaluation.methods.bounds import held_out_elbo
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.store import ChunkStore
from pyro_vae.models.oracles.discrete import DiscreteLatents
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian
from pyro_vae.models.oracles.mixture import GaussianMixture
from pyro_vae.program.contexts import own_store

FROM_DRAWS = ["bounds", "importance"]
SMALL = {"num_particles": 200, "iwae": [1, 4, 20], "importance_examples": 120, "only": FROM_DRAWS, "device": "cpu"}


def skew(guide="encoder"):
    """A linear VAE whose columns are not orthogonal: the gap of the diagonal q is known."""
    weight = torch.tensor([[1.0, 0.8], [0.2, 0.9], [-0.4, 0.3]], dtype=torch.float64)
    return LinearGaussian.of(weight, torch.tensor([0.1, -0.2, 0.3]), 0.6, guide)


def truth(oracle, x, card, name):
    with torch.no_grad():
        return oracle.log_evidence(x[card.index[: len(card.per_example[name])]])


# ---- figures on oracles


def test_where_q_is_the_posterior_every_figure_is_log_p():
    oracle = skew("posterior")
    x = oracle.simulate(130)
    card = evaluate(oracle, x, **SMALL)
    for name in ("elbo", "iwae_1", "iwae_4", "iwae_20", "log_evidence"):
        assert_close(card.per_example[name], truth(oracle, x, card, name))
    assert card["inference_gap"].value == pytest.approx(0, abs=1e-10)
    assert card["ess"].value == pytest.approx(200)
    assert [card[f"k_hat_{limit}"].value for limit in (0.5, 0.7)] == [0, 0]
    assert card["log_evidence_all"].value == pytest.approx(oracle.log_evidence(x).mean().item())


def ratio(oracle, x, card):
    """p̂(x) / p(x) of every example: an importance-sampling estimate has mean 1, whatever q is."""
    return (card.per_example["log_evidence"] - truth(oracle, x, card, "log_evidence")).exp()


def test_importance_sampling_is_unbiased_and_the_gap_is_the_known_one():
    oracle = skew()
    x = oracle.simulate(2000)
    card = evaluate(oracle, x, **{**SMALL, "importance_examples": 2000, "num_particles": 50})
    assert_mean(ratio(oracle, x, card), 1.0)
    elbo = card.per_example["elbo"]
    assert_mean(truth(oracle, x, card, "elbo") - elbo, oracle.gap())
    order = [card[name].value for name in ("elbo", "iwae_4", "iwae_20", "log_evidence")]
    assert order == sorted(order)
    assert card["elbo"].value == pytest.approx(card["reconstruction"].value - card["kl"].value)
    assert card["kl"].value == pytest.approx(card["cross_entropy"].value - card["entropy"].value)
    assert card["iwae_1"].value == pytest.approx(card["elbo"].value)


def averaged_before_the_log(subject, where, seed):
    found = importance.importance(subject, where, seed)
    return dataclasses.replace(found, log_evidence=found.evidence_elbo)


def not_normalised(subject, where, seed):
    found = importance.importance(subject, where, seed)
    return dataclasses.replace(found, log_evidence=found.log_evidence + math.log(1.1))


@pytest.mark.parametrize("planted", [averaged_before_the_log, not_normalised])
def test_planted_errors_are_caught(planted, monkeypatch):
    oracle = skew()
    x = oracle.simulate(2000)
    part = PARTS["importance"]
    monkeypatch.setitem(PARTS, "importance", type(part)(**{**vars(part), "work": planted}))
    card = evaluate(oracle, x, **{**SMALL, "importance_examples": 2000, "num_particles": 50})
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(ratio(oracle, x, card), 1.0)


def test_the_error_of_the_figure_for_all_examples_is_its_spread():
    """Over repetitions the variance equals the one that the entry states, to the accuracy of 400 of them."""
    torch.manual_seed(0)
    found = []
    for _ in range(400):
        elbo = 3 * torch.randn(400, dtype=torch.float64)
        gap = 1 + torch.randn(50, dtype=torch.float64) - 0.5 * elbo[:50]
        found.append(all_examples_entry("all", "all", elbo, gap, "", ""))
    means = torch.tensor([entry.value for entry in found], dtype=torch.float64)
    stated = sum(entry.standard_error**2 for entry in found) / len(found)
    assert_mean(means, 1.0)
    assert_mean((means - means.mean()).square() * 400 / 399, stated)


def test_local_flows_find_log_p_where_the_guide_does_not():
    """The posterior is a correlated normal, which a flow can be: its gap closes, the diagonal one is the known one."""
    oracle = skew()
    x = oracle.simulate(60)
    card = evaluate(oracle, x, only=["bounds", "gaps"], gap_examples=30, device="cpu")
    exact = oracle.log_evidence(x).mean().item()
    found = card["local_evidence_all"]
    assert found.value == pytest.approx(exact, abs=5 * found.standard_error)
    for name, truth in (("approximation_diagonal", oracle.gap().item()), ("approximation_flow", 0.0)):
        assert card[name].value == pytest.approx(truth, abs=0.02)
    total = card["approximation_flow"].value + card["amortization_flow"].value
    assert total == pytest.approx(card["approximation_diagonal"].value + card["amortization_diagonal"].value, abs=0.05)


# ---- any program


def functions():
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        shift = pyro.param("shift", x.new_zeros(()))
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + shift, log_scale.exp()).to_event(1))

    return model, guide


SUBJECTS = {
    "vae": lambda: (VAE((3, 2), latent_dim=2, hidden=(5,)), torch.rand(60, 3, 2).round()),
    "linear": lambda: (skew(), skew().simulate(60)),
    "mixture": lambda: ((o := GaussianMixture(torch.rand(3), torch.randn(3, 2), torch.tensor(0.5))), o.simulate(60)),
    "discrete": lambda: ((o := DiscreteLatents(5, bits=2, classes=3)), o.simulate(60)),
    "functions": lambda: (FunctionProgram(*functions(), torch.zeros(2, 3)), torch.randn(60, 3)),
}


LITTLE = {
    **{"num_particles": 40, "iwae": [4], "importance_examples": 20, "simulations": 100, "prior_examples": 4},
    **{"annealing_examples": 4, "sandwich_examples": 4, "annealing_chains": 3, "annealing_temperatures": 5},
    **{"gap_examples": 4, "gap_steps": 20, "hmc_examples": 2, "hmc_samples": 10},
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_part_is_computed_or_says_why_not(name, device):
    torch.manual_seed(0)
    program, x = SUBJECTS[name]()
    card = evaluate(program, x.to(device), device=device, **LITTLE)
    computed = {entry.part for entry in card.entries}
    assert computed | set(card.left_out) == set(PARTS) - {"joint"}  # of programs whose examples share a latent
    assert {"bounds", "importance"} <= computed
    assert all(math.isfinite(entry.value) and entry.count > 0 for entry in card.entries)
    assert all(reason for reason in card.left_out.values())
    for entry in card.entries:
        assert entry.label in str(card)


def test_functions_keep_the_parameters_of_the_callers_store():
    model, guide = functions()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    options = {"only": ["bounds"], "device": "cpu", "iwae": [4]}
    with pyro.get_param_store().scope():
        guide(x)
        at_zero = evaluate((model, guide), x, **options)["elbo"].value
        with torch.no_grad():
            pyro.param("shift").fill_(2.0)
        shifted = evaluate((model, guide), x, **options)["elbo"].value
        assert pyro.param("shift").item() == 2.0
    assert shifted < at_zero - 1


def test_no_global_state_changes():
    vae, x = VAE((4,), latent_dim=2), Images(torch.randint(0, 256, (20, 4), dtype=torch.uint8), binarize="dynamic")
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    evaluate(vae, x, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("binarize", ["dynamic", "threshold", "none"])
def test_the_binarization_is_stated_with_every_likelihood(binarize):
    grey = torch.randint(0, 256, (30, 4), dtype=torch.uint8)
    images = Images(grey if binarize != "none" else grey // 128, max_value=255 if binarize != "none" else 1)
    images = Images(images.pixels, max_value=images.max_value, binarize=binarize)
    card = evaluate(VAE((4,), latent_dim=2), images, seed=3, **SMALL)
    said = {"dynamic": "binarized by one draw (seed 3)", "threshold": "binarized at one half"}
    assert card.about["pixels"] == said.get(binarize, "binary as they are")
    likelihoods = ["elbo", "reconstruction", "iwae_4", "elbo_bits", "log_evidence", "log_evidence_all"]
    assert all(card.about["pixels"] in card[name].how for name in likelihoods)


def test_bits_per_dim_are_of_a_probability_or_say_that_they_are_not():
    binary = evaluate(VAE((4,), latent_dim=2), torch.ones(20, 4), **SMALL)
    assert binary["elbo_bits"].value == pytest.approx(-binary["elbo"].value / (4 * math.log(2)))
    assert binary["elbo_bits"].caveat == ""
    density = evaluate(VAE((4,), latent_dim=2, likelihood="learned_gaussian"), torch.rand(20, 4), **SMALL)
    assert "not dequantized" in density["elbo_bits"].caveat
    assert "a density" in density.about["likelihood"]


# ---- chunks


def test_no_more_draws_at_once_than_allowed(monkeypatch):
    scored = []
    draw_terms = likelihood.draw_terms

    def counted(program, x, num_particles, **how):
        scored.append(len(x) * num_particles)
        return draw_terms(program, x, num_particles, **how)

    monkeypatch.setattr(likelihood, "draw_terms", counted)
    oracle = skew()
    evaluate(oracle, oracle.simulate(200), **{**SMALL, "draws_at_once": 150, "importance_examples": 60})
    assert max(scored) <= 150
    assert sum(scored) == 200 * 20 + 60 * 200


KILLED = """
import os, signal, sys, torch
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from test_evaluate import evaluate, options, subject
torch.set_num_threads({threads})
calls = []
def tick(part, done, total):
    calls.append(part)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
evaluate(*subject(), save={save!r}, progress=tick, **options)
"""
options = {**SMALL, "importance_examples": 170, "num_examples": 1200}


def subject():
    torch.manual_seed(5)
    vae = VAE((4,), latent_dim=2, hidden=(6,))
    return vae, Images(torch.randint(0, 256, (1300, 4), dtype=torch.uint8), binarize="dynamic")


def same(one, other):
    return one.per_example.keys() == other.per_example.keys() and all(
        torch.equal(value, other.per_example[name]) for name, value in one.per_example.items()
    )


def test_a_killed_evaluation_resumes_bit_identical(tmp_path):
    """Killed at the seventh call of its progress: five chunks of seven are kept; a half-written one is passed by."""
    script = KILLED.format(
        tests=os.path.dirname(__file__),
        threads=torch.get_num_threads(),
        at=7,
        save=str(tmp_path / "kept"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = sorted(path.name for path in (tmp_path / "kept").rglob("*.pt"))
    assert len(kept) == 5
    (next((tmp_path / "kept").rglob("importance-*")) / ".00000050-00000100.pt.partial").write_bytes(b"half")
    resumed = evaluate(*subject(), save=tmp_path / "kept", **options)
    assert same(resumed, evaluate(*subject(), **options))
    assert len(list((tmp_path / "kept").rglob("*.pt"))) == 3 + 4


class Stop(Exception):
    pass


def counting(monkeypatch, stop_at=None):
    """Count the chunks that are computed; stop before one of them."""
    numbers = []
    for name in FROM_DRAWS:
        part = PARTS[name]

        def work(subject, where, seed, name=name, part=part):
            if len(numbers) == stop_at:
                raise Stop
            numbers.append((name, where.start))
            return part.work(subject, where, seed)

        monkeypatch.setitem(PARTS, name, type(part)(**{**vars(part), "work": work}))
    return numbers


def test_compiled_chunks_resume_bit_identical(tmp_path, monkeypatch):
    """Compilation uses no noise of the first chunk that needs it, and compiled chunks are stored apart."""
    monkeypatch.setattr(likelihood, "COMPILED_FROM", 1)
    whole = evaluate(*subject(), **options)
    with monkeypatch.context() as patch:
        counting(patch, stop_at=5)
        with pytest.raises(Stop):
            evaluate(*subject(), save=tmp_path, **options)
    assert same(evaluate(*subject(), save=tmp_path, **options), whole)
    monkeypatch.setattr(likelihood, "COMPILED_FROM", 10**9)
    eager = evaluate(*subject(), save=tmp_path, **options)
    assert len(list(tmp_path.glob("chunks/importance-*"))) == 2
    assert torch.allclose(eager.per_example["log_evidence"], whole.per_example["log_evidence"], rtol=1e-5)


@pytest.mark.parametrize("stop_at", range(7))
def test_stopped_before_any_chunk_it_computes_each_once(stop_at, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        numbers = counting(patch, stop_at)
        with pytest.raises(Stop):
            evaluate(*subject(), save=tmp_path, **options)
        first = list(numbers)
    with monkeypatch.context() as patch:
        second = counting(patch)
        resumed = evaluate(*subject(), save=tmp_path, **options)
    assert len(first) == stop_at
    assert len(set(first + second)) == len(first + second) == 7
    assert same(resumed, evaluate(*subject(), **options))


def test_more_examples_resume_from_fewer(tmp_path, monkeypatch):
    evaluate(*subject(), save=tmp_path, **{**options, "importance_examples": 100})
    numbers = counting(monkeypatch)
    more = evaluate(*subject(), save=tmp_path, **options)
    assert numbers == [("importance", 100), ("importance", 150)]
    assert more["log_evidence"].count == 170


CHANGES = {
    "seed": lambda s: (s, {"seed": 1}),
    "particles": lambda s: (s, {"num_particles": 201, "iwae": [1, 4, 21]}),
    "draws at once": lambda s: (s, {"draws_at_once": 2001}),
    "parameters": lambda s: ((_nudged(s[0]), s[1]), {}),
    "data": lambda s: ((s[0], Images(s[1].pixels.flip(0), binarize="dynamic")), {}),
}


def _nudged(vae):
    with torch.no_grad():
        next(vae.parameters())[0, 0] += 1e-6
    return vae


@pytest.mark.parametrize("change", CHANGES)
def test_chunks_of_something_else_are_not_used(change, tmp_path, monkeypatch):
    evaluate(*subject(), save=tmp_path, **options)
    numbers = counting(monkeypatch)
    changed, more = CHANGES[change](subject())
    evaluate(*changed, save=tmp_path, **{**options, **more})
    assert len(numbers) == 7


def test_chunks_of_other_code_are_not_used(tmp_path, monkeypatch):
    evaluate(*subject(), save=tmp_path, **options)
    monkeypatch.setattr("pyro_vae.evaluation.subject.code", lambda: "00000000")
    numbers = counting(monkeypatch)
    evaluate(*subject(), save=tmp_path, **options)
    assert len(numbers) == 7


def test_a_damaged_chunk_is_refused(tmp_path):
    evaluate(*subject(), save=tmp_path, **options)
    path = sorted(tmp_path.rglob("*.pt"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"Expected a whole chunk of an evaluation; got .*Try removing that file"):
        evaluate(*subject(), save=tmp_path, **options)


def test_progress_counts_examples():
    ticks = []
    evaluate(*subject(), progress=lambda *tick: ticks.append(tick), **options)
    assert ticks == [
        *(("bounds", done, 1200) for done in (0, 500, 1000, 1200)),
        *(("importance", done, 170) for done in (0, 50, 100, 150, 170)),
    ]


# ---- the card


def test_card_prints_every_figure_and_its_caveat():
    card = evaluate(skew(), skew().simulate(40), about={"data": "a toy"}, **SMALL)
    text = str(card)
    assert text.startswith("data        a toy\n")
    assert "k-hat is above 0.7 for" in text
    assert all(str(entry.estimate) in text for entry in card.entries)
    assert json.loads(json.dumps(card.as_dict()))["figures"][0]["name"] == "elbo"
    with pytest.raises(InputError, match=r"Expected a figure, one of .*got 'elbow'. Try 'elbo'"):
        card["elbow"]
    assert "elbo" in card
    assert "elbow" not in card


def test_what_was_left_out_is_said():
    card = Card((Entry("a", "A", Estimate(1.0, count=3), "nats", "how"),), {}, {"hmc": "20 latent dims"})
    assert str(card).endswith("not computed: hmc: 20 latent dims")


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(-100.654, 0.257, "-100.65 ± 0.26"), (3.0, 0.0, "3"), (0.12, math.nan, "0.12"), (-1234.5, 98.7, "-1234 ± 99")],
)
def test_a_figure_has_two_digits_of_its_error(mean, error, text):
    assert str(Estimate(mean, error)) == text


BAD = {
    "particles": ({"num_particles": 2}, "num_particles as a whole number of at least 30; got 2"),
    "iwae": ({"iwae": []}, "at least one k"),
    "k": ({"iwae": [0]}, r"every k of iwae as a whole number of at least 1; got 0\. Try iwae=\[5, 50\]"),
    "one k": ({"iwae": 5}, r"iwae as a list; got 5\. Try iwae=\[5, 50\]"),
    "a part as text": ({"only": "bounds"}, r"only as a list; got 'bounds'\. Try only=\[\"bounds\"\]"),
    "a part left out as text": ({"skip": "hmc"}, r"skip as a list; got 'hmc'\. Try skip=\[\"hmc\"\]"),
    "num_examples": ({"num_examples": 1}, "num_examples as a whole number of at least 2"),
    "part": ({"only": ["bound"]}, "Expected a part of the evaluation, one of .*Try 'bounds'"),
    "none left": ({"only": ["bounds"], "skip": ["bounds"]}, "Expected a part to compute; got none"),
    "seed": ({"seed": -1}, "a seed that is a whole number"),
    "device": ({"device": "tpu"}, "a device, one of auto, cpu, cuda"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        evaluate(VAE((4,), latent_dim=2), torch.ones(10, 4), **options)


def keywords_from(function, first):
    """The keywords of a function from one on, with their defaults; a tuple reads as a list."""
    found = {name: keyword.default for name, keyword in inspect.signature(function).parameters.items()}
    wanted = list(found)[list(found).index(first) :]
    return {name: list(found[name]) if isinstance(found[name], tuple) else found[name] for name in wanted}


def test_keywords_are_those_of_the_options():
    """The keywords of evaluate are the fields of EvaluationOptions, with their defaults."""
    assert keywords_from(evaluate, "num_particles") == vars(EvaluationOptions())
    with pytest.raises(TypeError, match="num_particle"):
        evaluate(VAE((4,), latent_dim=2), torch.ones(10, 4), num_particle=3)


@pytest.mark.parametrize("change", [{"gap_steps": 2000}, {"gap_step": 3000}, {}], ids=["default", "name", "missing"])
def test_a_keyword_that_differs_is_caught(change):
    planted = {name: value for name, value in vars(EvaluationOptions()).items() if name != "gap_steps"} | change
    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=v) for n, v in planted.items()]

    def function(): ...

    function.__signature__ = inspect.Signature(parameters)
    assert keywords_from(function, "num_particles") != vars(EvaluationOptions())


def test_a_card_in_a_notebook_and_as_a_frame():
    card = evaluate(skew(), skew().simulate(40), about={"data": "a <toy>"}, **SMALL)
    page = card._repr_html_()
    assert page.count("<tr") == 1 + len(card.entries)
    assert "a &lt;toy&gt;" in page
    frame = card.to_dataframe()
    assert list(frame.index) == [entry.name for entry in card.entries]
    assert frame.loc["elbo", "value"] == card["elbo"].value
    assert repr(card) == str(card)


def test_one_figure_passes_six_files():
    """The ELBO, from evaluate to its entry: runner, subject, store, the part, its method, the entry."""
    seen = set()

    def trace(frame, event, arg):
        file = Path(frame.f_code.co_filename)
        if event == "call" and "pyro_vae/evaluation" in file.as_posix():
            seen.add(f"{file.parent.name}/{file.name}")

    oracle = skew()
    x = oracle.simulate(40)
    sys.setprofile(trace)
    try:
        evaluate(oracle, x, **{**SMALL, "only": ["bounds"]})
    finally:
        sys.setprofile(None)
    no_figures = {"evaluation/options.py", "evaluation/chunking.py", "card/part.py", "card/totals.py", "card/card.py"}
    no_figures |= {"methods/observed_dims.py"}  # D, for bits
    of_all = {"evaluation/runner.py", "evaluation/subject.py", "evaluation/store.py", "card/entry.py"}
    assert seen - no_figures == of_all | {"card/bounds.py", "methods/bounds.py"}


def test_bad_subjects(tmp_path):
    vae = VAE((4,), latent_dim=2)
    with pytest.raises(InputError, match="at least two held-out examples"):
        evaluate(vae, torch.ones(1, 4))
    with pytest.raises(InputError, match="binary pixels"):
        evaluate(vae, torch.full((10, 4), 0.3))
    with pytest.raises(InputError, match="Expected a program"):
        evaluate(3, torch.ones(10, 4))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file that can be written"):
        evaluate(vae, torch.ones(10, 4), save=tmp_path / "file", **SMALL)


def test_a_part_asked_for_by_name_that_is_not_available_is_an_error(monkeypatch):
    part = PARTS["importance"]
    refusing = type(part)(**{**vars(part), "refuses": lambda subject: "Expected another program"})
    monkeypatch.setitem(PARTS, "importance", refusing)
    arguments = VAE((4,), latent_dim=2), torch.ones(10, 4)
    with pytest.raises(InputError, match="Expected another program"):
        evaluate(*arguments, **SMALL)
    card = evaluate(*arguments, **{**SMALL, "only": None, "skip": [n for n in PARTS if n not in FROM_DRAWS]})
    assert card.left_out == {"importance": "Expected another program"}
    assert "log_evidence_all" not in card


def test_a_store_without_a_folder_keeps_nothing():
    store = ChunkStore(None, "bounds", {})
    store.save(0, 1, {"a": torch.zeros(1)})
    assert store.load(0, 1) is None


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    options = ["--latent_dim", "2", "--hidden", "[7]", "--device", "cpu", "--epochs", "2"]
    assert main(["train", "--data", "digits", *options, "--out", str(folder)]) == 0
    return folder


PARTIAL = "card-last-digits-test-bounds_importance.json"  # not the name of a whole card
QUICK = ["--only", "bounds,importance", "--num-particles", "40", "--importance-examples", "60", "--device", "cpu"]


def test_command_prints_the_card_and_keeps_it(run, tmp_path, capsys):
    assert main(["evaluate", str(run), *QUICK, "--json", str(tmp_path / "card.json")]) == 0
    out = capsys.readouterr().out
    assert "digits, test: 179 images of 8x8" in out
    assert "binarized by one draw (seed 0)" in out
    assert f"card      {run / 'evaluation' / PARTIAL}" in out
    card = json.loads((run / "evaluation" / PARTIAL).read_text())
    assert card == json.loads((tmp_path / "card.json").read_text())
    figures = {figure["name"]: figure for figure in card["figures"]}
    assert figures["elbo"]["count"] == 179
    assert figures["log_evidence"]["count"] == 60
    assert all(str(figure["count"]) in out and figure["label"] in out for figure in card["figures"])


def test_command_resumes_where_it_stopped(run, monkeypatch, capsys):
    assert main(["evaluate", str(run), *QUICK]) == 0
    first = (run / "evaluation" / PARTIAL).read_text()
    numbers = counting(monkeypatch)
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert numbers == []
    assert (run / "evaluation" / PARTIAL).read_text() == first


def test_command_on_other_data_and_splits(run, tmp_path, capsys):
    torch.save((torch.rand(40, 8, 8) * 255).to(torch.uint8), tmp_path / "other.pt")
    other = ["evaluate", str(run), *QUICK, "--data", str(tmp_path / "other.pt"), "--split", "train"]
    assert main([*other, "--binarize", "threshold"]) == 0
    assert "binarized at one half" in capsys.readouterr().out
    assert main(other) == 0
    assert "binarized by one draw" in capsys.readouterr().out
    assert main(["evaluate", str(run), *QUICK, "--split", "validation", "--checkpoint", "best"]) == 0
    assert main(["evaluate", str(run), *QUICK, "--binarize", "threshold"]) == 0
    assert "binarized at one half" in capsys.readouterr().out
    names = {path.name for path in (run / "evaluation").glob("card-*.json")}
    whats = ("last-other-train", "last-other-train-threshold", "best-digits-validation", "last-digits-test-threshold")
    assert names - {PARTIAL} == {f"card-{what}-bounds_importance.json" for what in whats}


def test_the_probe_is_not_of_other_labels(run, tmp_path, capsys):
    """Labels of another data set mean other things, and the training split is no test."""
    quick = ["--only", "probe", "--device", "cpu"]
    assert main(["evaluate", str(run), *quick]) == 0
    capsys.readouterr()
    x, y = (torch.rand(40, 8, 8) * 255).to(torch.uint8), torch.arange(40) % 10
    np.savez(tmp_path / "other.npz", images=x.numpy(), labels=y.numpy())
    for more in (["--data", str(tmp_path / "other.npz")], ["--split", "train"]):
        assert main(["evaluate", str(run), *quick, *more]) == 2
        assert "training data" in capsys.readouterr().err


def test_shares_of_none_are_not_certain():
    assert 0 < share_entry("none", "none", torch.zeros(100, dtype=torch.bool), "").standard_error < 0.03


COMMAND_ERRORS = {
    "split": (["--split", "tests"], "Expected a split, one of test, train, validation; got 'tests'. Try 'test'."),
    "part": (["--only", "hcm"], "Expected a part of the evaluation"),
    "json": (["--json", "/"], "a file that can be written"),
    "seed": (["--seed", "-1"], "a seed that is a whole number"),
    "particles": (["--num-particles", "x"], "Expected a whole number for --num_particles"),
}


@pytest.mark.parametrize("name", COMMAND_ERRORS)
def test_command_errors_are_one_line(name, run, capsys):
    given, message = COMMAND_ERRORS[name]
    assert main(["evaluate", str(run), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_data_of_another_shape_are_refused(run, tmp_path, capsys):
    torch.save(torch.zeros(40, 7, 8, dtype=torch.uint8) + 3, tmp_path / "other.pt")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "other.pt")]) == 2
    assert "Expected images of 8x8, as the run was trained on; got 7x8 in other.pt" in capsys.readouterr().err


@pytest.mark.parametrize("name", MAKE)
def test_evaluation_changes_nothing(name):
    """pyroVED calls ``svi.step`` to evaluate, which trains on the held-out data."""
    vae, x = small_vae(), binary()

    def state(estimator):
        tensors = [*vae.state_dict().values(), torch.get_rng_state()]
        return [t.clone() for t in tensors], [p.grad for p in vae.parameters()], vae.training, estimator.state_dict()

    estimator = MAKE[name]()
    with own_store(vae):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=estimator)
        before = state(estimator)
        seeded(svi.evaluate_loss, x)
        held_out_elbo(vae, as_images(x), num_particles=3)
        after = state(estimator)
        assert all(map(torch.equal, before[0], after[0]))
        assert before[1:] == after[1:] == ([None] * len(before[1]), True, before[3])
        seeded(svi.step, x)
        assert not all(map(torch.equal, before[0], state(estimator)[0]))


def test_as_many_particles_are_evaluated_as_were_asked_for():
    vae, counted = small_vae(), Counted()
    guide = vae.guide
    vae.guide = counted(guide)
    held_out_elbo(vae, as_images(binary(7)), num_particles=11)
    counted.values.clear()  # of the trial of particles, at the first use
    held_out_elbo(vae, as_images(binary(7)), num_particles=11)
    assert [value.shape for value in counted.values] == [(11, 7, 2)]
    with own_store(vae):
        assert draw_terms(vae, binary(7), num_particles=9).log_weight.shape == (9, 7)
