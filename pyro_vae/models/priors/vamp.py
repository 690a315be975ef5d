"""The VampPrior: a mixture of the program's own q(z|x), at pseudo-inputs that are learned."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.base.errors import InputError
from pyro_vae.models.priors.mixture import Mixture
from pyro_vae.models.priors.prior import Encode, Prior
from pyro_vae.models.sizes import check_count
from pyro_vae.models.sphere import Space

START, SPREAD = -0.05, 0.01  # mean and standard deviation of random pseudo-inputs, as in the authors' code


class VampPrior(Prior):
    r"""A mixture of the variational posterior at learned pseudo-inputs.

    Formula: p(z) = 1/C Σ_c q(z|u_c), u_c parameters

    The pseudo-inputs are free real numbers of the shape of an example; the authors' code restricts them to [0, 1]. They
    start at random about −0.05, or with :meth:`start_from` at training examples. The parameters of the encoder are then
    those of the prior, too: their gradient has a part through log p(z) under every estimator. q(z|x) must have a
    density at any z, so a planar flow is refused. The density of a value costs C densities of q.

    Source: Tomczak, Welling, VAE with a VampPrior, 2018, arXiv 1705.07120

    Args:
        event_shape: of one example.
        components: C.
        learned_weights: weights of the components that are learned in the place of 1/C.

    Raises:
        InputError: no components; when called, no encoder.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((8, 8), latent_dim=3, prior="vamp:components=5")
        >>> vae.start_from(torch.bernoulli(torch.full((20, 8, 8), 0.5)))
        >>> vae.prior.pseudo_inputs.shape, vae.p_z().log_prob(torch.zeros(7, 3)).shape
        (torch.Size([5, 8, 8]), torch.Size([7]))
    """

    encoded: ClassVar[bool] = True
    space: ClassVar[Space | None] = None
    logits: Tensor

    def __init__(self, event_shape: Sequence[int], components: int = 500, *, learned_weights: bool = False) -> None:
        super().__init__()
        count = check_count("components", components, 500)
        self.pseudo_inputs = nn.Parameter(START + SPREAD * torch.randn(count, *event_shape))
        if learned_weights:
            self.logits = nn.Parameter(torch.zeros(count))
        else:
            self.register_buffer("logits", torch.zeros(count), persistent=False)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the mixture; event shape (Z,), on the module's device and in its dtype."""
        if encode is None:
            hint = "VAE(..., prior='vamp'), which passes its encode"
            raise InputError("the encoder of a program (this prior is made of q(z|x))", "none", hint)
        inputs, each = self.pseudo_inputs, encode
        return Mixture(self.logits, each(inputs), lambda which: each(inputs[which]))

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Start the pseudo-inputs at different training examples of x, (N, *event_shape), chosen by torch's generator.

        Raises:
            InputError: fewer examples than components.
        """
        count = len(self.pseudo_inputs)
        if len(x) < count:
            expected = f"at least {count} training examples, one to start each component at"
            raise InputError(expected, len(x), f"vamp:components={len(x)}")
        chosen = torch.randperm(len(x))[:count].to(x.device)
        self.pseudo_inputs.copy_(x[chosen])
