r"""Annealed importance sampling: log p(x) from chains that move from the prior, or from q, to p(x, z).

The path is geometric in unconstrained latents u, where :math:`z = T(u)`:

.. math:: \log f_t(u) = (1 - \beta_t) \log f_0(u) + \beta_t \log f_1(u), \quad 0 = \beta_0 < \dots < \beta_T = 1

f₁ is :math:`p(x, T(u))\, |\partial z / \partial u|`, whose integral is p(x); f₀ is p(z) or q(z|x) with the same
Jacobian. A chain starts at u₀ ~ f₀. For t = 1 … T it adds
:math:`(\beta_t - \beta_{t-1}) (\log f_1 - \log f_0)(u_{t-1})` to log w and takes a step of Hamiltonian Monte Carlo that
leaves f_t invariant. E w = p(x) for any T.

Sources: Neal, Annealed importance sampling, 2001; Wu, Burda, Salakhutdinov and Grosse,
`On the Quantitative Analysis of Decoder-Based Generative Models <https://arxiv.org/abs/1611.04273>`_.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import torch
from torch import Tensor

from pyro_vae.base.batch import Batch
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.evaluation.chunking import state_chunks
from pyro_vae.evaluation.methods.log_evidence import LogEvidence
from pyro_vae.program.contexts import evaluating, frozen
from pyro_vae.program.joint import Joint
from pyro_vae.program.predictive import sample_pairs
from pyro_vae.program.protocol import Program

Start = Literal["prior", "guide"]
Where = tuple[Tensor, Tensor, Tensor]  # u (K, B, n), log f0 (K, B), log f1 − log f0 (K, B)
TARGET_ACCEPTANCE = 0.65
ADAPTATION = 0.2  # change of the log step size per unit of acceptance
JITTER = 0.2  # of the step size, relative: trajectories of one length may return to their start
TUNING_CHAINS = 16


def linear(temperatures: int) -> Tensor:
    """Return equal steps of β from 0 to 1, (T + 1,).

    Example:
        >>> linear(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)


def sigmoid(temperatures: int, steepness: float = 4.0) -> Tensor:
    r"""Return β with small steps at both ends, (T + 1,): a logistic function over [−4, 4], scaled to [0, 1].

    Source: Wu et al., arXiv 1611.04273.

    Example:
        >>> sigmoid(4)
        tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    raw = torch.sigmoid(steepness * (2 * linear(temperatures) - 1))
    return (raw - raw[0]) / (raw[-1] - raw[0])


TEMPERATURES: dict[str, Callable[[int], Tensor]] = {"linear": linear, "sigmoid": sigmoid}


@dataclass(frozen=True)
class Annealing:
    """The settings of annealing.

    Args:
        chains: K, per example.
        temperatures: T, the number of steps from β = 0 to β = 1.
        schedule: of β, ``sigmoid`` or ``linear``.
        start: ``prior``, or ``guide``, which is nearer to the posterior but may lack its tails.
        leapfrog_steps: per trajectory.
        step_size: of the first trajectory; adapted per example.

    Raises:
        InputError: a number that is not positive, an unknown name.
    """

    chains: int = 16
    temperatures: int = 1000
    schedule: str = "sigmoid"
    start: Start = "prior"
    leapfrog_steps: int = 10
    step_size: float = 0.2

    def __post_init__(self) -> None:
        for name in ("chains", "temperatures", "leapfrog_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} as a whole number of at least 1", repr(value), f"{name}=10")
        if not 0 < self.step_size < math.inf:
            raise InputError("a finite step_size above 0", repr(self.step_size), "step_size=0.2")
        lookup(TEMPERATURES, self.schedule, "schedule")
        lookup({name: name for name in get_args(Start)}, self.start, "start")

    @property
    def betas(self) -> list[float]:
        """β_0 … β_T."""
        return lookup(TEMPERATURES, self.schedule, "schedule")(self.temperatures).tolist()


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Lower and upper bound, in expectation, of log p(x) of simulated examples; nats per example."""

    x: Tensor  # (B, *event_shape)
    lower: LogEvidence
    upper: LogEvidence

    @property
    def width(self) -> Tensor:
        """Upper − lower, (B,): on average at least the error of either bound."""
        return self.upper.value - self.lower.value


