r"""Whether two variants do the same maths: a benchmark of different maths is worthless.

Both have the same parameters and the same batch. Steps whose learning rate is 0 give draws of the loss, l and r, from
noise that is the same where a variant draws as torch does, and its own elsewhere. With :math:`d_i = l_i - r_i`,

.. math:: |\bar d| \le 5 \, \mathrm{sd}(d) / \sqrt n + 10^{-5} |\bar r|

must hold. The noise was the same where :math:`\mathrm{sd}(d) < 0.1 \, \mathrm{sd}(r)`; then the pairs differ by
rounding, and the test is that much sharper.

Then both train for a few steps, and the same is asked of their losses, with 2 % of what the reference gained allowed
on top. On the same noise the parameters must lie together as well: their distance, over the length of the reference's
way, is the ``path``. Adam makes whole steps of a gradient that is all rounding, so 5 % is allowed. On noise of its own
a variant takes another way, so that five standard errors are taken of the spread between references that trained on
several noises, and not of the spread between draws.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pyro_vae.studies.benchmark.variant import Variant

STANDARD_ERRORS, ROUNDING = 5.0, 1e-5
GAIN, PATH = 0.02, 0.05
LEARNING_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Course:
    """What one variant did: losses before and after training, nats per example, and how its parameters moved."""

    before: list[float]
    after: list[float]
    moved: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Agreement:
    """How far a variant is from the reference; nats per example."""

    same_noise: bool
    draws: int
    loss: float
    difference: float
    allowed: float
    trained_loss: float
    trained_difference: float
    trained_allowed: float
    path: float | None  # where the noise is the same

    @property
    def passed(self) -> bool:
        """Whether the maths is the same, as far as this can tell; NaN agrees with nothing."""
        near = abs(self.difference) <= self.allowed and abs(self.trained_difference) <= self.trained_allowed
        return near and (self.path is None or self.path <= PATH)

    def __str__(self) -> str:
        noise = "the same noise" if self.same_noise else "own noise"
        path = "" if self.path is None else f", parameters {self.path:.2g} of the way apart (allowed {PATH:g})"
        return (
            f"{self.draws} losses on {noise} differ by {self.difference:.2g} nats (allowed {self.allowed:.2g}), "
            f"after training by {self.trained_difference:.2g} (allowed {self.trained_allowed:.2g}){path}"
        )


def course(variant: Variant, draws: int = 32, steps: int = 20, seed: int = 0) -> Course:
    """Let a variant draw losses, train, and draw again; its surroundings must be active.

    Args:
        variant: as it was made; its parameters have moved afterwards.
        draws: of the loss, at the initial parameters and again at the trained ones.
        steps: of training.
        seed: of the noise.
    """
    start = variant.parameters()
    variant.seed(3 * seed)
    before = [variant.run(1, 0.0) for _ in range(draws)]
    variant.seed(3 * seed + 1)
    variant.run(steps, LEARNING_RATE)
    end = variant.parameters()
    variant.seed(3 * seed + 2)
    after = [variant.run(1, 0.0) for _ in range(draws)]
    return Course(before, after, {name: end[name].cpu() - start[name].cpu() for name in start})


@dataclass(frozen=True, eq=False)
class Reference:
    """Courses of the reference: on the variants' seed, and on others."""

    same_seed: Course
    others: Sequence[Course]


def refer(make: Callable[[], Variant], draws: int = 32, steps: int = 20, seeds: int = 4) -> Reference:
    """Run the reference on several seeds.

    Args:
        make: returns it afresh, with the same parameters.
        draws: as for :func:`course`.
        steps: likewise.
        seeds: beside the one that variants get.
    """
    others = [course(make(), draws, steps, seed) for seed in range(1, seeds + 1)]
    return Reference(course(make(), draws, steps), others)


def compare(found: Course, reference: Reference) -> Agreement:
    """Hold a variant's course against the reference's."""
    same_seed = reference.same_seed
    before, after = statistics.fmean(found.before), statistics.fmean(found.after)
    difference, allowed, same = _paired(found.before, same_seed.before)
    if same:
        trained, trained_allowed, _ = _paired(found.after, same_seed.after)
    else:
        ends = [statistics.fmean(other.after) for other in (same_seed, *reference.others)]
        trained = after - statistics.fmean(ends)
        trained_allowed = STANDARD_ERRORS * statistics.stdev(ends) * math.sqrt(1 + 1 / len(ends))
    trained_allowed += GAIN * abs(statistics.fmean(same_seed.before) - statistics.fmean(same_seed.after))
    path = _distance(found, same_seed) if same else None
    return Agreement(same, len(found.before), before, difference, allowed, after, trained, trained_allowed, path)


def _paired(losses: Sequence[float], reference: Sequence[float]) -> tuple[float, float, bool]:
    """Return the mean difference, what is allowed, and whether the noise was the same."""
    right = torch.tensor(reference, dtype=torch.float64)
    differences = torch.tensor(losses, dtype=torch.float64) - right
    spread = differences.std().item()  # NaN where a loss is, which nothing below equals or exceeds
    allowed = STANDARD_ERRORS * spread / math.sqrt(len(differences)) + ROUNDING * abs(right.mean().item())
    return differences.mean().item(), allowed, spread < 0.1 * right.std().item()


def _distance(found: Course, reference: Course) -> float:
    """Return the distance between two ends over the length of the reference's way."""
    apart = sum((found.moved[name] - way).square().sum().item() for name, way in reference.moved.items())
    return math.sqrt(apart / sum(way.square().sum().item() for way in reference.moved.values()))
