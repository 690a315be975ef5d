"""How good a bound does the plainest VAE reach on MNIST in twenty epochs, and does it draw digits?

The run in the README: MNIST, dynamic binarization, 784-400-20, ReLU, Adam at 1e-3, batches of 128, Pyro's
``Trace_ELBO`` with one particle; all of these are the defaults of ``pyro-vae train --data mnist``.

Command::

    python experiments/mnist.py --data-root data

It takes a few minutes on two cores; the JSON holds the time of the last run. MNIST is downloaded into ``--data-root``
unless it is there.

Expected: a test bound of at least −102 nats per image (the goal of this run; a hand-written loop of the same size
reached −100.1), reconstructions that keep the digit, samples most of which are digits. Published figures are of longer
training and larger networks: Burda, Grosse and Salakhutdinov (arXiv 1509.00519)
report −86.76 nats for log p(x), estimated with 5000 importance samples, for 784-200-200-50 after 3280 epochs.

Out: ``mnist.json`` (configuration, bound, curve, time, machine) and ``mnist.png`` in ``--results``.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.files import write_json
from pyro_vae.base.random import isolated_rng
from pyro_vae.cli.main import main as pyro_vae
from pyro_vae.figures import gallery
from pyro_vae.figures import images as plots
from pyro_vae.program.predictive import reconstruct, sample_prior
from pyro_vae.training.folder import Run, load_program


def main() -> int:
    """Train, then collect the figures and plot the picture; returns the exit status."""
    options = parse_options()
    named = {"data_root": options.data_root, "epochs": options.epochs, "device": options.device, "out": options.out}
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    status = pyro_vae(["train", "--data", "mnist", *words, "--overwrite"])
    if status == 0:
        run = Run.open(options.out)
        results = Path(options.results)
        write_json(results / "mnist.json", figures(run))
        print(f"figures   {results / 'mnist.json'}")
        print(f"picture   {plot(run, results / 'mnist.png', resolve_device(options.device))}")
    return status


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data", help="where MNIST is, or is downloaded to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default="runs/experiments/mnist", help="the run folder, replaced if it exists")
    parser.add_argument("--results", default="docs/results", help="where the JSON and the picture go")
    return parser.parse_args()


def figures(run: Run) -> dict[str, object]:
    """Return what was measured, and on what."""
    info = json.loads((run.path / "info.json").read_text())
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {
        "command": "python experiments/mnist.py",
        "result": json.loads((run.path / "result.json").read_text()),
        "epochs": [line for line in lines if line["kind"] == "epoch"],
        "settings": run.config.settings(),
        "data": {name: value for name, value in info["data"].items() if name != "source"},
        "machine": {name: info[name] for name in ("machine", "threads", "cuda", "python", "packages")},
    }


def plot(run: Run, path: Path, device: torch.device) -> Path:
    """Plot ten test images, their reconstructions, and thirty samples, in rows of ten."""
    data = run.config.load_data()
    program = load_program(run, data, device)
    test = data.test.to(device)
    x = test.binarized(seed=0)[:10]
    with isolated_rng(device, seed=0):
        rows = [x.cpu(), reconstruct(program, x).mean, sample_prior(program, gallery.like(test, 30)).mean]
    title = "MNIST: test images, their reconstructions, three rows of samples"
    return plots.plot_grid(path, torch.cat(rows), title, columns=10)


if __name__ == "__main__":
    sys.exit(main())
