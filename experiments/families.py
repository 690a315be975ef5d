"""What are priors, posteriors and networks worth in held-out log p(x), and which likelihood describes grey pixels best?

Two settings, on MNIST and Fashion-MNIST, each row over several seeds:

- ``binary``: dynamic binarization, Bernoulli likelihood; a baseline VAE, and one part of it replaced at a time.
- ``grey``: likelihoods of grey levels, in bits per dimension. A mass function is of the 256 levels l. A density is of
  dequantized pixels, x = (l + u) / 256 with u uniform in [0, 1), drawn once: −log2 p(x)/D + 8 is then, averaged over u,
  an upper bound on −log2 P(l)/D (Theis, van den Oord and Bethge, arXiv 1511.01844, section 3.1), so that all rows are
  in one unit.

Command::

    python experiments/families.py binary --data-root data
    python experiments/families.py grey --data-root data

Each row is one call of ``pyro-vae train`` and one of ``pyro-vae evaluate``; rows that are done are not run again. Log
p(x) is L_5000, beside it the share of examples whose k-hat is above 0.7 and, for these, log p(x) by local flows. The
JSON holds the budget (epochs, seeds, examples) and the time.

Expected: richer parts gain little over a well-chosen encoder at a small budget; Tomczak and Welling (arXiv 1705.07120,
Table 1) report for MNIST −84.75 nats with the standard normal prior and −82.59 with the VampPrior, for two 300-unit
layers and long training.

Out: ``families_binary.json`` and ``families_grey.json`` in ``--results``, and the table in Markdown on the screen.
"""

import argparse
import json
import math
import platform
import re
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pyro_vae import load
from pyro_vae.base.files import write_json
from pyro_vae.base.version import installed_versions
from pyro_vae.cli.main import main as pyro_vae

LATENT_DIM, HIDDEN = 20, "[300, 300]"
CONV = ["--encoder", "conv:channels=[8,16]", "--decoder", "conv:channels=[8,16]"]
BINARY = {
    "baseline": [],
    "full covariance": ["--posterior", "full_normal"],
    "IAF": ["--posterior", "iaf"],
    "VampPrior": ["--prior", "vamp:components=500"],
    "mixture prior": ["--prior", "mixture:components=100"],
    "flow prior": ["--prior", "autoregressive_flow"],
    "two-layer hierarchy": ["--model", "hierarchical", "--model_args", "{latent_dims: [40, 20]}"],
    "convolutional": CONV,
    "convolutional, VampPrior, IAF": [*CONV, "--prior", "vamp:components=20", "--posterior", "iaf"],
}
GREY = {
    "continuous Bernoulli": "continuous_bernoulli",
    "Gaussian, σ = 0.1": "gaussian:scale=0.1",
    "Gaussian, one learned σ": "shared_gaussian",
    "Gaussian, optimal σ": "optimal_gaussian",
    "Gaussian, σ per pixel": "learned_gaussian",
    "Laplace, one learned scale": "shared_laplace",
    "categorical, 256 levels": "categorical",
    "discretized logistic mixture": "discretized_logistic_mixture",
}
MASS = {"categorical", "discretized_logistic_mixture"}
NATS = {
    "elbo": "ELBO",
    "log_evidence_all": "log p(x), L_5000",
    "k_hat_0.7": "k-hat > 0.7",
    "local_evidence_all": "log p(x), local flows",
}
BITS = {
    "elbo_bits": "ELBO, bits per dim",
    "log_evidence_bits": "L_5000, bits per dim",
    "k_hat_0.7": "k-hat > 0.7",
}
KEPT = [*(NATS | BITS), "local_evidence_paired", "log_evidence"]


def main() -> int:
    """Train and evaluate every row of a setting; write and print the table."""
    options = parse_options()
    rows: dict[str, str | list[str]] = {**BINARY} if options.setting == "binary" else {**GREY}
    if options.rows is not None:
        rows = {name: rows[name] for name in options.rows.split(";")}
    found: list[dict[str, object]] = []
    for data in options.data.split(","):
        for name, part in rows.items():
            for seed in range(options.seeds):
                found.append({"data": data, "row": name, **one(options, data, name, part, seed)})
                write_json(Path(options.results) / f"families_{options.setting}.json", record(options, found))
    print_table(options, found)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=["binary", "grey"])
    parser.add_argument("--data", default="mnist,fashion-mnist")
    parser.add_argument("--data-root", default="data", help="where the data are, or are downloaded to")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=200, help="test images for L_5000")
    parser.add_argument("--gap-examples", type=int, default=50, help="test images for local flows")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rows", help="only these rows, separated by semicolons; all by default")
    parser.add_argument("--out", default="runs/experiments/families")
    parser.add_argument("--results", default="docs/results")
    return parser.parse_args()


