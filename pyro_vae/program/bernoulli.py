"""Bernoulli latents: which sites they are, and messengers that sample them for particles that share noise.

A messenger here stands around guide and model in every run of one draw. The particles are a dimension of every site, or
runs one by one; both are told apart by their numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from pyro import poutine
from pyro.distributions import Bernoulli, MaskedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import Independent
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.handlers import SampleMessage
from pyro_vae.program.particles import at_first_use
from pyro_vae.program.tracing import sample_sites

Numbers: TypeAlias = Tensor | int  # of the particles of a run: in a plate, or one
Flag: TypeAlias = Tensor | bool


def bernoulli_of(fn: object) -> Bernoulli | None:
    """Return the Bernoulli distribution inside ``to_event`` and masks; None for any other.

    Example:
        >>> import torch
        >>> from pyro import distributions as dist
        >>> bernoulli_of(dist.Bernoulli(torch.full((2, 3), 0.5)).to_event(1)).batch_shape
        torch.Size([2, 3])
    """
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn if isinstance(fn, Bernoulli) else None


def rebuilt(fn: TorchDistribution, make: Callable[[Bernoulli], TorchDistribution]) -> TorchDistribution:
    """Return another distribution in place of the Bernoulli inside the same ``to_event`` and masks."""
    found: TorchDistribution
    if isinstance(fn, Independent):
        found = rebuilt(fn.base_dist, make).to_event(fn.reinterpreted_batch_ndims)
    elif isinstance(fn, MaskedDistribution):
        found = rebuilt(fn.base_dist, make).mask(fn._mask)
    else:
        found = make(fn)
    return found


def bernoulli_latents(
    model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> int:
    """Return how many Bernoulli latents a guide samples; it is run at its first use alone."""
    return at_first_use("bernoulli latents", _count, model, guide, args, kwargs)


def _count(model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
    trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
    return sum(not site["is_observed"] and bernoulli_of(site["fn"]) is not None for _, site in sample_sites(trace))


class Coupled(Messenger, ABC):
    """Samples the Bernoulli latents of a guide for particles that share noise; the abstract base of those below.

    Particles come in groups, each with a :meth:`leader`. :meth:`shared` gives every particle the tensor of its leader:
    within a run along the dimension of the particles, across runs from what the leader's run stored.

    Args:
        count: the number of particles.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.dim: int | None = None  # of the particles
        self.in_model = False
        self.names: list[str] = []  # of the Bernoulli latents, in the order of sampling
        self.records: list[list[Tensor]] = []  # of each run, one for each Bernoulli latent, of its batch shape
        self._stored: dict[tuple[int, str, str], Tensor] = {}

    def start(self, dim: int | None) -> None:
        """Begin a run of all particles in dimension ``dim``; of the next particle, if that is None."""
        self.dim, self.in_model, self.names = dim, False, []
        self.records.append([])

    def finish(self) -> None:
        """End the guide of a run: what follows is the model."""
        self.in_model = True

    def leader(self, particle: Numbers) -> Numbers:
        """Return the number of the particle that a particle shares noise with."""
        return particle

    @abstractmethod
    def sampled(self, msg: SampleMessage, logits: Tensor) -> Tensor:
        """Return the value of a Bernoulli latent of the guide; may replace its distribution."""

    def shares(self, particle: Numbers) -> Flag | None:
        """Return whether a particle takes another latent's value, at this point of the guide, from its leader."""
        return None

    def scored(self, msg: SampleMessage) -> None:
        """Replace the distribution of a Bernoulli latent of the model."""

    def particles(self, like: Tensor) -> Numbers:
        """Return the numbers of the particles of this run."""
        return len(self.records) - 1 if self.dim is None else torch.arange(self.count, device=like.device)

    def along(self, flag: Flag, msg: SampleMessage, like: Tensor) -> Tensor:
        """Return a flag for each particle in a shape that broadcasts over a site's values."""
        if self.dim is None:
            return torch.full((), bool(flag), device=like.device)
        return cast(Tensor, flag).reshape(-1, *(1,) * (event_dim(msg) - self.dim - 1))

    def shared(self, key: str, value: Tensor, msg: SampleMessage) -> Tensor:
        """Return a tensor, of the shape of a site's values, as the leader of each particle has it."""
        leader = self.leader(self.particles(value))
        if self.dim is not None:
            return value.index_select(value.dim() - event_dim(msg) + self.dim, cast(Tensor, leader))
        name = str(msg["name"])
        self._stored.setdefault((cast(int, leader), name, key), value)
        return self._stored[cast(int, leader), name, key]

    def record(self, msg: SampleMessage, value: Tensor) -> None:
        """Keep a tensor of the shape of a site's values, summed over the event."""
        event = tuple(range(-event_dim(msg), 0))
        self.records[-1].append(value.sum(event) if event else value)

    def _pyro_sample(self, msg: SampleMessage) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or (msg["infer"] or {}).get("_deterministic"):
            return
        if self.in_model:
            if msg["name"] in self.names:
                self.scored(msg)
        elif not msg["done"]:
            bernoulli = bernoulli_of(msg["fn"])
            if bernoulli is None:
                self._share(msg)
            else:
                _check_mark(msg)
                msg["value"], msg["done"] = self.sampled(msg, bernoulli.logits), True
                self.names.append(str(msg["name"]))

    def _share(self, msg: SampleMessage) -> None:
        value = cast(TorchDistribution, msg["fn"])(*msg["args"], **msg["kwargs"])
        which = self.shares(self.particles(value))
        if which is not None:
            value = torch.where(self.along(which, msg, value), self.shared("value", value, msg), value)
        msg["value"], msg["done"] = value, True


