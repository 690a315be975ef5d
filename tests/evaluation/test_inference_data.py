"""ArviZ files: names, dimensions and numbers survive the round trip, and are those of the program."""

import json
import math
import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from pyro_vae import VAE, Images, InputError
from pyro_vae.cli.main import main
from pyro_vae.evaluation.inference_data import Sizes, save_netcdf, to_inference_data
from pyro_vae.evaluation.methods.arviz import ARVIZ_1, imported
from pyro_vae.evaluation.methods.psis import pareto_k
from pyro_vae.models.oracles.discrete import DiscreteLatents
from pyro_vae.models.oracles.linear_gaussian import LinearGaussian
from pyro_vae.program.contexts import own_store
from pyro_vae.program.joint import Joint

SIZES = Sizes(num_examples=12, num_draws=60, num_predictive=7)
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "arviz_plots.py"


def oracle():
    weight = torch.tensor([[1.0, 0.8], [0.2, 0.9], [-0.4, 0.3]], dtype=torch.float64)
    return LinearGaussian.of(weight, torch.zeros(3), 0.6)


def round_trip(path, *args, **kwargs):
    save_netcdf(path, to_inference_data(*args, device="cpu", **kwargs))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return imported("arviz").from_netcdf(path)


def array(dataset, name):
    return torch.from_numpy(np.array(dataset[name]))


def test_numbers_in_the_file_are_the_programs(tmp_path):
    program = oracle()
    x = program.simulate(30)
    file = round_trip(tmp_path / "a.nc", program, x, sizes=SIZES, about={"data": "a toy"})
    observed, z = array(file.observed_data, "x"), array(file.posterior, "z")[0]
    index = torch.from_numpy(np.array(file.posterior["example"]))
    torch.testing.assert_close(observed, x[index], rtol=0, atol=0)
    with own_store(program), torch.no_grad():
        joint = Joint(program, observed)
        terms, log_q = joint.at({"z": z}), joint.log_q({"z": z})
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(array(file.log_likelihood, "x")[0], terms.log_px_z, **exact)
    log_weight = array(file.sample_stats, "log_weight")[0]
    torch.testing.assert_close(log_weight, terms.log_px_z + terms.log_pz - log_q, **exact)
    torch.testing.assert_close(array(file.sample_stats, "k_hat"), pareto_k(log_weight), **exact)
    assert file.attrs["data"] == "a toy"
    assert file.attrs["pixels"] == "as they are, not binarized"


def test_predictive_samples_belong_to_the_draws_of_the_same_number(tmp_path):
    """With hardly any noise x is W z + μ: each predictive draw is next to the mean at the latent of its number."""
    weight = torch.tensor([[1.0, 0.8], [0.2, 0.9], [-0.4, 0.3]], dtype=torch.float64)
    program = LinearGaussian.of(weight, torch.ones(3), 1e-6)
    file = round_trip(tmp_path / "a.nc", program, program.simulate(30), sizes=SIZES)
    for latents, predicted in ((file.posterior, file.posterior_predictive), (file.prior, file.prior_predictive)):
        z, x = array(latents, "z")[0, :7], array(predicted, "x")[0]
        torch.testing.assert_close(x, z @ weight.mT + 1, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["vae", "discrete"])
