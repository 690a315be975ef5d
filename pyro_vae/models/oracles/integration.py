"""log p(x) by quadrature and by enumeration."""

import math

import torch
from torch import Tensor

from pyro_vae.base.batch import tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.program.contexts import own_store
from pyro_vae.program.explain import explained
from pyro_vae.program.joint import MAX_STATES, Joint
from pyro_vae.program.protocol import Program

ELEMENTS_AT_ONCE = 2**22  # nodes times examples times dimensions; bounds memory
MAX_NODES = 2**23


@torch.no_grad()
def log_evidence_by_enumeration(program: Program, x: Tensor, max_states: int = MAX_STATES) -> Tensor:
    r"""Return :math:`\log p(x) = \log \sum_z p(x, z)`, (B,), nats, exactly, for any program of discrete latents.

    The support of one latent must not depend on another latent.

    Args:
        program: the program.
        x: a batch, (B, *event_shape), on the program's device.
        max_states: the largest number of joint states.

    Raises:
        InputError: a continuous latent, or more joint states.

    Example:
        >>> import torch
        >>> from pyro_vae.models.oracles import GaussianMixture, log_evidence_by_enumeration
        >>> mixture = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
        >>> x = mixture.simulate(5)
        >>> torch.allclose(log_evidence_by_enumeration(mixture, x), mixture.log_evidence(x))
        True
    """
    with own_store(program), explained("that runs on latents (states, 1, ...) with x (examples, ...)"):
        joint = Joint(program, x)
        states = joint.states(max_states)
        count = len(next(iter(states.values())))
        chunk = max(1, ELEMENTS_AT_ONCE // x.numel())
        parts = [{n: v[i : i + chunk] for n, v in states.items()} for i in range(0, count, chunk)]
        return torch.stack([joint.at(part).log_joint.logsumexp(0) for part in parts]).logsumexp(0)


@torch.no_grad()
def log_evidence_by_quadrature(
    program: Program, x: Tensor, tolerance: float = 1e-8, max_nodes: int = MAX_NODES
) -> Tensor:
    r"""Return :math:`\log p(x) = \log \int p(x, z)\, dz`, (B,), nats, for any program of one or two latent dimensions.

    The trapezoidal rule on a grid over :math:`[-L, L]^n` in unconstrained latents, which for a smooth integrand
    converges faster than any power of the spacing h. L doubles until the outermost eighth of the grid contains less
    than ``tolerance``/100 of the integral; h halves until two grids agree within ``tolerance`` for every example. The
    finer grid's value is returned; its error is far smaller than the difference. (Gauss-Hermite rules suit a prior
    times a polynomial and converge slowly for a posterior much narrower than the prior.)

    The rule can miss a peak that lies between all nodes: one much narrower than 1/16 of the prior's scale, on top of a
    broad density.

    Args:
        program: the program, in float64.
        x: a batch, (B, *event_shape), float64, on the program's device.
        tolerance: in nats.
        max_nodes: the largest number of nodes of one grid.

    Raises:
        InputError: more than two latent dimensions, a discrete latent, single precision, or no agreement within
            ``max_nodes``.

    Example:
        >>> from pyro_vae.models.oracles import LinearGaussian, log_evidence_by_quadrature
        >>> oracle = LinearGaussian(data_dim=3, latent_dim=2)
        >>> x = oracle.simulate(4)
        >>> bool((log_evidence_by_quadrature(oracle, x) - oracle.log_evidence(x)).abs().max() < 1e-8)
        True
    """
    kinds = {t.dtype for t in (x, *program.parameters()) if t.is_floating_point()}
    if kinds != {torch.float64}:
        got = ", ".join(sorted(map(str, kinds)))
        raise InputError("program and data in float64", got, "program.double() and x.double()")
    with own_store(program), explained("that runs on latents (nodes, 1, ...) with x (examples, ...)"):
        joint = Joint(program, x)
        if not 1 <= joint.size <= 2:
            raise InputError(
                "one or two latent dimensions", joint.size, "annealed_log_evidence, or importance sampling"
            )
        return _converged(joint, tolerance, max_nodes)


def _converged(joint: Joint, tolerance: float, max_nodes: int) -> Tensor:
    half_width, halves, previous = 8.0, 64, None  # halves: intervals from the centre to an end
    while (2 * halves + 1) ** joint.size <= max_nodes:
        total, edge = _on_grid(joint, half_width, halves)
        if ((edge - total) > math.log(tolerance / 100)).any():
            half_width, halves, previous = 2 * half_width, 2 * halves, None
            continue
        if previous is not None and bool(((total - previous).abs() <= tolerance).all()):
            return total
        previous, halves = total, 2 * halves
    raise InputError(
        f"an integral that settles within {tolerance:g} nats on {max_nodes} nodes",
        f"none on the last grid, half-width {half_width:g}",
        "fewer examples at once, a larger max_nodes or tolerance, or a less peaked likelihood",
    )


def _on_grid(joint: Joint, half_width: float, halves: int) -> tuple[Tensor, Tensor]:
    """Return the log of the integral over the grid, and of its part in the outermost eighth, (B,) each."""
    x, side, size = tensors_of(joint.x)[0], 2 * halves + 1, joint.size
    spacing = half_width / halves
    totals, edges = [], []
    for part in torch.arange(side**size, device=x.device).split(max(1, ELEMENTS_AT_ONCE // x.numel())):
        index = torch.stack([part // side**axis % side for axis in range(size)], -1) - halves
        log_joint = joint.of_unconstrained((index.to(x.dtype) * spacing).unsqueeze(1)).log_joint
        outer = index.abs().amax(-1, keepdim=True) > 0.875 * halves
        totals.append(log_joint.logsumexp(0))
        edges.append(log_joint.masked_fill(~outer, -math.inf).logsumexp(0))
    log_volume = size * math.log(spacing)
    return torch.stack(totals).logsumexp(0) + log_volume, torch.stack(edges).logsumexp(0) + log_volume
