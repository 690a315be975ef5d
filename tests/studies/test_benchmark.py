"""The benchmark: it compares equal maths, finds planted errors, and reports what it measured."""

import functools
import json
import math
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae.base.random import isolated_rng
from pyro_vae.cli.bench import written
from pyro_vae.cli.main import main
from pyro_vae.engines.select import Compiled
from pyro_vae.studies.benchmark import suite
from pyro_vae.studies.benchmark.agreement import MAX_DISTANCE, compare, run_reference, trajectory
from pyro_vae.studies.benchmark.floor import Products, work
from pyro_vae.studies.benchmark.goals import outcomes
from pyro_vae.studies.benchmark.handwritten import ByHand
from pyro_vae.studies.benchmark.memory import working_memory
from pyro_vae.studies.benchmark.numpyro_peer import InNumPyro, _Network
from pyro_vae.studies.benchmark.pyro_variants import OnCompiled, OnELBOModule, OnEngine, Stock, StockUnvalidated
from pyro_vae.studies.benchmark.records import BoundSpeed, Point, Report, Row, SizeReport, spread
from pyro_vae.studies.benchmark.sizes import SIZES, Size
from pyro_vae.studies.benchmark.suite import VARIANTS, Plan
from pyro_vae.studies.benchmark.variant import Unavailable, Variant

CPU = torch.device("cpu")
SMALL = {
    "elbo": Size(batch_size=16, latent_dim=3, hidden=(24,)),
    "iwae": Size(batch_size=16, num_particles=4, latent_dim=3, hidden=(24,), activation="tanh"),
    "conv": Size(batch_size=2, latent_dim=3, hidden=(16,), convolutional=True),
}


class Bench:
    """A small size with the trajectories of its reference, against which variants are judged."""

    def __init__(self, size, device=CPU):
        self.size, self.device = size, device
        self.x = size.images(size.batch_size, device)
        with isolated_rng(device, 0):
            start = self.make(ByHand, None)
            self.num_losses = 8 if size.convolutional else 24
            start.run(60, 1e-3)
            self.state = {name: p.clone() for name, p in start.vae.state_dict().items()}
            self.reference = run_reference(lambda: self.make(ByHand), self.num_losses)

    def make(self, kind, state="start"):
        vae = self.size.build(self.device)
        if state:
            vae.load_state_dict(self.state)
        return kind(self.size, vae, self.x)

    def judge(self, kind):
        variant = self.make(kind)
        with isolated_rng(self.device, 0):
            try:
                with variant.active():
                    return compare(trajectory(variant, self.num_losses), self.reference)
            finally:
                variant.close()


@functools.cache
def bench(name):
    return Bench(SMALL[name])


@pytest.fixture
def traced_only(monkeypatch):
    """Engine compiled without the compiler: the same graph, in milliseconds."""
    monkeypatch.setattr(OnCompiled, "value", Compiled(inductor=False))


# --- the same maths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", [Stock, StockUnvalidated, OnELBOModule, OnEngine, OnCompiled])
def test_variants_on_the_same_noise_follow_the_same_trajectory(kind, name, traced_only):
    found = bench(name).judge(kind)
    assert found.passed, str(found)
    assert found.same_noise
    assert found.distance < MAX_DISTANCE / 2


@pytest.mark.parametrize("kind", [Stock, OnELBOModule, OnEngine, OnCompiled, ByHand])
def test_variants_agree_on_the_device(kind, device, traced_only):
    subject = bench("iwae") if device.type == "cpu" else Bench(SMALL["iwae"], device)
    found = subject.judge(kind)
    assert found.passed, str(found)


def test_replicates_agree_with_one(traced_only):
    """Each replicate has its own noise; their mean loss is compared with one program's."""
    subject = bench("elbo")
    three = Bench.__new__(Bench)
    vars(three).update(vars(subject), size=replace(subject.size, replicates=3))
    found = three.judge(OnCompiled)
    assert found.passed, str(found)
    assert not found.same_noise
    assert (
        work(three.size, three.size.build(CPU), three.x)[0]
        == 3 * work(subject.size, subject.size.build(CPU), subject.x)[0]
    )


class OtherNoise(ByHand):
    """The same maths on other noise."""

    def seed(self, seed):
        super().seed(seed + 1000)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_other_noise_agrees_in_distribution(name):
    found = bench(name).judge(OtherNoise)
    assert found.passed, str(found)
    assert not found.same_noise
    assert found.distance is None


