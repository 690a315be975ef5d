"""Held-out bounds: how many nats the program gives data it was not trained on, with a standard error."""

import torch
from torch import Tensor

from pyro_vae.data import Images
from pyro_vae.devices import isolated_rng
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.numerics import Estimate, estimate
from pyro_vae.program import Program, own_store

CHUNK = 1000  # data scored at once; bounds memory, does not change the figures' meaning


@torch.no_grad()
def held_out_elbo(program: Program, data: Images, num_particles: int = 1, seed: int = 0) -> Tensor:
    r"""Return the ELBO of every datum, (N,), in nats: the mean over K draws of log w.

    .. math:: \frac1K \sum_k \log p(x|z_k) + \log p(z_k) - \log q(z_k|x), \quad z_k \sim q(z|x)

    The data are binarized once, with the seed; the program is put into evaluation mode for the call. The
    global random state is left as it was.

    Args:
        program: the program.
        data: the held-out images, on the program's device.
        num_particles: K.
        seed: fixes binarization and noise, so that two programs are judged on the same data.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.data import as_images
        >>> held_out_elbo(VAE((4,), latent_dim=2), as_images(torch.ones(10, 4))).shape
        torch.Size([10])
    """
    x = data.draw(seed)
    was_training = getattr(program, "training", True)
    program.train(False)
    try:
        with isolated_rng(x.device, seed), own_store(program):
            chunks = [draw_terms(program, part, num_particles).log_weight.mean(0) for part in x.split(CHUNK)]
    finally:
        program.train(was_training)
    return torch.cat(chunks)


def held_out_bound(program: Program, data: Images, num_particles: int = 1, seed: int = 0) -> Estimate:
    """Return the mean of :func:`held_out_elbo` over the data, nats per datum, with its standard error.

    The standard error is over data and holds the noise of the particles too: a datum's draws are its own.
    """
    return estimate(held_out_elbo(program, data, num_particles, seed))
