"""The store: typed results to files and back, joined along the examples."""

from dataclasses import dataclass

import pytest
import torch
from checks import assert_close
from torch import Tensor

from pyro_vae.base.statistics import Estimate
from pyro_vae.evaluation import store as chunks
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.store import ChunkStore, in_chunks, pack, unpack

X = torch.arange(14, dtype=torch.float64).reshape(7, 2)


@dataclass(frozen=True)
class Site:
    mean: Tensor
    from_: str


@dataclass(frozen=True)
class Found:
    """Every kind of field that a result has."""

    values: Tensor
    by_k: dict[int, Tensor]
    sites: dict[str, Site]
    site: Site
    accuracy: Estimate
    r_hat: Tensor | None
    absent: Tensor | None = None


def work(where, number=0):
    x = X[where]
    site = Site(x.sum(1), "sampled")
    return Found(x, {5: 2 * x, 50: 3 * x}, {"z": site}, site, Estimate(0.5, 0.1, 3), x[:, 0])


def assert_same(found, expected):
    for name in ("values", "r_hat"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.by_k.keys() == expected.by_k.keys()
    for k, values in expected.by_k.items():
        assert torch.equal(found.by_k[k], values)
    for site, other in ((found.site, expected.site), (found.sites["z"], expected.sites["z"])):
        assert torch.equal(site.mean, other.mean)
        assert site.from_ == other.from_
    assert found.accuracy == expected.accuracy
    assert found.absent is None


def test_a_result_comes_back_as_its_own_type(tmp_path):
    store = ChunkStore(tmp_path, "part", {})
    store.save(0, 7, pack(work(slice(None))))
    assert_same(unpack(Found, store.load(0, 7)), work(slice(None)))
    torch.load(next(tmp_path.rglob("*.pt")), weights_only=True)  # plain containers: no code of ours is run


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunks_are_joined_along_the_examples(chunk, tmp_path):
    ticks = []
    for _ in range(2):  # computed, then read
        found = in_chunks(ChunkStore(tmp_path, "part", {}), 7, chunk, work, Found, ticks.append)
        assert_same(found, work(slice(None)))
    assert ticks == 2 * [min(start + chunk, 7) for start in range(0, 7, chunk)]


def test_a_chunk_in_the_wrong_place_is_caught(monkeypatch):
    put = chunks._put
    monkeypatch.setattr(
        chunks, "_put", lambda joined, values, start, total: put(joined, values, max(0, start - 1), total)
    )
    with pytest.raises(AssertionError):
        assert_same(in_chunks(ChunkStore(None, "part", {}), 7, 3, work, Found), work(slice(None)))


def test_plain_values_are_the_same_in_every_chunk():
    def changing(where, number):
        return Site(X[where].sum(1), f"chunk {number}")

    with pytest.raises(AssertionError, match="from_"):
        in_chunks(ChunkStore(None, "part", {}), 7, 3, changing, Site)


def test_examples_are_kept_in_one_tensor():
    """Nothing of a finished chunk stays but its rows: memory is that of the joined result."""
    kept = []

    def recorded(where, number):
        found = work(where)
        kept.append(found.values.untyped_storage().data_ptr())
        return found

    found = in_chunks(ChunkStore(None, "part", {}), 7, 2, recorded, Found)
    assert found.values.untyped_storage().data_ptr() not in kept
    assert_close(found.values, X)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_names_a_type_that_the_store_can_keep(name):
    """A result is a frozen dataclass whose annotations are real types, which ``unpack`` reads."""
    kind = PARTS[name].result
    assert kind.__dataclass_params__.frozen
    chunks.get_type_hints(kind)
