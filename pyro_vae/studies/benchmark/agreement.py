r"""Do two variants compute the same maths? Timing different maths is worthless.

Both start from the same parameters and see the same batch. Steps with learning rate 0 sample losses, :math:`l_i` of
the variant and :math:`r_i` of the reference. The noise is the same where a variant samples as torch does; otherwise
each has its own. With :math:`d_i = l_i - r_i`,

.. math:: |\bar d| \le 5 \, \mathrm{sd}(d) / \sqrt n + 10^{-5} |\bar r|

must hold. The noise counts as the same where :math:`\mathrm{sd}(d) < 0.1 \, \mathrm{sd}(r)`. The pairs then differ by
rounding only, and the test is that much sharper.

Both then train for a few steps, and their losses must agree in the same way, with 2 % of the reference's improvement
added to the tolerance. On the same noise the parameters must agree too: with :math:`\Delta` the displacement from the
common start,

.. math:: \lVert \Delta - \Delta_\mathrm{ref} \rVert \le 0.05 \, \lVert \Delta_\mathrm{ref} \rVert .

The tolerance is 5 % because Adam turns a gradient that is all rounding into a full step. On noise of its own a variant
follows another trajectory; the five standard errors then come from the spread between references trained on several
seeds, not from the spread between losses.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pyro_vae.studies.benchmark.variant import Variant

STANDARD_ERRORS, ROUNDING = 5.0, 1e-5
GAIN, MAX_DISTANCE = 0.02, 0.05
LEARNING_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The losses of a variant before and after training, nats per example, and the displacement of its parameters."""

    before: list[float]
    after: list[float]
    displacement: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Agreement:
    """How far a variant is from the reference; losses in nats per example."""

    same_noise: bool
    num_losses: int
    loss: float
    difference: float
    allowed: float
    trained_loss: float
    trained_difference: float
    trained_allowed: float
    distance: float | None  # of the displacements, relative to the reference's; None where the noise differs

    @property
    def passed(self) -> bool:
        """Whether all differences are within their tolerances; NaN never is."""
        near = abs(self.difference) <= self.allowed and abs(self.trained_difference) <= self.trained_allowed
        return near and (self.distance is None or self.distance <= MAX_DISTANCE)

    def __str__(self) -> str:
        noise = "the same noise" if self.same_noise else "different noise"
        moved = f", displacements of the parameters by {self.distance:.2g} (allowed {MAX_DISTANCE:g})"
        return (
            f"{self.num_losses} losses on {noise} differ by {self.difference:.2g} nats (allowed {self.allowed:.2g}), "
            f"after training by {self.trained_difference:.2g} (allowed {self.trained_allowed:.2g})"
            f"{'' if self.distance is None else moved}"
        )


def trajectory(variant: Variant, num_losses: int = 32, steps: int = 20, seed: int = 0) -> Trajectory:
    """Sample losses of a variant, train it, and sample again; call inside its ``active`` context.

    Args:
        variant: freshly built; training moves its parameters.
        num_losses: sampled at the initial parameters, and again at the trained ones.
        steps: of training.
        seed: of the noise.
    """
    start = variant.parameters()
    variant.seed(3 * seed)
    before = [variant.run(1, 0.0) for _ in range(num_losses)]
    variant.seed(3 * seed + 1)
    variant.run(steps, LEARNING_RATE)
    end = variant.parameters()
    variant.seed(3 * seed + 2)
    after = [variant.run(1, 0.0) for _ in range(num_losses)]
    return Trajectory(before, after, {name: end[name].cpu() - start[name].cpu() for name in start})


@dataclass(frozen=True, eq=False)
class Reference:
    """Trajectories of the reference: on the variants' seed, and on others."""

    same_seed: Trajectory
    others: Sequence[Trajectory]


def run_reference(make: Callable[[], Variant], num_losses: int = 32, steps: int = 20, seeds: int = 4) -> Reference:
    """Run the reference on several seeds.

    Args:
        make: returns a fresh reference with the same parameters each time.
        num_losses: as for :func:`trajectory`.
        steps: as for :func:`trajectory`.
        seeds: in addition to the variants' seed.
    """
    others = [trajectory(make(), num_losses, steps, seed) for seed in range(1, seeds + 1)]
    return Reference(trajectory(make(), num_losses, steps), others)


def compare(found: Trajectory, reference: Reference) -> Agreement:
    """Compare a variant's trajectory with the reference's."""
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
    distance = _distance(found, same_seed) if same else None
    return Agreement(same, len(found.before), before, difference, allowed, after, trained, trained_allowed, distance)


def _paired(losses: Sequence[float], reference: Sequence[float]) -> tuple[float, float, bool]:
    """Return the mean difference, its tolerance, and whether the noise was the same."""
    right = torch.tensor(reference, dtype=torch.float64)
    differences = torch.tensor(losses, dtype=torch.float64) - right
    spread = differences.std().item()  # NaN if any loss is NaN; every comparison with it is then false
    allowed = STANDARD_ERRORS * spread / math.sqrt(len(differences)) + ROUNDING * abs(right.mean().item())
    return differences.mean().item(), allowed, spread < 0.1 * right.std().item()


def _distance(found: Trajectory, reference: Trajectory) -> float:
    """Return the distance between two displacements, relative to the length of the reference's."""
    expected = reference.displacement
    apart = sum((found.displacement[name] - moved).square().sum().item() for name, moved in expected.items())
    return math.sqrt(apart / sum(moved.square().sum().item() for moved in expected.values()))
