"""The interface of a likelihood."""

from typing import ClassVar, Literal

from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError

Measure = Literal["density", "mass"]


class Likelihood(nn.Module):
    """A likelihood p(x|z): ``heads``, and a call on that many tensors of one shape.

    A subclass sets the class attributes and defines ``forward``. What its distribution says of its support is what a
    program is checked by: data outside it are refused.

    Attributes:
        heads: parameters of each pixel, which the decoder computes.
        measure: ``density`` or ``mass``: what :math:`p(x|z)` is of its data.
        data: the data it is for, in words.
    """

    heads: int
    measure: ClassVar[Measure] = "density"
    data: ClassVar[str] = "real numbers"

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution of each pixel; batch shape (..., *event_shape)."""
        raise TypeError(f"{type(self).__name__} does not define its distribution")

    def heads_of_mean(self, mean: Tensor) -> Tensor:
        """Return heads, (heads, *event_shape), at which the likelihood's mean is ``mean``: an output bias.

        Args:
            mean: the mean of the training examples, (*event_shape).

        Raises:
            InputError: the likelihood does not say.
        """
        got = f"{type(self).__name__} without heads_of_mean"
        raise InputError("a likelihood that says which heads have a given mean", got, "output_bias=False")
