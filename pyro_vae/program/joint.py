"""log p(x, z) at given latents: what quadrature, enumeration and annealing evaluate."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.distributions import innermost
from pyro_vae.base.errors import InputError
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.handlers import Kind, Substitute, support_transform
from pyro_vae.program.particles import checked_nesting
from pyro_vae.program.plates import plates_of_examples, summed
from pyro_vae.program.protocol import PARTICLES, Program, Trace
from pyro_vae.program.tracing import Site, check_latents, log_density, sample_sites, total_log_prob, trace_program

MAX_STATES = 2**20


@dataclass(frozen=True, eq=False)
class JointTerms:
    """The terms of log p(x, z), each (K, B), in nats, without scales; the Jacobian is that of z = T(u)."""

    log_px_z: Tensor
    log_pz: Tensor
    log_jacobian: Tensor
    latents: Mapping[str, Tensor]  # z, by site

    @property
    def log_joint(self) -> Tensor:
        r"""Log of the density of x and of u: log p(x|z) + log p(z) + :math:`\log |\partial z / \partial u|`, (K, B)."""
        return self.log_px_z + self.log_pz + self.log_jacobian


class Joint:
    r"""log p(x, z) and log q(z|x) of a program as functions of the latents.

    Continuous latents are also available as one unconstrained vector :math:`u \in R^n`, the sites concatenated, with
    :math:`z = T(u)` by torch's ``biject_to`` of each site's support (stick-breaking for a simplex, exp for positive
    numbers, the identity for real ones) and its Jacobian. A support may depend on earlier latents.

    The plate of the examples is in dimension -1, or further plates (pixels) are inside it: their dimensions belong to
    the latents of an example, as event dimensions do.

    Use it inside :func:`~pyro_vae.program.own_store`.

    Args:
        program: the program.
        x: a batch, (B, *event_shape), or the arguments of a call, on the program's device.

    Raises:
        InputError: model and guide have different latents; no plate of the examples to the left of all others;
            particles in a plate mean something else than one by one.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> from pyro_vae.program import own_store
        >>> vae, x = VAE((4,), latent_dim=2), torch.ones(5, 4)
        >>> with own_store(vae):
        ...     joint = Joint(vae, x)
        ...     joint.size, joint.of_unconstrained(torch.zeros(3, 5, 2)).log_joint.shape
        (2, torch.Size([3, 5]))
    """

    def __init__(self, program: Program, x: Batch) -> None:
        self.program, self.x = program, x
        self._dim = -1 - checked_nesting(program.model, program.guide, *arguments(x))
        with torch.no_grad():
            guide_trace, model_trace = trace_program(program, x, num_particles=1, dim=self._dim)
        check_latents(guide_trace, model_trace)
        self._plates = plates_of_examples(guide_trace, model_trace)
        self._latents = {name: site for name, site in sample_sites(model_trace) if not site["is_observed"]}

    @property
    def event_shapes(self) -> dict[str, torch.Size]:
        """The event shape of every latent site, in the model's order."""
        return {name: site["fn"].event_shape for name, site in self._latents.items()}

    @property
    def size(self) -> int:
        """The number of unconstrained latents per example, n."""
        return sum(shape.numel() for shape in self.unconstrained_shapes.values())

    @cached_property
    def unconstrained_shapes(self) -> dict[str, torch.Size]:
        """The event shape of every site's unconstrained values.

        Raises:
            InputError: a discrete latent.
        """
        return {n: support_transform(n, s["fn"]).inv(s["value"]).shape[2:] for n, s in self._latents.items()}

    def at(self, latents: Mapping[str, Tensor]) -> JointTerms:
        """Return the densities at latents (K, B, *event) or, where all examples share them, (K, 1, *event)."""
        trace = self._placed(self.program.model, latents, "values")
        return self._terms(trace, torch.zeros((), device=self.x.device))

    def of_unconstrained(self, u: Tensor) -> JointTerms:
        """Return the densities at unconstrained latents u, (K, B, n) or (K, 1, n); differentiable in u."""
        parts = self._split(u)
        trace = self._placed(self.program.model, parts, "unconstrained")
        jacobians = [_log_jacobian(n, s, parts[n]) for n, s in sample_sites(trace) if n in parts]
        return self._terms(trace, sum(jacobians[1:], jacobians[0]))

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Return the latents z = T(u) by site, each (K, B, *event)."""
        return dict(self.of_unconstrained(u).latents)

    def unconstrain(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return u = T⁻¹(z), (K, B, n), of latents (K, B, *event)."""
        sites = dict(sample_sites(self._placed(self.program.model, latents, "values")))
        parts = [support_transform(n, sites[n]["fn"]).inv(sites[n]["value"]) for n in self._latents]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def log_q(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log q(z|x) of the guide at latents (K, B, *event), (K, B).

        Raises:
            InputError: a normalizing flow without an inverse.
        """
        trace = self._placed(self.program.guide, latents, "values")
        try:
            total = self._total([site for _, site in sample_sites(trace)])
        except (NotImplementedError, KeyError) as error:  # what torch and Pyro raise where there is no inverse
            raise InputError(
                "a guide whose density is available at any z", "a flow without an inverse", "start='prior'"
            ) from error
        return total.expand(len(next(iter(latents.values()))), len(self.x))

    def draw_prior(self, num_particles: int) -> tuple[dict[str, Tensor], Tensor]:
        """Draw K particles from p(z), each latent (K, B, *event), with their log p(x|z), (K, B)."""
        trace = self._run(self.program.model, num_particles)
        observed = [site for _, site in sample_sites(trace) if site["is_observed"]]
        drawn = {name: site["value"] for name, site in sample_sites(trace) if name in self._latents}
        return drawn, self._total(observed).expand(num_particles, len(self.x))

    def draw_guide(self, num_particles: int) -> dict[str, Tensor]:
        """Draw K particles from q(z|x), each latent (K, B, *event)."""
        trace = self._run(self.program.guide, num_particles)
        return {name: site["value"] for name, site in sample_sites(trace) if name in self._latents}

    def states(self, limit: int = MAX_STATES) -> dict[str, Tensor]:
        """Return every joint state of discrete latents, each (S, 1, *event).

        Raises:
            InputError: a latent is continuous or has infinitely many values, or there are more than ``limit`` states.
        """
        supports = {name: _values(name, site, limit) for name, site in self._latents.items()}
        count = math.prod(map(len, supports.values()))
        if count > limit:
            raise InputError(f"at most {limit} joint states of the latents", count, "importance sampling")
        index = torch.cartesian_prod(*(torch.arange(len(v), device=v.device) for v in supports.values()))
        columns = index.reshape(count, len(supports)).unbind(-1)
        return {n: v[i].unsqueeze(1) for (n, v), i in zip(supports.items(), columns, strict=True)}

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        shapes = self.unconstrained_shapes
        parts = u.split([shape.numel() for shape in shapes.values()], -1)
        return {n: part.reshape(*u.shape[:2], *shapes[n]) for n, part in zip(shapes, parts, strict=True)}

    def _run(self, function: PyroFunction, num_particles: int) -> Trace:
        plate = pyro.plate(PARTICLES, num_particles, dim=self._dim)
        args, kwargs = arguments(self.x)
        return prune_subsample_sites(poutine.trace(plate(function)).get_trace(*args, **kwargs))

    def _placed(self, function: PyroFunction, latents: Mapping[str, Tensor], kind: Kind) -> Trace:
        if latents.keys() != self._latents.keys():
            raise InputError(f"latents {sorted(self._latents)}", sorted(latents), "one tensor for each latent site")
        return self._run(Substitute(latents, kind)(function), len(next(iter(latents.values()))))

    def _terms(self, trace: Trace, log_jacobian: Tensor) -> JointTerms:
        sites = sample_sites(trace)
        observed = self._total([site for _, site in sites if site["is_observed"]])
        latent = self._total([site for _, site in sites if not site["is_observed"]])
        shape = torch.broadcast_shapes(observed.shape, latent.shape, (1, len(self.x)))
        latents = {name: site["value"] for name, site in sites if name in self._latents}
        return JointTerms(observed.expand(shape), latent.expand(shape), log_jacobian.expand(shape), latents)

    def _total(self, sites: Sequence[Site]) -> Tensor:
        """Sum the log-densities of sites to (K, B), those of plates inside the examples' too."""
        if self._dim == -2:  # one plate: there is nothing to sum
            return total_log_prob(sites)
        parts = [summed(log_density(site), self._plates, self._dim) for site in sites]
        return sum(parts[1:], parts[0]) if parts else torch.zeros(())


def _log_jacobian(name: str, site: Site, u: Tensor) -> Tensor:
    """Log |∂z/∂u| of one site, (K, B)."""
    log_jacobian: Tensor = support_transform(name, site["fn"]).log_abs_det_jacobian(u, site["value"])
    return log_jacobian.flatten(2).sum(-1) if log_jacobian.dim() > 2 else log_jacobian


def _values(name: str, site: Site, limit: int) -> Tensor:
    """Return every value of one discrete site, (S, *event)."""
    base = innermost(site["fn"])
    try:
        support = base.enumerate_support(expand=False)
    except NotImplementedError:
        kind = type(base).__name__
        raise InputError(f"a discrete latent at site {name!r}", kind, "quadrature, or importance sampling") from None
    support = support.reshape(-1, *base.event_shape)
    repeats = site["fn"].event_shape[: len(site["fn"].event_shape) - len(base.event_shape)]
    if len(support) ** repeats.numel() > limit:
        got = f"{len(support)}^{repeats.numel()}"
        raise InputError(f"at most {limit} states of latent {name!r}", got, "importance sampling")
    states = torch.tensor(list(itertools.product(range(len(support)), repeat=repeats.numel())), device=support.device)
    values: Tensor = support[states]
    return values.reshape(-1, *site["fn"].event_shape)
