"""Settings: one list of names and defaults, which fit, RunConfig and the command line share."""

import inspect
from dataclasses import MISSING, fields

import pytest

from pyro_vae import InputError, fit
from pyro_vae.training.config import RunConfig
from pyro_vae.training.settings import Settings

OF_FIT = {"program", "train", "validation", "device", "hooks", "resume"}  # what is no setting


def defaults(cls):
    return {field.name: field.default for field in fields(cls)}


def disagreements(parameters, settings):
    """Names and defaults in which a signature and the settings differ."""
    ours = {name: p.default for name, p in parameters.items() if name not in OF_FIT}
    return {name for name in ours.keys() | settings.keys() if ours.get(name, MISSING) != settings.get(name, MISSING)}


def test_fit_has_the_names_and_defaults_of_settings():
    parameters = inspect.signature(fit).parameters
    assert disagreements(parameters, defaults(Settings)) == set()
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in ("program", "train"))
    assert all(p.annotation is not p.empty for p in parameters.values())


@pytest.mark.parametrize("wrong", [{"epochs": 10}, {"epoch": 20}])
def test_a_differing_default_or_name_is_found(wrong):
    settings = {**defaults(Settings), **wrong}
    assert disagreements(inspect.signature(fit).parameters, settings) == set(wrong)


def test_fit_has_the_types_of_settings():
    parameters = inspect.signature(fit).parameters
    assert {field.name: parameters[field.name].annotation for field in fields(Settings)} == {
        field.name: field.type for field in fields(Settings)
    }


def test_a_run_has_the_defaults_of_settings():
    run = defaults(RunConfig)
    assert {name: run[name] for name in defaults(Settings)} == defaults(Settings)
    assert RunConfig(epochs=3).settings() == {**defaults(Settings), "epochs": 3}


def test_a_run_validates_its_settings():
    with pytest.raises(InputError, match=r"batch_size as a whole number of at least 1; got 0\. Try batch_size=1"):
        RunConfig(batch_size=0)
    with pytest.raises(InputError, match=r"replicates of at least 1; got 0\. Try replicates=1"):
        RunConfig(replicates=0)