@torch.no_grad()
def annealed_log_evidence(
    program: Program,
    x: Batch,
    *,
    preliminary: bool = False,
    seed: int = 0,
    chains: int = 16,
    temperatures: int = 1000,
    schedule: str = "sigmoid",
    start: Start = "prior",
    leapfrog_steps: int = 10,
    step_size: float = 0.2,
) -> LogEvidence:
    r"""Return log p(x) of every example by annealed importance sampling: a lower bound, tight for many temperatures.

    .. math:: \log p(x) \ge E \log \frac1K \sum_k w_k

    Step sizes adapt during the run, per example, to an acceptance rate of 0.65. This is common practice (Wu et al.),
    but makes a transition depend on the chain's past. With ``preliminary``, a separate run tunes the step sizes and
    they are then fixed: E w = p(x) holds exactly, at about twice the cost.

    The program's parameters, gradients and mode do not change. Memory is bounded by chunks of examples.

    Args:
        program: a program with continuous latents, of any support.
        x: examples, (B, *event_shape), binarized where the likelihood is binary, on the program's device.
        preliminary: tune step sizes in a separate run.
        seed: fixes the noise.
        chains: K, per example.
        temperatures: T, the number of steps from β = 0 to β = 1.
        schedule: of β, ``sigmoid`` or ``linear``.
        start: ``prior``, or ``guide``, which is nearer to the posterior but may lack its tails.
        leapfrog_steps: per trajectory.
        step_size: of the first trajectory; adapted per example.

    Returns:
        Value and standard error (B,), log weights (chains, B), mean acceptance rate (B,).

    Raises:
        InputError: discrete latents; with ``start="guide"``, a flow without an inverse; see :class:`Annealing`.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian
        >>> oracle = LinearGaussian(4, 2)
        >>> x = oracle.simulate(3)
        >>> found = annealed_log_evidence(oracle, x, chains=20, temperatures=30)
        >>> bool(((found.value - oracle.log_evidence(x)).abs() < 0.5).all())
        True
    """
    how = Annealing(chains, temperatures, schedule, start, leapfrog_steps, step_size)
    with evaluating(program, x.device, seed), frozen(program), pyro.validation_enabled(False):
        return LogEvidence.cat([_forward(program, part, how, preliminary) for part in state_chunks(x, how.chains)])


@torch.no_grad()
def bidirectional(
    program: Program,
    like: Tensor,
    *,
    seed: int = 0,
    chains: int = 16,
    temperatures: int = 1000,
    schedule: str = "sigmoid",
    start: Start = "prior",
    leapfrog_steps: int = 10,
    step_size: float = 0.2,
) -> Sandwich:
    r"""Return lower and upper bounds of log p(x) for examples simulated from the model (bidirectional Monte Carlo).

    The z that generated x is an exact sample from p(z|x). For chains that start there and run backwards to f₀,
    E 1/w = 1/p(x); with w of forward and w' of reverse chains

    .. math:: E \log \frac1K \sum_k w_k \;\le\; \log p(x) \;\le\; -E \log \frac1K \sum_k \frac1{w_k'}

    A preliminary run tunes the step sizes, which are then fixed, so that both inequalities hold exactly, for examples
    simulated from the model. The K reverse chains of an example share their start: their standard error understates the
    spread; average over examples. Where p(x|z) decays faster than the prior, 1/w' may have infinite variance, and the
    mean upper bound of few examples is often too low. More temperatures or ``start="guide"`` make this rarer.

    Sources: Grosse, Ghahramani and Adams, 2015; Wu et al., arXiv 1611.04273.

    Args:
        program: a program with continuous latents.
        like: any tensor (B, *event_shape) on the program's device: B examples are simulated; its values are not used.
        seed: fixes the examples and the noise.
        chains: K, per example.
        temperatures: T, the number of steps from β = 0 to β = 1.
        schedule: of β, ``sigmoid`` or ``linear``.
        start: ``prior``, or ``guide``, which is nearer to the posterior but may lack its tails.
        leapfrog_steps: per trajectory.
        step_size: of the first trajectory; adapted per example.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian
        >>> oracle = LinearGaussian(4, 2)
        >>> sandwich = bidirectional(oracle, torch.zeros(20, 4).double(), chains=10, temperatures=20)
        >>> bool(sandwich.lower.value.mean() < oracle.log_evidence(sandwich.x).mean() < sandwich.upper.value.mean())
        True
    """
    how = Annealing(chains, temperatures, schedule, start, leapfrog_steps, step_size)
    with evaluating(program, like.device, seed), frozen(program), pyro.validation_enabled(False):
        return _joined([_both_ways(program, part, how) for part in state_chunks(like, how.chains)])


def _both_ways(program: Program, like: Tensor, settings: Annealing) -> Sandwich:
    made = sample_pairs(program, like)
    x = made.sample.to(like)
    path = GeometricPath(Joint(program, x), settings.start)
    steps = _tuned(path, settings)
    lower = _run(path, path.draw(settings.chains), settings, steps)
    exact = {n: z.to(x.device).expand(settings.chains, *z.shape) for n, z in made.latents.items()}
    log_weights, rate, _ = _walk(path, path.joint.unconstrain(exact), settings, steps, backwards=True)
    return Sandwich(x, lower, LogEvidence.of_reciprocals(log_weights, rate))


def _joined(parts: list[Sandwich]) -> Sandwich:
    lower, upper = (LogEvidence.cat([getattr(part, side) for part in parts]) for side in ("lower", "upper"))
    return Sandwich(torch.cat([part.x for part in parts]), lower, upper)


