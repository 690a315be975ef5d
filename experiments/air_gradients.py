r"""How noisy is the gradient of AIR's presence variables by score, measure-valued and by enumeration?

Attend, Infer, Repeat (Eslami et al., arXiv 1603.08575): a picture of 50 × 50 is a sum of up to three objects; object t
is there (z_pres, Bernoulli, 0 after the first 0), at a place and scale (z_where, 3 numbers), with a code (z_what, 20
numbers). z_where and z_what have pathwise gradients; z_pres has none, and *Programmable Variational Inference* (Becker
et al., PLDI 2024, arXiv 2406.15742, figure 7) trains it by REINFORCE, by measure-valued derivatives and by enumeration.
It shows training curves; the variance of the gradient is measured here, at one place, for the same program under

* ``score``: the score with the advantage; with one particle there is no baseline;
* ``measure-valued`` and ``enumerate``, by ``strategies`` of the estimator;
* the ELBO with one and two particles, IWAE with two.

Data: pictures of none, one or two MNIST digits at random places, made from the training set with seed 0.

Command::

    python experiments/air_gradients.py --data-root data

It takes about five minutes on one core: 1000 steps of training with the enumerated ELBO, and 100 gradients of each
estimator on one batch of 16 pictures, before and after training. Expected: the variance of the presence network's
gradient largest by score without baseline, smallest by enumeration; measure-valued in between. As the presences get
certain, the score's variance comes from rare draws, and exceeds the others' by orders of magnitude.

Writes ``air_gradients.json`` to ``--results``: the total variance (nats², summed over the parameters of the presence
network), its standard error, and seconds for a gradient.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import elbo, load
from pyro_vae.base.files import write_json
from pyro_vae.elbo import Estimator
from pyro_vae.program.handlers import Strategy
from pyro_vae.studies.benchmark import describe_machine

SIDE, WINDOW, STEPS, WHAT, HIDDEN = 50, 28, 3, 20, 128
PRESENCE = [f"z_pres_{t}" for t in range(STEPS)]
OFF = 1e-4  # a probability of presence after the first absence: small, for log 0 has no gradient


class AIR(nn.Module):
    """Attend, infer, repeat, with one recurrent network; every layer broadcasts over leading dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(SIDE * SIDE, 256), nn.ReLU(), nn.Linear(256, HIDDEN))
        self.rnn = nn.GRUCell(HIDDEN + 1 + 3 + WHAT, HIDDEN)
        self.presence = nn.Linear(HIDDEN, 1)
        self.where = nn.Linear(HIDDEN, 6)
        self.encode = nn.Sequential(nn.Linear(WINDOW * WINDOW, 200), nn.ReLU(), nn.Linear(200, 2 * WHAT))
        self.decode = nn.Sequential(nn.Linear(WHAT, 200), nn.ReLU(), nn.Linear(200, WINDOW * WINDOW))
        nn.init.constant_(self.presence.bias, 1.0)

    def model(self, x: Tensor) -> None:
        """X is the sum of the objects that are there, plus noise of 0.3."""
        pyro.module("air", self)
        with pyro.plate("data", len(x), dim=-1):
            there, canvas = x.new_ones(()), x.new_zeros(1, SIDE, SIDE)
            for t in range(STEPS):
                there = pyro.sample(f"z_pres_{t}", dist.Bernoulli((0.4 * there).clamp(min=OFF)))
                shown = there.bool()
                prior = dist.Normal(x.new_tensor([2.0, 0.0, 0.0]), x.new_tensor([0.3, 0.7, 0.7]))
                where = pyro.sample(f"z_where_{t}", prior.to_event(1).mask(shown))
                what = pyro.sample(f"z_what_{t}", dist.Normal(x.new_zeros(WHAT), 1.0).to_event(1).mask(shown))
                canvas = canvas + there[..., None, None] * placed(self.decode(what).sigmoid(), where)
            pyro.sample("x", dist.Normal(canvas, 0.3).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        """The recurrent network sees the picture and what it has sampled so far."""
        pyro.module("air", self)
        with pyro.plate("data", len(x), dim=-1):
            image = self.embed(x.flatten(-2))
            hidden, there = torch.zeros_like(image), x.new_ones(())
            last = x.new_zeros(1 + 3 + WHAT)
            for t in range(STEPS):
                hidden = self.advance(image, last, hidden)
                probability = self.presence(hidden)[..., 0].sigmoid()
                there = pyro.sample(f"z_pres_{t}", dist.Bernoulli((probability * there).clamp(OFF, 1 - OFF)))
                shown = there.bool()
                loc, log_scale = self.where(hidden).chunk(2, -1)
                place = dist.Normal(loc + loc.new_tensor([2.0, 0.0, 0.0]), 0.1 * log_scale.exp())
                where = pyro.sample(f"z_where_{t}", place.to_event(1).mask(shown))
                loc, log_scale = self.encode(cut(x, where)).chunk(2, -1)
                what = pyro.sample(f"z_what_{t}", dist.Normal(loc, log_scale.exp()).to_event(1).mask(shown))
                last = joined(there[..., None], where, what)

    def advance(self, image: Tensor, last: Tensor, hidden: Tensor) -> Tensor:
        """Return the next state; a GRU cell takes one leading dimension."""
        seen = joined(image, last)
        hidden = hidden.expand(*seen.shape[:-1], HIDDEN)
        new: Tensor = self.rnn(seen.reshape(-1, seen.shape[-1]), hidden.reshape(-1, HIDDEN))
        return new.reshape(hidden.shape)


def joined(*parts: Tensor) -> Tensor:
    """Put parts side by side, all with the leading dimensions of any."""
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def placed(window: Tensor, where: Tensor) -> Tensor:
    """Put windows (..., WINDOW²) on a canvas: point u of the canvas shows point s u + (a, b) of the window."""
    scale, shift = where[..., :1], where[..., 1:]
    return resampled(window, WINDOW, scale, shift, SIDE)


def cut(x: Tensor, where: Tensor) -> Tensor:
    """Return what a window sees of the pictures, (..., WINDOW²): the inverse of :func:`placed`."""
    scale, shift = where[..., :1], where[..., 1:]
    image = x.flatten(-2).expand(*where.shape[:-1], SIDE * SIDE)
    return resampled(image, SIDE, 1 / scale, -shift / scale, WINDOW).flatten(-2)


def resampled(image: Tensor, side: int, scale: Tensor, shift: Tensor, size: int) -> Tensor:
    """Return images (..., side²) on a grid of size × size, moved and scaled."""
    batch = torch.broadcast_shapes(image.shape[:-1], scale.shape[:-1])
    image, scale, shift = (each.expand(*batch, each.shape[-1]) for each in (image, scale, shift))
    zero = torch.zeros_like(scale)
    rows = torch.cat([scale, zero, shift[..., :1], zero, scale, shift[..., 1:]], -1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, [len(rows), 1, size, size], align_corners=False)
    found = functional.grid_sample(image.reshape(-1, 1, side, side), grid, align_corners=False)
    return found.reshape(*batch, size, size)


def pictures(digits: Tensor, count: int, seed: int) -> Tensor:
    """Return pictures of none, one or two digits at random places, (count, 50, 50), from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(count, SIDE, SIDE)
    objects = torch.randint(3, (count,), generator=generator)
    for number in range(2):
        chosen = torch.randint(len(digits), (count,), generator=generator)
        corner = torch.randint(SIDE - WINDOW + 1, (count, 2), generator=generator)
        for i in (objects > number).nonzero().flatten().tolist():
            a, b = corner[i].tolist()
            part = canvas[i, a : a + WINDOW, b : b + WINDOW]
            part.copy_(torch.maximum(part, digits[chosen[i]]))
    return canvas


def by(strategy: Strategy) -> dict[str, Strategy]:
    """Return the strategy for every presence variable."""
    return dict.fromkeys(PRESENCE, strategy)


def estimators() -> dict[str, Estimator]:
    """Return what is compared: objective, number of particles, strategy."""
    found: dict[str, Estimator] = {}
    for strategy in ("score", "measure_valued", "enumerate"):
        found[f"ELBO, K = 1, {strategy}"] = elbo.SampledKL(1, strategies=by(strategy))
        found[f"ELBO, K = 2, {strategy}"] = elbo.SampledKL(2, strategies=by(strategy))
        found[f"IWAE, K = 2, {strategy}"] = elbo.IWAE(2, strategies=by(strategy))
    return found


def spread(air: AIR, x: Tensor, estimator: Estimator, draws: int) -> dict[str, float]:
    """Return the total variance of the presence network's gradient of the mean bound, its error, and the seconds."""
    started, rows = time.perf_counter(), []
    for _ in range(draws):
        loss = estimator.differentiable_loss(air.model, air.guide, x) / len(x)
        found = torch.autograd.grad(loss, list(air.presence.parameters()))
        rows.append(torch.cat([each.flatten() for each in found]).double())
    seconds = (time.perf_counter() - started) / draws
    gradients = torch.stack(rows)
    squared = (gradients - gradients.mean(0)).square().sum(1) * draws / (draws - 1)
    return {
        "variance": float(squared.mean()),
        "standard_error": float(squared.std() / math.sqrt(draws)),
        "norm_of_mean": float(gradients.mean(0).norm()),
        "seconds": seconds,
    }


def main() -> int:
    """Measure before and after training; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", default="data", help="where MNIST is, or is downloaded to")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--results", default="docs/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x = pictures(load("mnist", options.data_root).train.pixels / 255, 10_000, seed=0)
    air, batch = AIR(), x[:16]
    objective = elbo.SampledKL(1, strategies=by("enumerate"))
    points = {"0": measured(air, batch, options.draws)}
    svi = pyro.infer.SVI(air.model, air.guide, pyro.optim.Adam({"lr": 3e-4}), objective)
    for _ in range(options.steps):
        loss = svi.step(x[torch.randint(len(x), (64,))]) / 64
    points[str(options.steps)] = measured(air, batch, options.draws)
    record = {
        "command": f"python experiments/air_gradients.py --steps {options.steps} --draws {options.draws}",
        "machine": describe_machine(torch.device("cpu")),
        "last_training_loss": loss,
        "points": points,
    }
    file = Path(options.results) / "air_gradients.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)
    print(json.dumps(points, indent=2))
    return 0


def measured(air: AIR, x: Tensor, draws: int) -> dict[str, dict[str, float]]:
    """Return the figures of every estimator on one batch."""
    return {name: spread(air, x, estimator, draws) for name, estimator in estimators().items()}


if __name__ == "__main__":
    sys.exit(main())