def one(options: argparse.Namespace, data: str, name: str, part: str | list[str], seed: int) -> dict[str, object]:
    """Train and evaluate one row with one seed, unless that was done; return its figures."""
    folder = Path(options.out) / data / re.sub(r"\W+", "_", name) / str(seed)
    result = folder / "figures.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    words = training(options, data, part, seed)
    started = time.perf_counter()
    run("train", *words, "--out", str(folder), "--overwrite")
    trained = time.perf_counter()
    card = folder / "card.json"
    sizes = ["--importance_examples", str(options.examples), "--gap_examples", str(options.gap_examples)]
    run("evaluate", str(folder), "--only", "bounds,importance,gaps", *sizes, "--json", str(card))
    entries = {entry["name"]: entry for entry in json.loads(card.read_text())["figures"]}
    figures = {
        "seed": seed,
        "command": " ".join(["pyro-vae", "train", *map(shlex.quote, words)]),
        "train_seconds": trained - started,
        "evaluate_seconds": time.perf_counter() - trained,
        **{name: [entries[name]["value"], entries[name]["standard_error"]] for name in KEPT if name in entries},
    }
    write_json(result, figures)
    return figures


def training(options: argparse.Namespace, data: str, part: str | list[str], seed: int) -> list[str]:
    """Return the options of ``pyro-vae train`` for one row."""
    words = ["--data", data, "--data_root", options.data_root]
    if options.setting == "binary":
        words += ["--binarize", "dynamic", *part]
    else:
        if part not in MASS:
            words[1] = str(dequantized(options, data))
        words += ["--binarize", "none", "--likelihood", str(part), *CONV]
    if not {"--encoder", "--model"} & set(words):
        words += ["--hidden", HIDDEN]
    if "--model" not in words:
        words += ["--latent_dim", str(LATENT_DIM)]
    return [*words, "--epochs", str(options.epochs), "--seed", str(seed), "--engine", options.engine]


def dequantized(options: argparse.Namespace, name: str) -> Path:
    """Write the images of a set as (l + u) / 256, u uniform, in the splits of seed 0; return the file."""
    path = Path(options.out) / f"{name}-dequantized.npz"
    if not path.is_file():
        data, noise = load(name, options.data_root, seed=0), np.random.default_rng(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        drawn = {key: (part.pixels.numpy() + noise.random(part.pixels.shape)) / 256 for key, part in splits.items()}
        np.savez(path, **{key: values.astype(np.float32) for key, values in drawn.items()})
    return path


def run(*words: str) -> None:
    """Call ``pyro-vae``, and stop where it fails."""
    if pyro_vae(words):
        raise SystemExit(f"pyro-vae {' '.join(words)} failed")


def record(options: argparse.Namespace, found: list[dict[str, object]]) -> dict[str, object]:
    """Return the figures with what they were measured on."""
    return {
        "command": f"python experiments/families.py {options.setting}",
        "budget": {name: getattr(options, name) for name in ("epochs", "seeds", "examples", "gap_examples", "engine")},
        "machine": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "packages": installed_versions(("pyro-ppl", "torch", "numpy")),
        },
        "rows": found,
    }


def print_table(options: argparse.Namespace, found: list[dict[str, object]]) -> None:
    """Print a row of Markdown for each row and data set: means over seeds, ± standard error over images, (spread)."""
    shown = BITS if options.setting == "grey" else NATS
    print("| data | | " + " | ".join(shown.values()) + " |\n|" + " --- |" * (len(shown) + 2))
    for data, name in dict.fromkeys((row["data"], row["row"]) for row in found):
        rows = [row for row in found if (row["data"], row["row"]) == (data, name)]
        print(f"| {data} | {name} | " + " | ".join(cell(rows, figure, options) for figure in shown) + " |")


def cell(rows: list[dict[str, object]], figure: str, options: argparse.Namespace) -> str:
    """Return mean over seeds ± largest standard error over images, and the standard deviation over seeds."""
    pairs = [row[figure] for row in rows if figure in row]
    if not pairs:
        return "–"
    densities = options.setting == "grey" and GREY[str(rows[0]["row"])] not in MASS
    shift = math.log2(256) if densities and figure.endswith("bits") else 0.0
    values = [value + shift for value, _ in pairs]
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f} ± {max(error for _, error in pairs):.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
