"""What fit returns: a short table for people, a data frame for programs."""

from dataclasses import fields

import pytest
import torch

from pyro_vae import VAE, fit
from pyro_vae.training.loop import EpochRecord
from pyro_vae.training.result import FitResult


def record(epoch, bound=None, improved=False):
    error = None if bound is None else 0.25
    return EpochRecord(epoch, 4 * epoch, -3.0, 1.0, 1e-3, 0.1, bound, error, improved)


@pytest.fixture(scope="module")
def result():
    x = torch.bernoulli(torch.full((40, 6), 0.3), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((6,), 2, (8,))
    settings = {"epochs": 9, "max_steps": 7, "batch_size": 10, "device": "cpu"}
    return fit(vae, x[:30], validation=x[30:], **settings)


def test_a_data_frame_has_a_row_per_epoch_and_a_column_per_figure(result):
    frame = result.to_dataframe()
    assert list(frame.columns) == [field.name for field in fields(EpochRecord)]
    assert list(frame["epoch"]) == [1, 2]
    assert list(frame["bound"]) == [each.bound for each in result.history]


def test_a_result_without_an_epoch_has_an_empty_data_frame():
    frame = FitResult(None, [], "max_steps=1", {}).to_dataframe()
    assert frame.empty
    assert "objective" in frame.columns


def test_a_result_prints_as_a_short_table(result):
    lines = repr(result).splitlines()
    assert lines[0] == "2 epochs and 1 step of the next; stopped: max_steps=7"
    assert lines[1].split() == ["epoch", "step", "objective", "held-out", "bound", "KL", "weight"]
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "3"], ["2", "6"]]
    assert "±" in lines[2]
    assert lines[-1] == "* best held-out bound"


def test_the_best_epoch_is_marked_and_no_other():
    history = [record(1, -9.0, True), record(2, -8.0, True), record(3, -8.5)]
    lines = repr(FitResult(None, history, "", {})).splitlines()
    assert ["*" in line for line in lines] == [False, False, False, True, False, True]


def test_a_long_history_is_cut_and_says_so():
    text = repr(FitResult(None, [record(epoch) for epoch in range(1, 201)], "", {}))
    assert len(text.splitlines()) < 15
    assert text.startswith("200 epochs\n")
    assert "the first 190 epochs are not shown" in text
    assert "–" in text, "without validation there is no bound"


def test_a_result_without_an_epoch_prints_a_line():
    assert repr(FitResult(None, [], "max_steps=1", {})) == "0 epochs; stopped: max_steps=1"


def test_html_holds_the_same_figures(result):
    html = result._repr_html_()
    for word in (
        "2 epochs and 1 step of the next; stopped: max_steps=7",
        "<table",
        "held-out bound",
        "±",
        "best held-out bound",
    ):
        assert word in html