def _forward(program: Program, x: Batch, settings: Annealing, preliminary: bool) -> LogEvidence:
    path = GeometricPath(Joint(program, x), settings.start)
    steps = _tuned(path, settings) if preliminary else None
    return _run(path, path.draw(settings.chains), settings, steps)


def _run(path: "GeometricPath", u: Tensor, settings: Annealing, steps: Tensor | None) -> LogEvidence:
    log_weights, rate, _ = _walk(path, u, settings, steps)
    return LogEvidence.of_weights(log_weights, rate)


def _tuned(path: "GeometricPath", settings: Annealing) -> Tensor:
    """Return step sizes, (T + 1, B), from an adaptive run of separate chains."""
    return _walk(path, path.draw(min(settings.chains, TUNING_CHAINS)), settings)[2]


class GeometricPath:
    """log f_0 and log f_1 − log f_0 of unconstrained latents u, (K, B, n)."""

    def __init__(self, joint: Joint, start: Start) -> None:
        self.joint, self.start = joint, start

    def draw(self, chains: int) -> Tensor:
        """Sample u from f_0, (K, B, n)."""
        joint = self.joint
        return joint.unconstrain(joint.draw_prior(chains)[0] if self.start == "prior" else joint.draw_guide(chains))

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f_0 and log f_1 − log f_0, (K, B) each."""
        terms = self.joint.of_unconstrained(u)
        if self.start == "prior":
            return terms.log_pz + terms.log_jacobian, terms.log_px_z
        log_q = self.joint.log_q(terms.latents)
        return log_q + terms.log_jacobian, terms.log_px_z + terms.log_pz - log_q

    def gradient(self, u: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return ∇ log f_β, (K, B, n), and the values of :meth:`at`."""
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            base, difference = self.at(leaf)
            (gradient,) = torch.autograd.grad((base + beta * difference).sum(), leaf)
        return gradient, base.detach(), difference.detach()


def _walk(
    path: GeometricPath, u: Tensor, settings: Annealing, steps: Tensor | None = None, backwards: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log weights (K, B), the mean acceptance rate (B,) and the step size at every temperature (T + 1, B).

    A transition at β_t follows the weight of (β_{t−1}, β_t); backwards, one at β_{t−1} does. Those at β = 0 and β = 1
    change no weight and are left out.
    """
    betas = settings.betas
    here: Where = (u, *path.at(u))
    log_step = torch.full_like(here[1][0], math.log(settings.step_size))
    used = log_step.exp().repeat(len(betas), 1)
    log_weight, rate = torch.zeros_like(here[1], dtype=torch.float64), torch.zeros_like(log_step)
    order = range(len(betas) - 1, 0, -1) if backwards else range(1, len(betas))
    for t in order:
        log_weight = log_weight + (betas[t] - betas[t - 1]) * here[2]
        target = t - 1 if backwards else t
        if target in (0, len(betas) - 1):
            continue
        step = log_step.exp() if steps is None else steps[target]
        here, probability = transition(path, here, betas[target], step, settings.leapfrog_steps)
        accepted = probability.mean(0)
        used[target], rate = step, rate + accepted
        log_step = log_step + ADAPTATION * (accepted - TARGET_ACCEPTANCE)
    return log_weight, rate / max(1, len(betas) - 2), used


def transition(
    path: GeometricPath, here: Where, beta: float, step: Tensor, leapfrog_steps: int
) -> tuple[Where, Tensor]:
    """Take one step of Hamiltonian Monte Carlo that leaves f_β invariant, for each chain and example separately.

    Momenta are standard normal. The step size is jittered around ``step``, independently of the state. A proposal that
    is not finite is rejected.

    Args:
        path: the path.
        here: u (K, B, n), log f_0 and log f_1 − log f_0 (K, B).
        beta: β.
        step: step size of each example, (B,).
        leapfrog_steps: of the trajectory.

    Returns:
        The new state, and the acceptance probability of each proposal, (K, B).
    """
    u, base, difference = here
    size = (step * (1 + JITTER * (2 * torch.rand_like(step) - 1))).unsqueeze(-1)
    momentum = torch.randn_like(u)
    moved, velocity = u, momentum + 0.5 * size * path.gradient(u, beta)[0]
    for count in range(leapfrog_steps):
        moved = moved + size * velocity
        gradient, new_base, new_difference = path.gradient(moved, beta)
        velocity = velocity + (0.5 if count == leapfrog_steps - 1 else 1.0) * size * gradient
    energy = base + beta * difference - 0.5 * momentum.square().sum(-1)
    new_energy = new_base + beta * new_difference - 0.5 * velocity.square().sum(-1)
    probability = (new_energy - energy).clamp(max=0).exp().nan_to_num(0.0)
    taken = torch.rand_like(probability) < probability
    values = torch.where(taken, new_base, base), torch.where(taken, new_difference, difference)
    return (torch.where(taken.unsqueeze(-1), moved, u), *values), probability
