"""JSON files: numbers that are not finite become null."""

import json
import math

from pyro_vae.base.files import finite, write_json


def test_json_knows_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": None}}
    assert finite("nan") == "nan"
