"""Bounds that depend on other examples' latents, as with normalisation over a batch: what holds there, and what not."""

from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.draw import Draw
from pyro_vae.program.particles import are_coupled


def coupled(draw: Draw) -> bool:
    """Whether there are bounds of several examples, and one depends on other examples' latents."""
    return draw.batch > 1 and are_coupled(draw.model, draw.guide, draw.args, draw.kwargs)


def of_all_examples(advantage: Tensor) -> Tensor:
    """Return the advantage of a particle in the bound of all examples, (K, B): a latent may change any of them."""
    return advantage.sum(1, keepdim=True).expand_as(advantage)


def check_sums(draw: Draw, by_element: bool) -> None:
    """Refuse enumerated sites where examples, or elements of a plate, would need sums of their own.

    Raises:
        InputError: examples that depend on each other; a score weighted by the terms of its own element.
    """
    if coupled(draw):
        raise InputError(
            "a model whose examples are independent given their latents, for a sum over each example's own values",
            "one whose log-densities change with the latents of other examples",
            'infer={"gradient": "score"}; or normalisation in evaluation mode',
        )
    if by_element:
        raise InputError(
            "scores in no plates but those that all sites share, beside an enumerated site",
            "a site with a score in another plate",
            'infer={"gradient": "score"} for all',
        )


def check_measured(draw: Draw, estimator: str) -> None:
    """Refuse measure-valued sites under a score function, and where an example changes others' bounds.

    Raises:
        InputError: see above.
    """
    if draw.latents == "fixed":
        raise InputError(
            "an estimator that leaves every site its own gradient, for a measure-valued site",
            f"{estimator}, which scores all sites",
            "sampled_kl for the ELBO, iwae for the importance-weighted bound",
        )
    if coupled(draw):
        raise InputError(
            "a model whose examples are independent given their latents, for a measure-valued site",
            "one whose log-densities change with the latents of other examples",
            'infer={"gradient": "score"}; or normalisation in evaluation mode',
        )
