"""Runs of guide and model with some values given, and how their log-densities compare: what trials are made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import PyroFunction
from pyro_vae.program.handlers import SampleMessage, Untraced
from pyro_vae.program.inside import Names, is_inside
from pyro_vae.program.protocol import Trace
from pyro_vae.program.tracing import Site, log_density, sample_sites

TOLERANCE = 1e-3  # of the largest log-density: rounding in float32 is far below, another meaning far above


@dataclass(frozen=True, eq=False)
class Ran:
    """The traces of guide and model, and the log-density of every site by its name; None where there is no inverse."""

    traces: tuple[Trace, Trace]
    densities: tuple[dict[str, Tensor | None], dict[str, Tensor | None]]
    nodes: dict[str, object]
    subsamples: dict[str, object]
    untraced: Mapping[str, SampleMessage]

    def pairs(self) -> Iterator[tuple[int, str, Site]]:
        """Yield which trace, name and record of every site."""
        for which, trace in enumerate(self.traces):
            for name, site in sample_sites(trace):
                yield which, name, site

    def given_again(self, plates: Names) -> dict[str, object]:
        """Return records to replay: the subsamples, and the latents outside the plates of these names."""
        return self.subsamples | {
            name: site for _, name, site in self.pairs() if not site["is_observed"] and not is_inside(site, plates)
        }


def close(found: Tensor, truth: Tensor) -> bool:
    """Whether two log-densities are equal but for rounding, and not finite at the same places."""
    if found.shape != truth.shape:
        return False
    finite = truth.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return False
    size = truth[finite].abs().max() if finite.any() else truth.new_zeros(())
    return bool(((found - truth)[finite].abs() <= TOLERANCE * (1e-2 + size)).all())


def shown(totals: Tensor) -> str:
    """Return a log-density as messages show it."""
    return f"{float(totals.sum()):.6g} nats"


def stacked(first: Ran, second: Ran, nesting: int, plates: Names) -> dict[str, object]:
    """Return records to replay: latents inside plates of two runs side by side, in the dimension of the particles."""
    others = [dict(sample_sites(trace)) for trace in second.traces]
    records: dict[str, object] = {}
    for which, name, site in first.pairs():
        if not site["is_observed"] and is_inside(site, plates):
            pair = [_widened(each, nesting) for each in (site, others[which][name])]
            records[name] = {**site, "value": torch.stack(pair)}
    return records


def pairs_of(first: Ran, second: Ran, nesting: int, plates: Names) -> dict[str, Tensor]:
    """Return the untraced samples inside plates of two runs side by side."""
    both = {
        name: (site, second.untraced[name])
        for name, site in first.untraced.items()
        if name in second.untraced and is_inside(cast(Site, site), plates)
    }
    return {name: torch.stack([_widened(cast(Site, s), nesting) for s in sites]) for name, sites in both.items()}


def values_of(ran: Ran) -> dict[str, Tensor]:
    """Return the untraced samples of a run."""
    return {name: cast(Site, site)["value"] for name, site in ran.untraced.items()}


def _widened(site: Site, nesting: int) -> Tensor:
    """Return a value with as many batch dimensions as the plates take up."""
    value, event = site["value"], len(site["fn"].event_shape)
    missing = nesting - (value.dim() - event)
    return value.reshape((1,) * missing + tuple(value.shape)) if missing > 0 else value


def run(
    model: PyroFunction,
    guide: PyroFunction,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    records: Mapping[str, object],
    untraced: Mapping[str, Tensor] | None = None,
) -> Ran:
    """Run guide and model, with the values of some sites given."""
    given, hidden = Trace(), Untraced(untraced)
    given.nodes.update(records)  # type: ignore[arg-type]  # records of other traces
    with hidden:
        guide_trace = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args, **kwargs)
    given.nodes.update({n: s for n, s in guide_trace.nodes.items() if s["type"] == "sample"})
    with hidden:
        model_trace = poutine.trace(poutine.replay(model, trace=given)).get_trace(*args, **kwargs)
    nodes = {n: s for t in (model_trace, guide_trace) for n, s in t.nodes.items() if s["type"] == "sample"}
    subsamples: dict[str, object] = {n: s for n, s in nodes.items() if site_is_subsample(s)}
    traces = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
    return Ran(traces, (densities_of(traces[0]), densities_of(traces[1])), dict(nodes), subsamples, hidden.seen)


def densities_of(trace: Trace) -> dict[str, Tensor | None]:
    """Return the log-density of every site by its name; None where there is no inverse."""
    return {name: _density(site) for name, site in sample_sites(trace)}


def _density(site: Site) -> Tensor | None:
    """Return the log-density of a site; None for a flow without an inverse, which scores its own samples alone."""
    try:
        return log_density(site)
    except Exception:  # whatever a transform without an inverse raises
        if _scores_a_copy(site):
            raise
        return None


def _scores_a_copy(site: Site) -> bool:
    """Whether a distribution scores a sample that it does not have in its cache, of its own batch shape."""
    try:
        with isolated_rng(site["value"].device, 0):
            sample = site["fn"].sample()
        site["fn"].log_prob(sample.clone())
    except Exception:  # see above
        return False
    return True
