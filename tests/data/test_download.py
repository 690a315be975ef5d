"""MNIST files that are complete, unpacked, missing, damaged or partly downloaded; no test uses the network."""

import gc
import gzip
import shutil
from pathlib import Path

import data_servers
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from pyro_vae.base.errors import InputError
from pyro_vae.data import load

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
RAW = SHARED / "mnist" / "MNIST" / "raw"
FILES = [name for name, _ in MNIST.resources]

pytestmark = pytest.mark.skipif(not RAW.is_dir(), reason=f"no MNIST files in {RAW}")


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """Let no test reach a real mirror, directly or through a proxy."""
    monkeypatch.setenv("no_proxy", "*")
    for kind in (MNIST, FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [data_servers.closed_port()])
    yield
    gc.collect()  # torchvision leaves the sockets of refused requests to the collector: here, not in a later test


def served(monkeypatch, *addresses):
    monkeypatch.setattr(MNIST, "mirrors", list(addresses))


def files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("layout", ["mnist/MNIST/raw", "MNIST/raw"])
def test_archives_are_read_where_they_lie_and_nothing_is_written(layout, tmp_path):
    folder = tmp_path / layout
    folder.parent.mkdir(parents=True)
    shutil.copytree(RAW, folder)
    data = load("mnist", tmp_path, download=False)
    assert files_under(tmp_path) == sorted(FILES)
    assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
    assert str(folder) in data.source


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name[:-3]).write_bytes(gzip.decompress((RAW / name).read_bytes()))
    return folder.parents[1]


def test_unpacked_files_give_what_torchvision_reads(unpacked):
    data, theirs = load("mnist", unpacked, download=False), MNIST(unpacked, train=False)
    assert torch.equal(data.test.pixels, theirs.data)
    assert torch.equal(data.test.labels, theirs.targets)


def test_train_and_validation_are_the_published_training_set(unpacked):
    data, theirs = load("mnist", unpacked, seed=1), MNIST(unpacked)
    both = torch.cat([data.train.pixels, data.validation.pixels]).flatten(1).double()
    weights = torch.rand(784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, published = both @ weights, theirs.data.flatten(1).double() @ weights  # one number an image
    torch.testing.assert_close(ours.sort().values, published.sort().values, rtol=1e-12, atol=0)
    assert data.describe()["split"] == "validation by seed 1, the rest as published"


def test_download_by_torchvision_from_a_mirror(tmp_path, monkeypatch):
    with data_servers.serving(RAW) as address:
        served(monkeypatch, data_servers.closed_port(), address)  # the second mirror is tried after the first
        data = load("mnist", tmp_path)
    assert files_under(tmp_path) == sorted(FILES)
    assert torch.equal(data.test.pixels, load("mnist", SHARED, download=False).test.pixels)
    load("mnist", tmp_path, download=False)


ANSWERS = [getattr(data_servers, a) for a in ("corrupted", "truncated", "hung_up", "missing", "only_first")]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_a_failed_download_says_so_and_leaves_nothing(answer, tmp_path, monkeypatch):
    with data_servers.serving(RAW, answer) as address:
        served(monkeypatch, address)
        match = rf"got no such files in {tmp_path}/mnist/.*the download failed \(.*\. Try again"
        with pytest.raises(InputError, match=match):
            load("mnist", tmp_path)
    assert files_under(tmp_path) == []
    assert not list(tmp_path.glob("mnist/.download-*"))


def test_a_good_server_after_a_bad_one(tmp_path, monkeypatch):
    with data_servers.serving(RAW, data_servers.truncated) as address:
        served(monkeypatch, address)
        with pytest.raises(InputError, match="download failed"):
            load("mnist", tmp_path)
    with data_servers.serving(RAW) as address:
        served(monkeypatch, address)
        assert len(load("mnist", tmp_path).test) == 10000


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_no_network_and_no_files(name, tmp_path):
    match = rf"Expected train-images.*; got no such files in {tmp_path}/{name}/.*Connection refused.*Try again"
    with pytest.raises(InputError, match=match) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_download_can_be_forbidden(tmp_path):
    with pytest.raises(InputError, match=rf"no such files in {tmp_path}.*Try download=True, or the four files"):
        load("mnist", tmp_path, download=False)
    assert files_under(tmp_path) == []


def test_without_a_root_the_folder_is_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"no such files in {tmp_path}/data/mnist/MNIST/raw"):
        load("mnist", download=False)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "mnist").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"the download failed \((FileExists|NotADirectory)Error"):
        load("mnist", tmp_path)


def with_one_file(folder, name, content):
    """Make an MNIST folder with one file replaced; the others are links to the real ones."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        (raw / file).symlink_to(RAW / file)
    (raw / name).unlink(missing_ok=True)
    (raw / name).write_bytes(content)
    if not name.endswith(".gz"):
        (raw / f"{name}.gz").unlink()


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
DAMAGED = {
    "empty archive": (f"{LABELS}.gz", b"", r"md5 ec29112d\w+ of .*t10k-labels.*; got md5 d41d8cd9\w+, a damaged"),
    "web page": (f"{IMAGES}.gz", b"<html>", r"md5 9fb629c4\w+ of .*damaged file\. Try deleting that file"),
    "short": (LABELS, b"\0\0\x08\x01\0\0\x27\x10" + bytes(9999), r"10008 bytes .*; got 10007 bytes that begin"),
    "not IDX": (LABELS, bytes(10008), r"10008 bytes of uint8 \(10000,\) in IDX form.*begin with 0000000000"),
    "empty": (LABELS, b"", r"got 0 bytes"),
}


@pytest.mark.parametrize(("name", "content", "match"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(name, content, match, tmp_path):
    with_one_file(tmp_path, name, content)
    with pytest.raises(InputError, match=match):
        load("mnist", tmp_path)
