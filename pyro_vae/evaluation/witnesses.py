"""The parts of the card that do not rest on weights of q alone: annealing, the prior, HMC, and a q for every datum."""

from typing import Any

import torch

from pyro_vae.evaluation.annealing import annealed_log_evidence, bidirectional
from pyro_vae.evaluation.bounds import LOCAL_TRUST
from pyro_vae.evaluation.card import NATS, Entry, over_data, share
from pyro_vae.evaluation.evidence import prior_log_evidence
from pyro_vae.evaluation.gaps import FAMILIES, inference_gaps
from pyro_vae.evaluation.hmc import MAX_DIMENSIONS, posterior_log_evidence
from pyro_vae.evaluation.part import Part
from pyro_vae.evaluation.resuming import Values
from pyro_vae.evaluation.subject import Subject

R_HAT_LIMIT = 1.05
FEW = 10  # data that are annealed together


def gaps(subject: Subject, where: slice, seed: int) -> Values:
    """Approximation and amortization gap, (B,), for each family of local q; log p(x) from the richest one's weights."""
    x = subject.x[where]
    found = {
        family: inference_gaps(
            subject.program, x, torch.zeros(len(x)), family, max_steps=subject.options.gap_steps, seed=seed
        )
        for family in FAMILIES
    }
    values: Values = {"local_evidence": found["flow"].local_evidence}
    for family, of_family in found.items():
        values[f"approximation_{family}"] = values["local_evidence"] - of_family.local_elbo
        values[f"amortization_{family}"] = of_family.amortization
        values[f"converged_{family}"] = of_family.converged
    return values


def gap_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) from local flows, and log p(x) − ELBO in two, for each family."""
    how = f"1000 draws of a flow fitted to every datum; {subject.pixels}"
    entries = [over_data("local_evidence", "log p(x), local q", values["local_evidence"], NATS, how, LOCAL_TRUST)]
    trust = (
        "log p(x) is that of the local flow: where it is too low so is the approximation gap; "
        "where the optimisation falls short it is too large, and the amortization gap too small"
    )
    for family in FAMILIES:
        stopped = int((~values[f"converged_{family}"]).sum())
        more = f"; {stopped} data stopped after {subject.options.gap_steps} steps" if stopped else ""
        for kind, of in (("approximation", "what the family cannot do"), ("amortization", "what the encoder does not")):
            label, how = f"{kind} gap, {family} q", f"a local {family} q for every datum: {of}{more}"
            entries.append(over_data(f"{kind}_{family}", label, values[f"{kind}_{family}"], NATS, how, trust))
    return entries


def annealing(subject: Subject, where: slice, seed: int) -> Values:
    """Log p(x) by annealing from the prior, (B,), and how often its moves are accepted."""
    found = annealed_log_evidence(subject.program, subject.x[where], seed=seed, **_settings(subject))
    assert found.acceptance is not None
    return {"annealed": found.value, "annealed_error": found.standard_error, "acceptance": found.acceptance}


def annealing_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) by annealed importance sampling."""
    trust = "from below: few temperatures make it too low; the sandwich says by how much, on the model's own data"
    how = f"{_chains(subject)}; {values['acceptance'].mean():.0%} accepted; {subject.pixels}"
    return [over_data("annealed", "log p(x), AIS", values["annealed"], NATS, how, trust)]


def sandwich(subject: Subject, where: slice, seed: int) -> Values:
    """Lower and upper bound of log p(x), (B,), for data that the model makes."""
    found = bidirectional(subject.program, subject.x[where], seed=seed, **_settings(subject))
    return {"lower": found.lower.value, "upper": found.upper.value}


def sandwich_entries(subject: Subject, values: Values) -> list[Entry]:
    """Both sides, and their distance."""
    how = f"simulated data; {_chains(subject)}, tuned before"
    trust = "of the model's own data; on held-out data annealing may be less accurate than the width says"
    return [
        over_data("sandwich_lower", "log p(x) of own data, lower", values["lower"], NATS, f"forward; {how}", trust),
        over_data("sandwich_upper", "log p(x) of own data, upper", values["upper"], NATS, f"reverse; {how}", trust),
        over_data("sandwich_width", "width of the sandwich", values["upper"] - values["lower"], NATS, how, trust),
    ]


def prior(subject: Subject, where: slice, seed: int) -> Values:
    """Log p(x) from draws of the prior, (B,)."""
    k = subject.options.num_particles
    return {"from_prior": prior_log_evidence(subject.program, subject.x[where], num_particles=k, seed=seed).value}


