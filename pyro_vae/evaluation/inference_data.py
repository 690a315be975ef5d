"""Draws, log-densities and weights of held-out examples for ArviZ: labelled groups in one netCDF file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray
from torch import Tensor

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.files import atomic_write
from pyro_vae.base.statistics import chunk_sizes
from pyro_vae.base.version import __version__
from pyro_vae.data import Given
from pyro_vae.elbo.draw import draw_particles
from pyro_vae.evaluation.chunking import fitting
from pyro_vae.evaluation.methods.arviz import ArvizData, to_arviz, write_netcdf
from pyro_vae.evaluation.methods.psis import pareto_k
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.subject import Subject, look_at
from pyro_vae.program.contexts import evaluating
from pyro_vae.program.predictive import decode, sample_prior

Arrays = dict[str, Tensor]
Groups = dict[str, xarray.Dataset]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the file for ArviZ.

    Args:
        num_examples: number of held-out examples.
        num_draws: draws of q per example, and of the prior.
        num_predictive: samples of x per example, and of the prior; images make a file large.
    """

    num_examples: int = 100
    num_draws: int = 1000
    num_predictive: int = 20

    def __post_init__(self) -> None:
        for name, least in {"num_examples": 2, "num_draws": 30, "num_predictive": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} of at least {least}", getattr(self, name), f"{name}={least}")
        if self.num_predictive > self.num_draws:
            raise InputError(f"num_predictive of at most {self.num_draws}", self.num_predictive, "a larger num_draws")


def to_inference_data(
    program: object,
    data: Given,
    *,
    sizes: Sizes = Sizes(),  # frozen
    device: str | torch.device = "auto",
    seed: int = 0,
    draws_at_once: int = EvaluationOptions.draws_at_once,
    vectorize_particles: bool = True,
    about: Mapping[str, str] | None = None,
) -> ArvizData:
    r"""Return draws, log-densities and weights of held-out examples: ``InferenceData`` (0.x) or a ``DataTree`` (1.x).

    ====================  =======================================================================================
    prior                 latents z ~ p(z), (chain, draw, \*site)
    posterior             latents z ~ q(z|x), (chain, draw, example, \*site): independent samples of q, not of p(z|x)
    prior_predictive      x ~ p(x|z) at the prior's first draws, (chain, draw, \*x)
    posterior_predictive  x ~ p(x|z) at the posterior's first draws, (chain, draw, example, \*x)
    log_likelihood        log p(x|z) at the posterior's draws, (chain, draw, example), nats
    sample_stats          log_weight, log p(x, z) − log q(z|x), (chain, draw, example); k_hat, (example)
    observed_data         x, (example, \*x)
    constant_data         label, (example), if there are labels
    ====================  =======================================================================================

    A latent site ``z`` of one dimension has the dimension ``z_dim``; of several, ``z_dim_0``, ``z_dim_1``, ...;
    ``example`` is the index in ``data``. The examples are those that :func:`pyro_vae.evaluate` takes first with the
    same seed. Where the model looks at x, ``posterior_predictive`` is left out, and what depends on the prior is by the
    program's ``simulate`` or left out, too; the attribute ``left_out`` says why.

    Args:
        program: as for :func:`pyro_vae.evaluate`.
        data: held-out examples of x alone.
        sizes: numbers of examples and draws.
        device: ``auto`` (CUDA where present), ``cpu`` or ``cuda``.
        seed: fixes binarization, subset and noise.
        draws_at_once: as for :func:`pyro_vae.evaluate`; bounds memory.
        vectorize_particles: as for :func:`pyro_vae.evaluate`.
        about: more attributes of the file.

    Example:
        >>> from pyro_vae import VAE
        >>> x = torch.bernoulli(torch.full((10, 6), 0.3))
        >>> sizes = Sizes(num_examples=5, num_draws=40)
        >>> found = to_inference_data(VAE((6,), latent_dim=2), x, sizes=sizes, device="cpu")
        >>> dict(found.posterior["z"].sizes)
        {'chain': 1, 'draw': 40, 'example': 5, 'z_dim': 2}
    """
    options = EvaluationOptions(draws_at_once=draws_at_once, vectorize_particles=vectorize_particles)
    subject = look_at(program, data, None, resolve_device(device), seed, options)
    attributes = {
        **(about or {}),
        "pixels": subject.pixels,
        "likelihood": subject.likelihood,
        "seed": seed,
        "note": "posterior: independent samples of q(z|x), not of p(z|x); sample_stats.log_weight corrects for that",
        "inference_library": "pyro-ppl",
        "creation_library": "pyro_vae",
        "creation_library_version": __version__,
        "left_out": json.dumps(left_out(subject)),
        "fingerprint": json.dumps(dict(subject.fingerprint)),
    }
    return to_arviz(groups(subject, sizes), attributes)