def test_groups_and_dimensions(kind, tmp_path):
    if kind == "vae":
        grey = torch.randint(0, 256, (30, 4, 5), dtype=torch.uint8)
        data = Images(grey, labels=torch.arange(30) % 3, binarize="dynamic")
        program, latents, event = VAE((4, 5), latent_dim=2), {"z": {"z_dim": 2}}, {"x_dim_0": 4, "x_dim_1": 5}
    else:
        program = DiscreteLatents(5, bits=2, classes=3)
        data, event = program.simulate(30), {"x_dim": 5}
        latents = {"bits": {"bits_dim": 2}, "kind": {}}
    file = round_trip(tmp_path / "a.nc", program, data, sizes=SIZES)
    many, few = {"chain": 1, "draw": 60}, {"chain": 1, "draw": 7}
    for site, dims in latents.items():
        assert dict(file.posterior[site].sizes) == {**many, "example": 12, **dims}
        assert dict(file.prior[site].sizes) == {**many, **dims}
    assert dict(file.posterior_predictive["x"].sizes) == {**few, "example": 12, **event}
    assert dict(file.prior_predictive["x"].sizes) == {**few, **event}
    assert dict(file.observed_data["x"].sizes) == {"example": 12, **event}
    for group, name in ((file.log_likelihood, "x"), (file.sample_stats, "log_weight")):
        assert dict(group[name].sizes) == {**many, "example": 12}
    assert dict(file.sample_stats["k_hat"].sizes) == {"example": 12}
    if kind == "vae":
        assert file.attrs["pixels"] == "binarized by one draw (seed 0)"
        example = np.asarray(file.posterior["example"])
        assert (np.asarray(file.constant_data["label"]) == example % 3).all()
        assert set(np.unique(np.asarray(file.observed_data["x"]))) <= {0.0, 1.0}


def test_weights_of_the_file_give_log_p(tmp_path):
    """The mean weight is p(x), without bias: the ratio to the truth has mean 1 over examples."""
    program = oracle()
    file = round_trip(tmp_path / "a.nc", program, program.simulate(500), sizes=Sizes(500, 100, 1))
    x, log_weight = array(file.observed_data, "x"), array(file.sample_stats, "log_weight")[0]
    with torch.no_grad():
        ratio = (log_weight.logsumexp(0) - math.log(100) - program.log_evidence(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 500**0.5


def test_same_seed_same_file(tmp_path):
    files = [
        round_trip(tmp_path / name / "a.nc", oracle(), oracle().simulate(30), sizes=SIZES, seed=seed)
        for name, seed in (("one", 1), ("again", 1), ("two", 2))
    ]
    one, again, two = (array(file.posterior, "z") for file in files)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_examples": 1}, "num_examples of at least 2; got 1"),
        ({"num_draws": 10}, "num_draws of at least 30"),
        ({"num_predictive": 0}, "num_predictive of at least 1"),
        ({"num_draws": 30, "num_predictive": 31}, "num_predictive of at most 30; got 31"),
    ],
)
def test_bad_sizes(sizes, message):
    with pytest.raises(InputError, match=message):
        Sizes(**sizes)


def test_a_file_that_cannot_be_written(tmp_path):
    found = to_inference_data(oracle(), oracle().simulate(30), sizes=SIZES, device="cpu")
    (tmp_path / "folder").write_text("")
    with pytest.raises(InputError, match="a file that can be written"):
        save_netcdf(tmp_path / "folder" / "a.nc", found)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.fixture(scope="module")
def file_of_command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("netcdf")
    options = ["--latent_dim", "2", "--hidden", "[7]", "--device", "cpu", "--epochs", "1"]
    assert main(["train", "--data", "digits", *options, "--out", str(folder / "run")]) == 0
    quick = ["--only", "bounds", "--num-examples", "20", "--device", "cpu"]
    assert main(["evaluate", str(folder / "run"), *quick, "--netcdf", str(folder / "draws.nc")]) == 0
    return folder / "draws.nc"


def test_command_writes_a_file_that_arviz_opens(file_of_command):
    file = imported("arviz").from_netcdf(file_of_command)
    assert dict(file.posterior["z"].sizes) == {"chain": 1, "draw": 1000, "example": 100, "z_dim": 2}
    assert file.attrs["data"] == "digits, test: 179 images of 8x8"
    assert json.loads(file.attrs["fingerprint"])["seed"] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_plots_of_the_example_are_drawn(file_of_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), str(file_of_command)])
    matplotlib.use("agg")
    with matplotlib.rc_context():
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    names = {"posterior.png", "pair.png", "k_hat.png"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert all(file.stat().st_size > 5000 for file in tmp_path.iterdir())


def test_arviz_is_known_by_its_version():
    assert (int(imported("arviz").__version__.partition(".")[0]) >= 1) == ARVIZ_1
