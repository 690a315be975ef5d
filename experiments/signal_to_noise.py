"""Does the signal-to-noise ratio of the encoder's gradient fall as particles are added, and for which estimators?

Three published claims, on MNIST, dynamic binarization:

1. IWAE: the signal-to-noise ratio of the encoder's gradient falls as 1/√K, DReG's does not (Rainforth et al., arXiv
   1802.04537; Tucker et al., arXiv 1810.04152);
2. the decoder's rises with K (Rainforth et al.: as √K);
3. the variance of STL's encoder gradient falls below the plain ELBO's as training goes on (Roeder et al., arXiv
   1703.09194).

The first two hold for K → ∞, with weights of finite variance and more particles than it takes to average them. So
there are two settings:

* ``tame``: 784-200-2, untrained, batches of 10: ESS/K levels off as K grows, as the theory assumes;
* ``iwae``: the IWAE paper's 784-200-200-50 (tanh, batches of 20) untrained, after 1000 and after 10,000 steps: with
  fifty latent dimensions few of 64 particles count.

Commands::

    python experiments/signal_to_noise.py --setting tame --data-root data
    python experiments/signal_to_noise.py --setting iwae --data-root data

They take about five and fifteen minutes on two cores. Expected in ``tame``: a slope of log SNR against
log K of about −1/2 for IWAE's φ, not below 0 for DReG's φ, about 1/2 for both θs; in ``iwae``: the same signs, flatter;
STL's variance below the ELBO's.

Writes ``signal_to_noise_SETTING.json`` (every figure of the comparison, and the claims with their standard errors) and
``signal_to_noise_SETTING.png`` to ``--results``.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TypedDict

from pyro_vae.base.files import write_json
from pyro_vae.cli.main import main as pyro_vae

PARTICLES = (1, 4, 16, 64)
ESTIMATORS = ["trace_elbo", "stl", *(f"{name}:num_particles={k}" for name in ("iwae", "dreg") for k in PARTICLES)]


SETTINGS: dict[str, dict[str, object]] = {
    "tame": {"hidden": "[200]", "latent_dim": 2, "batch_size": 100, "batch": 10, "at": "[0]", "draws": 1000},
    "iwae": {"hidden": "[200, 200]", "latent_dim": 50, "batch_size": 20, "at": "[0, 1000, 10000]", "draws": 300},
}


class Figure(TypedDict):
    """A value and its standard error, as the comparison writes them."""

    value: float
    standard_error: float


class Gradient(TypedDict):
    """The figures of one group of parameters that the claims need."""

    group: str
    snr: Figure
    variance: Figure


class Report(TypedDict):
    """The figures of one estimator that the claims need."""

    estimator: str
    particles: int
    gradients: list[Gradient]


def main() -> int:
    """Compare, then compute the three claims from the figures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="tame")
    parser.add_argument("--data-root", default="data", help="where MNIST is, or is downloaded to")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", default="docs/results")
    options = parser.parse_args()
    file = Path(options.results) / f"signal_to_noise_{options.setting}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    setting = SETTINGS[options.setting]
    named = {
        **setting,
        "data": "mnist",
        "data_root": options.data_root,
        "device": options.device,
        "activation": "tanh",
        "estimators": ",".join(ESTIMATORS),
        "reference_draws": 2 * int(str(setting["draws"])),
        "json": file,
        "figure": file.with_suffix(".png"),
    }
    status = pyro_vae(["compare", *(word for name, value in named.items() for word in (f"--{name}", str(value)))])
    if status == 0:
        record = json.loads(file.read_text())
        record["command"] = f"python experiments/signal_to_noise.py --setting {options.setting}"
        record["claims"] = claims(record["points"])
        write_json(file, record)
        print(json.dumps(record["claims"], indent=2))
    return status


def claims(points: dict[str, list[Report]]) -> dict[str, dict[str, Figure]]:
    """Return, for each point of training, slopes of log SNR against log K, and STL's variance over the ELBO's."""
    return {
        step: {
            **{
                f"slope of {name}, {group}": slope(reports, name, group)
                for name in ("iwae", "dreg")
                for group in ("theta", "phi")
            },
            "variance of stl over trace_elbo, phi": relative_variance(reports),
        }
        for step, reports in points.items()
    }


def slope(reports: list[Report], name: str, group: str) -> Figure:
    """Return the least-squares slope of log SNR against log K, weighted by the figures' errors, and its error."""
    rows = [
        (math.log(report["particles"]), found["snr"]["value"], found["snr"]["standard_error"])
        for report in reports
        for found in report["gradients"]
        if report["estimator"].startswith(f"{name}:") and found["group"] == group
    ]
    weights = [(value / error) ** 2 for _, value, error in rows]  # error of log SNR is error / SNR
    total = sum(weights)
    centre = sum(w * x for w, (x, _, _) in zip(weights, rows, strict=True)) / total
    spread = sum(w * (x - centre) ** 2 for w, (x, _, _) in zip(weights, rows, strict=True))
    found = sum(w * (x - centre) * math.log(value) for w, (x, value, _) in zip(weights, rows, strict=True)) / spread
    return {"value": found, "standard_error": 1 / math.sqrt(spread)}


def relative_variance(reports: list[Report]) -> Figure:
    """Return the total variance of STL's φ-gradient over the ELBO's, and its error."""
    stl, plain = (variance(reports, name) for name in ("stl", "trace_elbo"))
    found = stl["value"] / plain["value"]
    relative = math.hypot(*(figure["standard_error"] / figure["value"] for figure in (stl, plain)))
    return {"value": found, "standard_error": found * relative}


def variance(reports: list[Report], name: str) -> Figure:
    """Return the total variance of φ's gradient, a figure with its standard error."""
    (report,) = (report for report in reports if report["estimator"] == name)
    return next(found["variance"] for found in report["gradients"] if found["group"] == "phi")


if __name__ == "__main__":
    sys.exit(main())