def left_out(subject: Subject) -> dict[str, str]:
    """Return why groups of the file are left out, by name."""
    found = subject.capabilities
    reasons = {
        "prior": found.no_simulated_latents,
        "prior_predictive": found.no_simulation,
        "posterior_predictive": found.no_decoding,
    }
    return {name: why for name, why in reasons.items() if why}


def save_netcdf(path: str | Path, found: ArvizData) -> None:
    """Write what :func:`to_inference_data` returned to a file for ``arviz.from_netcdf``, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(Path(path).expanduser(), parents=True) as partial:
        write_netcdf(partial, found)


@torch.no_grad()
def groups(subject: Subject, sizes: Sizes) -> Groups:
    """Return the groups as xarray datasets."""
    x = subject.alone[: sizes.num_examples]
    missing = left_out(subject)
    example = subject.index[: len(x)].numpy()
    event = _dims("x", x.shape[1:])
    with evaluating(subject.program, x.device, subject.seed):
        posterior, log_likelihood, log_weight = _posterior(subject, x, sizes.num_draws)
        simulated = {} if "prior_predictive" in missing else _simulated(subject, x, sizes)
        predicted = {} if "posterior_predictive" in missing else _predicted(subject, x, posterior, sizes.num_predictive)
    result = {
        "posterior": _dataset(posterior, ("draw", "example"), example),
        **{name: _dataset(arrays, ("draw",), example) for name, arrays in simulated.items() if name not in missing},
        **{name: _dataset(arrays, ("draw", "example"), example) for name, arrays in predicted.items()},
        "log_likelihood": _dataset({"x": log_likelihood}, ("draw", "example"), example),
        "sample_stats": _dataset({"log_weight": log_weight}, ("draw", "example"), example),
        "observed_data": xarray.Dataset({"x": (("example", *event), x.cpu().numpy())}, {"example": example}),
    }
    result["sample_stats"]["k_hat"] = ("example", pareto_k(log_weight).cpu().numpy())
    if subject.labels is not None:
        labels = subject.labels[: len(x)].cpu().numpy()
        result["constant_data"] = xarray.Dataset({"label": ("example", labels)}, {"example": example})
    return result


def _posterior(subject: Subject, x: Tensor, draws: int) -> tuple[Arrays, Tensor, Tensor]:
    """Sample q: latents (K, B, *event), log p(x|z) and log w, (K, B)."""
    program, pieces = subject.program, []
    for count in chunk_sizes(draws, fitting(subject.options.draws_at_once, len(x))):
        draw = draw_particles(program, x, count, vectorize_particles=subject.options.vectorize_particles)
        shape = (draw.num_particles, len(x))
        latents = {n: draw.drawn[n].expand(*shape, *latent.shape).cpu() for n, latent in subject.latents.items()}
        pieces.append((latents, draw.terms))
    posterior = {name: torch.cat([latents[name] for latents, _ in pieces]) for name in subject.latents}
    log_likelihood = torch.cat([terms.log_px_z for _, terms in pieces]).cpu()
    return posterior, log_likelihood, torch.cat([terms.log_weight for _, terms in pieces]).cpu()


def _simulated(subject: Subject, x: Tensor, sizes: Sizes) -> dict[str, Arrays]:
    """Simulate latents and x, a first dimension of draws."""
    made = sample_prior(subject.program, x.new_zeros((sizes.num_draws, *x.shape[1:])))
    return {"prior": made.latents, "prior_predictive": {"x": made.sample[: sizes.num_predictive]}}


def _predicted(subject: Subject, x: Tensor, posterior: Arrays, draws: int) -> dict[str, Arrays]:
    """Sample x at the first draws of q, (draws, B, *event_shape)."""
    at = [{name: z[k].to(x.device) for name, z in posterior.items()} for k in range(draws)]
    drawn = [decode(subject.program, latents, x).sample for latents in at]
    return {"posterior_predictive": {"x": torch.stack(drawn)}}


def _dataset(arrays: Mapping[str, Tensor], leading: tuple[str, ...], example: npt.NDArray[np.int64]) -> xarray.Dataset:
    """Return a dataset of arrays with these leading dimensions, after a dimension of one chain."""
    variables = {
        name: (("chain", *leading, *_dims(name, value.shape[len(leading) :])), value[None].numpy())
        for name, value in arrays.items()
    }
    count = len(next(iter(arrays.values())))
    coordinates: dict[str, list[int] | npt.NDArray[np.int64]] = {"chain": [0], "draw": np.arange(count)}
    for name, value in arrays.items():
        shape = value.shape[len(leading) :]
        coordinates |= {dim: np.arange(size) for dim, size in zip(_dims(name, shape), shape, strict=True)}
    return xarray.Dataset(variables, coordinates | ({"example": example} if "example" in leading else {}))


def _dims(name: str, shape: tuple[int, ...]) -> list[str]:
    return [f"{name}_dim"] if len(shape) == 1 else [f"{name}_dim_{i}" for i in range(len(shape))]
