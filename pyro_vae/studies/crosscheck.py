r"""The cross-check: Pyro's ELBO against the hand-written one, values and gradients, on this machine.

There are four kinds of comparison, over three likelihoods, K = 1 and K > 1, float32 and float64:

1. *same noise*: ``Trace_ELBO`` against the sampled form, ``TraceMeanField_ELBO`` against the closed form; the value,
   summed and per example, and the gradient of every parameter;
2. *by hand*: the hand-derived gradient against autograd on the hand-written value, head by head; and, chained through
   the networks, against Pyro's gradient of every parameter;
3. *fresh noise*: the mean over many draws of ``Trace_ELBO`` minus the closed form on the same draw, as a z-score;
4. *devices*: with CUDA, all of the above there, and the CPU against CUDA on the same noise.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.base.random import isolated_rng, seed_noise
from pyro_vae.base.statistics import estimate
from pyro_vae.base.types import Progress, no_progress
from pyro_vae.data import load
from pyro_vae.elbo import analytic
from pyro_vae.models.vae import VAE
from pyro_vae.program.contexts import own_store
from pyro_vae.program.handlers import GivenNoise
from pyro_vae.program.protocol import Program
from pyro_vae.program.tracing import sample_sites, trace_program

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative
Z_SCORE, Z_LIMIT = "z-score", 5.0  # standard errors
BATCH_SIZE, LATENT_DIM, HIDDEN, NUM_PARTICLES, NUM_DRAWS = 24, 5, 32, 7, 1000
SCALE, MIN_SCALE = 0.3, 0.05  # of the fixed Gaussian; floor of the learned one
LIKELIHOODS = {
    "bernoulli": "bernoulli",
    "gaussian": f"gaussian:scale={SCALE}",
    "learned_gaussian": f"learned_gaussian:min_scale={MIN_SCALE}",
}


@dataclass(frozen=True)
class Row:
    """One comparison and its outcome."""

    comparison: str
    quantity: str
    likelihood: str
    num_particles: int
    dtype: str
    device: str
    error: float  # relative, or a z-score
    limit: float
    worst: str  # the tensor with the largest error

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN never is."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Case:
    """One setting: a likelihood, a number of particles, a precision, a device."""

    likelihood: str
    num_particles: int
    dtype: torch.dtype
    device: torch.device

    def row(self, comparison: str, quantity: str, error: float, worst: str = "", limit: float = 0.0) -> Row:
        """Return a row of this case; by default the limit is the tolerance of its precision."""
        limit = limit or TOLERANCES[self.dtype]
        dtype = str(self.dtype).removeprefix("torch.")
        return Row(
            comparison,
            quantity,
            self.likelihood,
            self.num_particles,
            dtype,
            self.device.type,
            error,
            limit,
            worst,
        )


Comparison = Callable[[Case], Iterator[Row]]


def build_program(likelihood: str) -> VAE:
    """Return the VAE to check, for 8x8 pixels, with parameters that make no term small."""
    vae = VAE((8, 8), LATENT_DIM, (HIDDEN,), LIKELIHOODS[likelihood], activation="tanh")
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vae


def crosscheck(devices: Sequence[torch.device], progress: Progress = no_progress) -> list[Row]:
    """Run every comparison on the given devices; CUDA is also compared with the CPU.

    Args:
        devices: to run on.
        progress: called as ``progress(what, done, total)`` after each case.

    Returns:
        All rows; the check has passed if every row has.
    """
    return list(_comparisons(devices, progress))


def _comparisons(devices: Sequence[torch.device], progress: Progress = no_progress) -> Iterator[Row]:
    cases = list(_cases(devices))
    for done, (compare, case) in enumerate(cases, 1):
        yield from _isolated(compare, case)
        progress(f"{case.likelihood} on {case.device.type}", done, len(cases))


def _cases(devices: Sequence[torch.device]) -> Iterator[tuple[Comparison, Case]]:
    for device in devices:
        for likelihood in LIKELIHOODS:
            for dtype in TOLERANCES:
                for num_particles in (1, NUM_PARTICLES):
                    yield _same_noise, Case(likelihood, num_particles, dtype, device)
            yield _fresh_noise, Case(likelihood, 1, torch.float64, device)
            if device.type == "cuda":
                for dtype in TOLERANCES:
                    yield _across_devices, Case(likelihood, NUM_PARTICLES, dtype, device)


def _isolated(compare: Comparison, case: Case) -> list[Row]:
    """Run one comparison to the end, with its own random state."""
    with isolated_rng(case.device, seed=0):
        return list(compare(case))


def _same_noise(case: Case) -> Iterator[Row]:
    """Yield the rows of kinds 1 and 2."""
    vae, x = _program_and_data(case)
    for elbo, form in ((Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "closed")):
        name = f"{elbo.__name__} = {form} form"
        loss, gradients = _pyro(vae, x, _estimator(elbo, case.num_particles), seed=1)
        witness = _Witness(vae, x, case.likelihood, _noise(case, seed=1))
        per_example = _pyro_per_example(vae, x, case.num_particles, form, seed=1)
        yield case.row(name, "per example", _worst({"": witness.value(form)}, {"": per_example})[0])
        value = -witness.value(form).sum()
        yield case.row(name, "value", _relative(value.item(), loss))
        by_autograd = dict(
            zip(gradients, torch.autograd.grad(value, list(vae.parameters()), retain_graph=True), strict=True)
        )
        yield case.row(name, "gradients", *_worst(by_autograd, gradients))
        by_hand, automatic = witness.head_gradients(form)
        yield case.row(f"by hand = autograd, {form} form", "head gradients", *_worst(by_hand, automatic))
        yield case.row(f"{elbo.__name__} = by hand", "gradients", *_worst(witness.gradients(form), gradients))


def _fresh_noise(case: Case) -> Iterator[Row]:
    r"""Yield kind 3: :math:`d_n`, Trace_ELBO − closed form on one draw, has mean 0; z = |mean| / standard error."""
    vae, x = _program_and_data(case)
    estimator = _estimator(Trace_ELBO, case.num_particles)
    with torch.no_grad(), own_store(vae):
        noise = torch.cat([_noise(case, seed=draw) for draw in range(NUM_DRAWS)])  # K = 1: one particle per draw
        witness = _Witness(vae, x, case.likelihood, noise)
        closed = [
            analytic.elbo_closed(log_px_z[None], witness.loc, witness.log_scale).sum()
            for log_px_z in witness.log_px_z()
        ]
        sampled = torch.empty(NUM_DRAWS, dtype=torch.float64)
        for draw in range(NUM_DRAWS):
            seed_noise(draw, case.device)
            sampled[draw] = -estimator.loss(vae.model, vae.guide, x)
    differences = sampled - torch.stack(closed).cpu()
    result = estimate(differences)
    z = abs(result.value) / result.standard_error
    yield case.row(f"mean of {NUM_DRAWS} draws = closed form", Z_SCORE, z, limit=Z_LIMIT)


def _across_devices(case: Case) -> Iterator[Row]:
    """Yield kind 4: value and gradients on the CPU against those on CUDA, given the same noise."""
    cpu = torch.device("cpu")
    noise = _noise(Case(case.likelihood, case.num_particles, case.dtype, cpu), seed=1)
    losses, gradients = [], []
    for device in (cpu, case.device):
        vae, x = _program_and_data(case)  # initialised from the CPU's random numbers on every device
        vae.to(device)
        with GivenNoise(noise.to(device)):
            loss, gradient = _pyro(vae, x.to(device), _estimator(Trace_ELBO, case.num_particles), seed=1)
        losses.append(loss)
        gradients.append({name: g.cpu() for name, g in gradient.items()})
    yield case.row("cpu = cuda", "value", _relative(losses[1], losses[0]))
    yield case.row("cpu = cuda", "gradients", *_worst(gradients[1], gradients[0]))


class _Witness:
    """The hand-written side: the networks' outputs for given noise; everything else is from ``analytic``."""

    def __init__(self, vae: VAE, x: Tensor, likelihood: str, noise: Tensor) -> None:
        self.vae, self.likelihood, self.noise = vae, likelihood, noise
        self.x = x.flatten(1)
        self.loc, self.log_scale = vae.encoder(x).unbind(-2)  # (B, Z)
        self.z = analytic.reparameterize(self.loc, self.log_scale, noise)  # (K, B, Z)
        self.heads = tuple(h.flatten(2) for h in vae.decoder(self.z).unbind(-3))  # each (K, B, D)

    def log_px_z(self) -> Tensor:
        if self.likelihood == "bernoulli":
            return analytic.log_bernoulli(self.x, *self.heads)
        return analytic.log_gaussian(self.x, *self._mean_and_log_scale())

    def _mean_and_log_scale(self) -> tuple[Tensor, Tensor]:
        if self.likelihood == "gaussian":
            return self.heads[0], torch.full_like(self.heads[0], math.log(SCALE))
        # log σ = log f + log(1 + e^s / f): the likelihood's floor f
        return self.heads[0], math.log(MIN_SCALE) + torch.log1p(self.heads[1].exp() / MIN_SCALE)

    def value(self, form: str) -> Tensor:
        """Return the ELBO of each example, (B,), in nats."""
        if form == "closed":
            return analytic.elbo_closed(self.log_px_z(), self.loc, self.log_scale)
        return analytic.elbo_sampled(self.log_px_z(), self.z, self.loc, self.log_scale)

    def hand_heads(self) -> list[Tensor]:
        """Return the hand-derived gradient of log p(x|z), summed over x and averaged over particles, in the heads."""
        if self.likelihood == "bernoulli":
            found: tuple[Tensor, ...] = (analytic.grad_log_bernoulli(self.x, *self.heads),)
        else:
            mean, log_scale = self._mean_and_log_scale()
            in_mean, in_log_scale = analytic.grad_log_gaussian(self.x, mean, log_scale)
            # d log σ / ds = e^s / (f + e^s)
            floor = torch.sigmoid(self.heads[-1] - math.log(MIN_SCALE))
            found = (in_mean, in_log_scale * floor)[: len(self.heads)]
        return [gradient / len(self.noise) for gradient in found]

    def hand_posterior(self, form: str) -> tuple[Tensor, Tensor]:
        """Return the hand-derived gradient in location and log-scale; only the decoder's derivative is autograd's."""
        (grad_z,) = torch.autograd.grad(self.heads, self.z, self.hand_heads(), retain_graph=True)
        grad = analytic.grad_elbo_closed if form == "closed" else analytic.grad_elbo_sampled
        return grad(self.loc, self.log_scale, self.noise, grad_z)

    def head_gradients(self, form: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the ELBO's gradient in every head of both networks, hand-derived and by autograd."""
        tensors = {f"decoder head {i}": head for i, head in enumerate(self.heads)}
        tensors |= {"location": self.loc, "log-scale": self.log_scale}
        by_hand = [*self.hand_heads(), *self.hand_posterior(form)]
        automatic = torch.autograd.grad(self.value(form).sum(), list(tensors.values()), retain_graph=True)
        return dict(zip(tensors, by_hand, strict=True)), dict(zip(tensors, automatic, strict=True))

    def gradients(self, form: str) -> dict[str, Tensor]:
        """Return the hand-derived gradient of the loss in every parameter, chained through the networks by autograd."""
        outputs = [*self.heads, self.loc, self.log_scale]
        # hand_posterior already contains the gradient through z, so z is detached here
        detached = self.vae.decoder(self.z.detach()).unbind(-3)
        outputs[: len(self.heads)] = [head.flatten(2) for head in detached]
        grads = [-g for g in (*self.hand_heads(), *self.hand_posterior(form))]
        names, parameters = zip(*self.vae.named_parameters(), strict=True)
        found = torch.autograd.grad(outputs, parameters, grads)
        return dict(zip(names, found, strict=True))


def _program_and_data(case: Case) -> tuple[VAE, Tensor]:
    digits = load("digits", binarize="dynamic" if case.likelihood == "bernoulli" else "none")
    x = digits.train.batch(slice(0, BATCH_SIZE), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    vae = build_program(case.likelihood)
    return vae.to(case.device, case.dtype), x.to(case.device, case.dtype)


def _estimator(elbo: type[Trace_ELBO], num_particles: int) -> Trace_ELBO:
    return elbo(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)


def _noise(case: Case, seed: int) -> Tensor:
    seed_noise(seed, case.device)  # Pyro's guide samples these numbers from the same seed
    return torch.randn(case.num_particles, BATCH_SIZE, LATENT_DIM, dtype=case.dtype, device=case.device)


def _pyro(vae: Program, x: Tensor, estimator: Trace_ELBO, seed: int) -> tuple[float, dict[str, Tensor]]:
    """Return Pyro's loss and its gradient in every parameter."""
    for parameter in vae.parameters():
        parameter.grad = None
    with own_store(vae):
        seed_noise(seed, x.device)
        loss = estimator.loss_and_grads(vae.model, vae.guide, x)
    missing = torch.tensor(math.nan)  # a missing gradient is a mismatch, not a zero
    return float(loss), {n: missing if p.grad is None else p.grad.clone() for n, p in vae.named_parameters()}


@torch.no_grad()
def _pyro_per_example(vae: Program, x: Tensor, num_particles: int, form: str, seed: int) -> Tensor:
    """Return the ELBO of each example, (B,), from the log densities at the sites of Pyro's traces."""
    with own_store(vae):
        seed_noise(seed, x.device)
        guide_trace, model_trace = trace_program(vae, x, num_particles)
    guide, model = dict(sample_sites(guide_trace)), dict(sample_sites(model_trace))
    q, p, z = guide["z"]["fn"], model["z"]["fn"], guide["z"]["value"]
    kl: Tensor = kl_divergence(q, p) if form == "closed" else q.log_prob(z) - p.log_prob(z)
    elbo: Tensor = (model["x"]["fn"].log_prob(x) - kl).mean(0)
    return elbo


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / abs(reference)


def _worst(values: dict[str, Tensor], references: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest error, relative to the largest entry of its reference tensor, and that tensor's name."""
    errors = {}
    for name, reference in references.items():
        size = reference.abs().max().item()
        errors[name] = (values[name] - reference).abs().max().item() / size if size else math.nan
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[worst], worst
