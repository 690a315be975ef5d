"""What the bound and its gradient are, from Pyro's traces alone, one particle at a time.

``pyro.infer.Trace_ELBO`` is the reference of the ELBO. ``pyro.infer.RenyiELBO`` with α = 0 is that of the
importance-weighted bound where every site is reparameterized; for others its gradient lacks the score term, its weights
are tempered by a plate's scale, and it counts a latent that the examples share once for each. :class:`Witness` has
these right, and equals it elsewhere.
"""

import math
from functools import reduce

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import torch_backward
from pyro.poutine.util import prune_subsample_sites, site_is_subsample


def run(users, held):
    """Run guide and model once; return their sample sites with log-densities and score parts.

    Latents and plates take what ``held`` has, and plates leave there the examples that they draw: a mean over particles
    is one of the same examples.
    """
    guide = poutine.trace(poutine.replay(users.guide, trace=held)).get_trace(*users.args, **users.kwargs)
    given = guide.copy()
    given.nodes.update({name: site for name, site in held.nodes.items() if name not in guide})
    model = poutine.trace(poutine.replay(users.model, trace=given)).get_trace(*users.args, **users.kwargs)
    drawn = {**model.nodes, **guide.nodes}
    held.nodes.update({n: s for n, s in drawn.items() if s["type"] == "sample" and site_is_subsample(s)})
    guide, model = prune_subsample_sites(guide), prune_subsample_sites(model)
    guide.compute_score_parts()
    model.compute_log_prob()
    return [[s for s in trace.nodes.values() if s["type"] == "sample"] for trace in (guide, model)]


def shared_scale(sites):
    """The scale of all sites if they have one, else 1: then scales are weights inside the bound."""
    scales = {float(torch.as_tensor(site["scale"])) for site in sites}
    return scales.pop() if len(scales) == 1 else 1.0


def kept_dims(sites):
    """Dimensions of plates in which all sites have one density for each member; the others are summed."""
    plates = [{frame.name: frame.dim for frame in s["cond_indep_stack"] if frame.vectorized} for s in sites]
    common = reduce(lambda left, right: dict(left.items() & right.items()), plates) if plates else {}
    return {dim for dim in common.values() if len({size(s["log_prob"], dim) for s in sites}) == 1}


def size(tensor, dim):
    return tensor.shape[dim] if tensor.dim() >= -dim else 1


def summed(tensor, kept):
    """Sum over all dimensions that are not kept."""
    if is_identically_zero(tensor):
        return torch.zeros(())
    dims = [dim for dim in range(-tensor.dim(), 0) if dim not in kept]
    return tensor.sum(dims, keepdim=True) if dims else tensor


def is_factor(site):
    """``pyro.factor``: a term of the loss, whose derivative is its own."""
    return isinstance(site["fn"], pyro.distributions.Unit)


class Witness:
    """The importance-weighted bound, or with ``elbo`` the ELBO: total derivative and score term of every site.

    A score is weighted by the whole bound of its example, minus a constant: the mean of other draws. Where a network
    mixes the examples, ``mixed``, it is weighted by the bound of all of them.
    """

    def __init__(self, num_particles, elbo=False, mixed=False):
        self.num_particles, self.elbo, self.mixed = num_particles, elbo, mixed
        self.baseline = None

    def bound(self, users):
        log_w, score, scale = self.particles(users)
        if self.baseline is None:
            self.baseline = self.mean(users)
        if self.elbo:
            return scale * log_w.mean(0).sum(), scale * self.surrogate(log_w, score).sum() / self.num_particles
        bound = log_w.logsumexp(0) - math.log(self.num_particles)
        return scale * bound.sum(), scale * self.surrogate(bound, score.sum(0)).sum()

    def surrogate(self, bound, score):
        signal = (bound - self.baseline).detach()
        if self.mixed:
            return bound.sum() + (signal.flatten(-1).sum(-1) * score.flatten(-1).sum(-1)).sum()
        return bound + signal * score

    @torch.no_grad()
    def mean(self, users, draws=30):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = [self.particles(users)[0].logsumexp(0) - math.log(self.num_particles) for _ in range(draws)]
            return torch.stack(found).mean(0)

    def particles(self, users):
        """Return log w and the sum of the score parts, (K, *kept), and the scale outside the bound."""
        subsamples = poutine.Trace()
        found = (self.particle(users, subsamples) for _ in range(self.num_particles))
        log_w, score, scale = zip(*found, strict=True)
        return torch.stack(log_w), torch.stack(score), scale[0]

    def particle(self, users, subsamples):
        guide, model = run(users, subsamples)
        kept, scale = self.kept([*guide, *model]), shared_scale([*guide, *model])
        log_p = sum(summed(s["log_prob"], kept) for s in model)
        log_q = sum((summed(s["log_prob"], kept) for s in guide), torch.zeros(()))
        log_w = (log_p - log_q) / scale
        return log_w, self.score(guide, kept) + torch.zeros_like(log_w), scale

    def kept(self, sites):
        return kept_dims(sites)

    def score(self, guide, kept):
        parts = [s["score_parts"].score_function for s in guide if not (is_factor(s) and s["fn"].has_rsample)]
        return sum((summed(part, kept) for part in parts), torch.zeros(()))

    def loss(self, model, guide, *args, **kwargs):
        return -float(self.bound(Call(model, guide, args, kwargs))[0].detach())

    def loss_and_grads(self, model, guide, *args, **kwargs):
        bound, surrogate = self.bound(Call(model, guide, args, kwargs))
        torch_backward(-surrogate)
        return -float(bound.detach())


