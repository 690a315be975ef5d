"""The part of the card on posterior samples: AEVB's Appendix D."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.evaluation.card.entry import NATS, Entry, mean_entry, share_entry
from pyro_vae.evaluation.card.part import ANNEALED_TOGETHER, Part, continuous_only, placed, tensors_of
from pyro_vae.evaluation.methods.posterior_sampling import MAX_DIMENSIONS, posterior_log_evidence
from pyro_vae.evaluation.subject import Subject

R_HAT_LIMIT = 1.05


@dataclass(frozen=True, eq=False)
class FromPosterior:
    """log p(x) from samples of the posterior, its standard error, and R-hat of the chains, each (B,)."""

    from_posterior: Tensor
    from_posterior_error: Tensor
    r_hat: Tensor | None


def posterior(subject: Subject, where: slice, seed: int) -> FromPosterior:
    """Return log p(x) from samples of the posterior."""
    count = subject.options.hmc_samples
    found = posterior_log_evidence(subject.program, subject.x[where], num_samples=count, warmup_steps=count, seed=seed)
    return FromPosterior(found.value, found.standard_error, found.r_hat)


def posterior_entries(subject: Subject, found: FromPosterior) -> list[Entry]:
    """Return log p(x) by AEVB's Appendix D."""
    caveat = "an upper bound in expectation; wrong where the sampler misses modes of the posterior"
    how = f"NUTS, 20 chains of {subject.options.hmc_samples} samples per example; {subject.pixels}"
    entries = [mean_entry("from_posterior", "log p(x), HMC", found.from_posterior, NATS, how, caveat)]
    if found.r_hat is not None:
        mixed = "the chains of these examples have not converged: their values and errors are invalid"
        unmixed = ~(found.r_hat <= R_HAT_LIMIT)
        entries.append(share_entry("unmixed_posterior", f"R-hat > {R_HAT_LIMIT}", unmixed, how, mixed))
    unsure = ~(found.from_posterior_error <= 1)  # NaN is unsure, too
    if unsure.any():
        own = "the standard error of an example"
        entries.append(share_entry("unsure_posterior", "HMC error > 1 nat", unsure, own, caveat))
    return entries


def _few_dimensions(subject: Subject) -> str:
    if subject.latent_dims > MAX_DIMENSIONS:
        return f"Expected at most {MAX_DIMENSIONS} latent dimensions for HMC's density; got {subject.latent_dims}"
    return continuous_only(subject)


HMC = Part(
    what="log p(x) from samples of the posterior, by Pyro's NUTS",
    result=FromPosterior,
    count=lambda subject: subject.options.hmc_examples,
    chunk=lambda subject: ANNEALED_TOGETHER,
    work=posterior,
    entries=posterior_entries,
    options=("hmc_samples",),
    per_example=tensors_of,
    refuses=lambda subject: placed(subject) or _few_dimensions(subject),
)