def event_dim(msg: SampleMessage) -> int:
    """Return the number of event dimensions of a site."""
    return len(cast(TorchDistribution, msg["fn"]).event_shape)


def uniform(like: Tensor) -> Tensor:
    """Return uniform noise in the shape of a tensor, from one rounding above 0 to one below 1."""
    eps = torch.finfo(like.dtype).eps
    return torch.rand(like.shape, dtype=like.dtype, device=like.device).clamp(eps, 1 - eps)


def _check_mark(msg: SampleMessage) -> None:
    infer = msg["infer"] or {}
    mark = infer.get("gradient") or ("enumerate" if infer.get("enumerate") else None)
    if mark is not None:
        raise marked(str(msg["name"]), mark)


def marked(name: str, mark: object) -> InputError:
    """Return the error for a Bernoulli latent with a strategy, where the estimator has its own."""
    return InputError(
        f"Bernoulli latent {name!r} without a mark (this estimator has a gradient of its own for it)",
        f"{mark!r}",
        "no mark; or sampled_kl, which takes it",
    )


class Antithetic(Coupled):
    r"""Samples T Bernoulli latents in groups of T + 1 chains: each but the first flips the noise of one of them.

    The first is :math:`b_t = 1[u_t > 1 - \sigma(\alpha_t)]`. Chain t shares with it what is sampled before the t-th
    Bernoulli latent, has :math:`1 - u_t` there, and later the same :math:`u` at logits of its own. Every chain by
    itself is a draw of the guide.

    The record of a latent is :math:`\sum_i (b_i - \tilde b_i)\, \sigma(|\alpha_i|)\, \alpha_i` at the chain that flips
    it, its weight detached, and 0 at others.
    """

    def __init__(self, count: int, latents: int) -> None:
        super().__init__(count)
        self.latents = latents

    def leader(self, particle: Numbers) -> Numbers:
        """Return the first chain of the group."""
        return particle - self.chain(particle)

    def chain(self, particle: Numbers) -> Numbers:
        """Return the number of the latent that a particle flips, from 1; 0 for the first chain."""
        return particle % (self.latents + 1)

    def shares(self, particle: Numbers) -> Flag | None:
        """Before the latent that it flips, a chain is the first one."""
        return self.chain(particle) > len(self.names) if len(self.names) < self.latents else None

    def sampled(self, msg: SampleMessage, logits: Tensor) -> Tensor:
        """Sample a latent in all chains."""
        number, chain, fixed = len(self.names) + 1, self.chain(self.particles(logits)), logits.detach()
        if number > self.latents:
            raise _unsteady(number, self.latents)
        flips, later = (self.along(each, msg, logits) for each in (chain == number, chain > number))
        noise = self.shared("noise", uniform(fixed), msg)
        value = (torch.where(flips, 1 - noise, noise) > (-fixed).sigmoid()).to(logits.dtype)
        first = self.shared("value", value, msg)
        if self.dim is None:
            _check_same(msg, self.shared("logits", fixed, msg), fixed, chain == number)
        self.record(msg, torch.where(flips, (first - value) * fixed.abs().sigmoid(), 0.0) * logits)
        return torch.where(later, first, value)

    def finish(self) -> None:
        """Refuse a guide with fewer Bernoulli latents than chains were made for."""
        super().finish()
        if len(self.names) < self.latents:
            raise _unsteady(len(self.names), self.latents)


def _unsteady(number: int, latents: int) -> InputError:
    return InputError(
        "as many Bernoulli latents of the guide at every call as at the first (there is a chain for each)",
        f"{number} in place of {latents}",
        "reinforce or sampled_kl",
    )


def _check_same(msg: SampleMessage, first: Tensor, logits: Tensor, flips: Flag) -> None:
    """Refuse a pair whose logits differ; a traced step is compared with an eager one, which looks."""
    if flips and get_proxy_mode() is None and not torch.allclose(first, logits):
        raise InputError(
            f"one value of the logits of {msg['name']!r} at the same earlier latents (a pair shares them)",
            "another in a second run: noise of the guide's own, as of dropout",
            "vectorize_particles=True, or reinforce",
        )