class LocalWitness(Witness):
    """Weights of each example's own, by particles that share one draw of the latents outside its plate, "data"."""

    def bound(self, users):
        shared, log_w, shared_score, score, scale = self.given_one_draw(users)
        bounds = log_w.logsumexp(0) - math.log(self.num_particles)
        bound = shared + scale * bounds.sum()
        if self.baseline is None:
            self.baseline = self.mean(users)
        signal, signals = ((found - base).detach() for found, base in zip((bound, bounds), self.baseline, strict=True))
        return bound, bound + signal * shared_score + scale * (signals * score.sum(0)).sum()

    @torch.no_grad()
    def mean(self, users, draws=30):
        """The mean of other draws: of the whole bound, and of each example's."""
        whole, each = [], []
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for _ in range(draws):
                shared, log_w, _, _, scale = self.given_one_draw(users)
                each.append(log_w.logsumexp(0) - math.log(self.num_particles))
                whole.append(shared + scale * each[-1].sum())
        return torch.stack(whole).mean(0), torch.stack(each).mean(0)

    def given_one_draw(self, users):
        """Return what global sites add, log w (K, *kept), the scores of both, and the scale of the local sites."""
        held = poutine.Trace()
        first = run(users, held)
        runs = [first, *(run(users, held_of(first, held)) for _ in range(self.num_particles - 1))]
        local = [[[site for site in sites if in_data(site)] for sites in each] for each in runs]
        outside = [[site for site in sites if not in_data(site)] for sites in first]
        scale, none = shared_scale([site for sites in local[0] for site in sites]), torch.zeros(())
        kept = {f.dim for sites in local[0] for site in sites for f in site["cond_indep_stack"] if f.name == "data"}
        log_w = [sum((summed(s["log_prob"], kept) for s in p), none) / scale for _, p in local]
        log_q = [sum((summed(s["log_prob"], kept) for s in q), none) / scale for q, _ in local]
        shared = [sum((s["log_prob"].sum() for s in sites), none) for sites in outside]
        score = [self.score(q, kept) + torch.zeros_like(log_w[0]) for q, _ in local]
        log_w = torch.stack([p - q for p, q in zip(log_w, log_q, strict=True)])
        return shared[1] - shared[0], log_w, self.score(outside[0], set()).sum(), torch.stack(score), scale


def in_data(site):
    return "data" in {frame.name for frame in site["cond_indep_stack"]}


def held_of(sites, trace):
    """A trace of the latents outside the plate of the examples, to replay."""
    trace.nodes.update({s["name"]: s for s in sites[0] if not in_data(s) and not s["is_observed"]})
    return trace


class Call:
    def __init__(self, model, guide, args, kwargs):
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs


def seeded(seed, function, *args):
    torch.manual_seed(seed)
    return function(*args)


def sampled(estimator, users, draws):
    """Return name -> its draws, (draws,), one seed each: the loss, and each parameter's gradient in one direction."""
    seeded(0, users.call, estimator.loss)  # makes the pyro.params that are not there yet
    found = [seeded(seed, step, estimator, users) for seed in range(draws)]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def step(estimator, users):
    parameters = dict(pyro.get_param_store().named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    loss = torch.tensor(users.call(estimator.loss_and_grads))
    return {"loss": loss, **{name: along(p) for name, p in parameters.items()}}


def along(parameter):
    """The gradient's projection on one direction, the same in every call."""
    if parameter.grad is None:
        return torch.zeros(())
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    return (parameter.grad * direction).sum()


def assert_same_means(found, reference, standard_errors=5.0, tolerance=1e-9):
    """Assert for each name that paired differences have mean 0 within standard errors; without noise they are 0.

    Pairs share their seed: where both take the same noise the differences are rounding, and any other is an error.
    """
    assert found.keys() == reference.keys(), f"{sorted(found)}, reference {sorted(reference)}"
    wrong = [
        f"{name}: mean {float(found[name].mean()):.6g}, reference {float(reference[name].mean()):.6g}"
        for name in found
        if not same_mean(found[name] - reference[name], standard_errors, tolerance * (1 + reference[name].abs().max()))
    ]
    assert not wrong, "; ".join(wrong)


def same_mean(difference, standard_errors, tolerance):
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean().abs() <= standard_errors * error + tolerance)
