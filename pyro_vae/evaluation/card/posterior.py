"""The part of the card on posterior samples: AEVB's Appendix D."""

from pyro_vae.evaluation.card.entry import NATS, Entry, over_data, share
from pyro_vae.evaluation.card.part import FEW, Part, continuous_only
from pyro_vae.evaluation.methods.posterior_sampling import MAX_DIMENSIONS, posterior_log_evidence
from pyro_vae.evaluation.store import Values
from pyro_vae.evaluation.subject import Subject

R_HAT_LIMIT = 1.05


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


def _few_dimensions(subject: Subject) -> str:
    if subject.latent_dims > MAX_DIMENSIONS:
        return f"Expected at most {MAX_DIMENSIONS} latent dimensions for HMC's density; got {subject.latent_dims}"
    return continuous_only(subject)


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