def planted(loss, parent=ByHand):
    """Return a variant with another loss: ``loss`` takes the variant, the correct loss and the noise."""

    class Planted(parent):
        def loss_given(self, noise):
            return loss(self, super().loss_given(noise), noise)

    return Planted


def only_gradient(term):
    return term - term.detach()


def log_scale(variant):
    return variant.encoder(variant.x).chunk(2, -1)[1]


PLANTED = {
    "a constant": ("elbo", planted(lambda v, loss, noise: loss + 0.01 * len(v.x))),
    "a constant, other noise": ("elbo", planted(lambda v, loss, noise: loss + 3 * len(v.x), OtherNoise)),
    "the entropy's gradient": ("elbo", planted(lambda v, loss, noise: loss + only_gradient(log_scale(v).sum()))),
    "a gradient of the wrong sign": (
        "elbo",
        planted(lambda v, loss, noise: loss.detach() - only_gradient(loss), OtherNoise),
    ),
    "no gradient": ("elbo", planted(lambda v, loss, noise: loss.detach() + 0 * loss)),
    "not a number": ("elbo", planted(lambda v, loss, noise: loss * math.nan)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_error_is_found(name):
    size, kind = PLANTED[name]
    assert not bench(size).judge(kind).passed


class MeanOfBounds(ByHand):
    """The value of the importance-weighted bound with the gradient of the ELBO."""

    def bound(self, log_w):
        return super().bound(log_w).detach() + only_gradient(log_w.mean(0))


class OtherRate(ByHand):
    def run(self, steps, learning_rate):
        return super().run(steps, 0.8 * learning_rate)


@pytest.mark.parametrize("kind", [MeanOfBounds, OtherRate])
def test_another_gradient_or_rate_is_found(kind):
    assert not bench("iwae").judge(kind).passed


# --- NumPyro ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_numpyro_agrees_in_distribution(name):
    pytest.importorskip("numpyro")
    found = bench(name).judge(InNumPyro)
    assert found.passed, str(found)
    assert not found.same_noise


def test_numpyro_runs_the_same_networks():
    pytest.importorskip("numpyro")
    import numpyro  # noqa: PLC0415

    vae = SMALL["conv"].build(CPU)
    x, z = SMALL["conv"].images(3, CPU), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    for name, given in (("encoder", x), ("decoder", z)):
        network = getattr(vae, name)
        with numpyro.handlers.seed(rng_seed=0):
            theirs = _Network(name, network).registered()(given.numpy())
        ours = network.layers(given).detach()
        torch.testing.assert_close(torch.tensor(theirs.tolist()), ours, rtol=1e-4, atol=1e-5)


def test_without_numpyro_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("pyro_vae.studies.benchmark.numpyro_peer.jax", None)
    with pytest.raises(Unavailable, match=r"not installed: pip install 'pyro-vae\[bench\]'"):
        bench("elbo").make(InNumPyro)


# --- the floor, memory, rounds ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "iwae-5", "conv"])
def test_operations_equal_torchs_count_for_a_step(name):
    size = replace(SIZES[name], batch_size=3)
    vae, x = size.build(CPU), size.images(3, CPU)
    variant = ByHand(size, vae, x)
    with FlopCounterMode(display=False) as counted, isolated_rng(CPU, 0):
        variant.loss_given(torch.randn(size.num_particles, 3, size.latent_dim)).backward()
    operations, moved = work(size, vae, x)
    assert operations == counted.get_total_flops()
    assert moved > 4 * sum(p.numel() for p in vae.parameters())


@pytest.mark.parametrize("name", ["elbo", "conv"])
def test_floor_runs_the_counted_products(name):
    size = SMALL[name]
    vae, x = size.build(CPU), size.images(size.batch_size, CPU)
    products = Products(size, vae, x)
    with FlopCounterMode(display=False) as counted:
        products.run(2, 0.0)
    assert counted.get_total_flops() == 2 * work(size, vae, x)[0]


def test_working_memory_is_what_a_step_allocates_and_frees():
    kept = []

    def step():
        a = torch.ones(1000, 1000)
        b = a + 1
        del a
        kept[:] = [b.sum()]

    assert 8.0e6 <= working_memory(step, CPU) < 8.1e6
    assert "KINETO_LOG_LEVEL" not in os.environ


class Counted(Variant):
    calls: list[str]

    def run(self, steps, learning_rate):
        self.calls.append((self.name, steps))
        return 0.0


def test_rounds_interleave_and_rotate():
    calls, variants = [], {}
    for name in "abc":
        variants[name] = Counted(SMALL["elbo"], None, None)
        variants[name].name, variants[name].calls = name, calls
    found = suite._rounds(variants, steps=7, rounds=4, progress=lambda done, total: None)
    timed = [name for name, steps in calls if steps == 7]
    assert "".join(timed) == "abcbcacababc"
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys("abc", 4)


# --- ratios, goals, text --------------------------------------------------------------------------


def made_up(device="cpu", scaling=(), evaluations=(), **seconds):
    rows = tuple(Row(key.replace("_", "-"), key, "measured", rounds=value) for key, value in seconds.items())
    size = SizeReport("mlp", "made up", 1e9, 1e6, 10, rows)
    return Report(device, (size,), tuple(scaling), tuple(evaluations), 1e12, 1e8)


def test_ratios_are_taken_round_by_round():
    slow_then_fast = made_up(stock=(8.0, 4.0, 2.0), compiled=(2.0, 1.0, 0.5))
    assert slow_then_fast.sizes[0].ratio("stock", "compiled") == spread([4.0, 4.0, 4.0])
    assert slow_then_fast.sizes[0].ratio("stock", "numpyro") is None


def test_compiling_amortises_after():
    svi = Row("svi", "", "measured", rounds=(0.003,), first_step=1.0)
    assert Row("compiled", "", "measured", rounds=(0.001,), first_step=21.0).amortises_after(svi) == pytest.approx(
        10_000
    )
    assert Row("compiled", "", "measured", rounds=(0.004,), first_step=21.0).amortises_after(svi) == math.inf
    assert Row("compiled", "", "absent").amortises_after(svi) is None


def test_roofline_is_the_larger_of_the_two():
    report = made_up(stock=(1.0,))
    assert report.roofline(report.sizes[0]) == pytest.approx(0.01)  # bytes, not operations


def test_every_goal_has_a_figure_or_a_reason():
    report = made_up(stock=(4.0,), compiled=(1.0,), hand_compiled=(1.0,), floor=(0.5,))
    found = {outcome.goal: outcome for outcome in outcomes(report)}
    assert len(found) == 8
    assert [o.met for o in found.values()] == [True, None, False, False, None, None, None, None]
    assert found["engine compiled against stock Pyro"].figure.median == 4.0
    assert found["engine compiled against NumPyro"].reason == "numpyro: not requested"
    assert [o.reason for o in found.values()][4:] == ["no GPU here"] * 4
    assert all((outcome.figure is None) == bool(outcome.reason) for outcome in found.values())


def test_goals_on_a_gpu():
    ones = {k: made_up("cuda", compiled=(s,)).sizes[0] for k, s in ((1, 0.5), (16, 2.0))}
    scaling = [Point("replicates", count, size) for count, size in ones.items()]
    evaluations = [BoundSpeed("svi", 10_000, 5000, (9.0,)), BoundSpeed("svi", 20, 5000, (0.1,))]
    report = made_up("cuda", scaling, evaluations, stock=(100.0,), compiled=(1.0,), numpyro=(2.0,))
    assert [o.met for o in outcomes(report)] == [None] * 4 + [True, True, False, True]
    assert {o.reason for o in outcomes(report)[:4]} == {"measured on the CPU only"}
    assert [o.reason for o in outcomes(made_up("cuda", stock=(1.0,)))][-2:] == [
        "replicates were not measured",
        "L_5000 of 10,000 images was not measured",
    ]


def test_figures_are_written_to_three_digits():
    assert written(spread([123.4, 123.4])) == "123 (123–123)"
    assert written(spread([0.00123, 0.00123])) == "0.0012 (0.0012–0.0012)"


# --- the command --------------------------------------------------------------------------------------------


def test_progress_is_reported_before_first_steps_rounds_and_bounds():
    reported = []
    plan = Plan(
        CPU, ["mlp"], ["svi", "floor"], rounds=2, seconds=0.01, num_losses=6, num_images=2, num_particles=10,
    )  # fmt: skip
    report = suite.benchmark(plan, lambda *call: reported.append(call))
    assert reported == [
        ("mlp: the reference", 0, 1),
        ("mlp: first step of svi", 0, 2),
        ("mlp: first step of floor", 1, 2),
        *(("mlp: rounds", done, 2) for done in range(2)),
        *(("L_10 of 2 images, svi: rounds", done, 3) for done in range(3)),
    ]
    assert [row.status for row in report.sizes[0].rows] == ["measured", "measured"]
    (found,) = report.evaluations
    assert (found.variant, found.num_images, found.num_particles, len(found.rounds)) == ("svi", 2, 10, 3)


def test_variants_that_disagree_or_fail_are_not_timed(monkeypatch, tmp_path, capsys):
    class Fails(ByHand):
        def run(self, steps, learning_rate):
            raise RuntimeError("no compiler\nand a long story")

    wrong = PLANTED["a constant"][1]
    monkeypatch.setitem(suite.VARIANTS, "stock", ("planted", wrong))
    monkeypatch.setitem(suite.VARIANTS, "elbo-module", ("failing", Fails))
    argv = ["bench", "--quick", "--device", "cpu", "--scaling", "false", "--rounds", "2"]
    assert main([*argv, "--variants", "stock,elbo-module,hand", "--json", str(tmp_path / "b.json")]) == 1
    printed = capsys.readouterr().out
    assert "disagrees: stock" in printed
    assert "failed: elbo-module: RuntimeError: no compiler\n" in printed
    rows = json.loads((tmp_path / "b.json").read_text())["sizes"][0]["rows"]
    assert [(row["status"], bool(row["rounds"])) for row in rows] == [
        ("disagrees", False), ("failed", False), ("measured", True),
    ]  # fmt: skip


def test_command_reports_every_figure(tmp_path, capsys):
    files = tmp_path / "b.json", tmp_path / "b.png"
    threads = torch.get_num_threads()
    argv = ["bench", "--quick", "--device", "cpu", "--threads", "1", "--json", str(files[0]), "--figure", str(files[1])]
    assert main(argv) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    for word in ("engine svi", "by hand in PyTorch", "× the floor", "images/s", "goals", "no GPU here", "1 threads"):
        assert word in printed
    record = json.loads(files[0].read_text())
    keys = ["command", "options", "machine", "memory", "sizes", "scaling", "evaluation", "device", "goals"]
    assert list(record) == keys
    assert record["machine"]["threads"] == 1
    assert record["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    (size,) = record["sizes"]
    assert size["operations"] == 419_840_000
    assert [row["variant"] for row in size["rows"]] == [
        "stock", "stock-unvalidated", "elbo-module", "svi", "hand", "floor",
    ]  # fmt: skip
    for row in size["rows"]:
        assert row["status"] == "measured"
        assert len(row["rounds"]) == 3
        assert row["agrees"] is (None if row["variant"] == "floor" else True)
        assert row["seconds"]["lower"] <= row["seconds"]["median"] <= row["seconds"]["upper"]
        assert row["memory"] > 0 or row["variant"] == "floor"
    assert [(point["axis"], point["value"]) for point in record["scaling"]] == [("batch", 8), ("batch", 32)]
    assert record["evaluation"][0]["num_particles"] == 50
    assert len(record["goals"]) == 8
    assert all(goal["figure"] is None for goal in record["goals"])
    with Image.open(files[1]) as picture:
        assert min(picture.size) > 300


BAD = {
    "--sizes mpl": "Try 'mlp'",
    "--variants stok": "Try 'stock'",
    "--rounds 1": "rounds of at least 2; got 1",
    "--threads 0": "threads of at least 1; got 0",
}


@pytest.mark.parametrize("options", BAD)
def test_command_rejects_bad_options(options, capsys):
    assert main(["bench", "--quick", "--device", "cpu", *options.split()]) == 2
    error = capsys.readouterr().err
    assert BAD[options] in error
    assert error.count("\n") == 1


def test_every_size_and_variant_has_a_title():
    assert SIZES["mlp"].title == "784-400-20, batch 128"
    assert SIZES["iwae-50"].title == "784-200-200-50, batch 20, K = 50"
    assert len({title for title, _ in VARIANTS.values()}) == len(VARIANTS) == 9