def prior_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) by sampling the prior."""
    how = f"{subject.options.num_particles} draws of p(z); {subject.pixels}"
    trust = "shown to say why q is needed: hardly a draw of the prior resembles x, so that it is far too low"
    return [over_data("from_prior", "log p(x), prior alone", values["from_prior"], NATS, how, trust)]


def hmc(subject: Subject, where: slice, seed: int) -> Values:
    """Log p(x) from samples of the posterior, (B,)."""
    count = subject.options.hmc_samples
    found = posterior_log_evidence(subject.program, subject.x[where], num_samples=count, warmup_steps=count, seed=seed)
    values = {"from_posterior": found.value, "from_posterior_error": found.standard_error}
    return values if found.r_hat is None else {**values, "r_hat": found.r_hat}


def hmc_entries(subject: Subject, values: Values) -> list[Entry]:
    """Log p(x) by AEVB's Appendix D."""
    trust = "from above, and wrong where the posterior has modes that the sampler does not find"
    how = f"NUTS, 20 chains of {subject.options.hmc_samples} samples a datum; {subject.pixels}"
    entries = [over_data("from_posterior", "log p(x), HMC", values["from_posterior"], NATS, how, trust)]
    if "r_hat" in values:
        mixed = "chains of a datum that have not mixed: neither its value nor its error can be trusted"
        unmixed = ~(values["r_hat"] <= R_HAT_LIMIT)
        entries.append(share("unmixed_posterior", f"R-hat > {R_HAT_LIMIT}", unmixed, how, mixed))
    unsure = ~(values["from_posterior_error"] <= 1)  # an error that is no number is unsure, too
    if unsure.any():
        entries.append(
            share("unsure_posterior", "HMC unsure by > 1 nat", unsure, "own standard error of a datum", trust)
        )
    return entries


def paired_entries(found: dict[str, Values]) -> list[tuple[str, Entry]]:
    """Return what two estimates of log p(x) of the same data differ by, with the part that each belongs to."""
    entries = []
    for part, name, label in PAIRED:
        if part in found and "importance" in found:
            there = found["importance"]["log_evidence"]
            n = min(len(there), len(found[part][name]))
            difference = found[part][name][:n].double() - there[:n]
            entries.append((part, over_data(f"{name}_paired", label, difference, NATS, "the same data, paired")))
    return entries


PAIRED = (
    ("gaps", "local_evidence", "local q − L_K"),
    ("annealing", "annealed", "AIS − L_K"),
    ("prior", "from_prior", "prior alone − L_K"),
    ("hmc", "from_posterior", "HMC − L_K"),
)


def _settings(subject: Subject) -> dict[str, Any]:
    return {"chains": subject.options.annealing_chains, "temperatures": subject.options.annealing_temperatures}


def _chains(subject: Subject) -> str:
    return f"{subject.options.annealing_chains} chains of {subject.options.annealing_temperatures} temperatures"


def _continuous(subject: Subject) -> str:
    return "" if subject.continuous else "Expected continuous latents, which gradients move; got discrete ones"


def _few_dimensions(subject: Subject) -> str:
    if subject.latent_dims > MAX_DIMENSIONS:
        return f"Expected at most {MAX_DIMENSIONS} latent dimensions for HMC's density; got {subject.latent_dims}"
    return _continuous(subject)


GAPS = Part(
    what="approximation and amortization gap, by a local q for every datum",
    count=lambda subject: subject.options.gap_data,
    chunk=lambda subject: 50,
    work=gaps,
    entries=gap_entries,
    options=("gap_steps",),
    per_datum=True,
    refuses=_continuous,
)
ANNEALING = Part(
    what="log p(x) by annealed importance sampling",
    count=lambda subject: subject.options.annealing_data,
    chunk=lambda subject: FEW,
    work=annealing,
    entries=annealing_entries,
    options=("annealing_chains", "annealing_temperatures"),
    per_datum=True,
    refuses=_continuous,
)
SANDWICH = Part(
    what="log p(x) of simulated data between two bounds, by bidirectional Monte Carlo",
    count=lambda subject: subject.options.sandwich_data,
    chunk=lambda subject: FEW,
    work=sandwich,
    entries=sandwich_entries,
    options=("annealing_chains", "annealing_temperatures"),
    refuses=_continuous,
)
PRIOR = Part(
    what="log p(x) by sampling the prior",
    count=lambda subject: subject.options.prior_data,
    chunk=lambda subject: 50,
    work=prior,
    entries=prior_entries,
    options=("num_particles",),
    per_datum=True,
)
HMC = Part(
    what="log p(x) from samples of the posterior, by Pyro's NUTS",
    count=lambda subject: subject.options.hmc_data,
    chunk=lambda subject: FEW,
    work=hmc,
    entries=hmc_entries,
    options=("hmc_samples",),
    per_datum=True,
    refuses=_few_dimensions,
)
