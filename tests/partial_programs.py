"""Programs of which not everything is available: one linear program, changed in one way each."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

D, Z = 4, 2
X = torch.randn(12, D, generator=torch.Generator().manual_seed(0))


class Program(nn.Module):
    """A linear program that may be changed in one way."""

    what = ""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.decoder, self.encoder = nn.Linear(Z, D), nn.Linear(D, Z)

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(x))
            self.observe(x, self.decoder(z), z)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(self.encoder(x)))

    def prior(self, x):
        return dist.Normal(x.new_zeros(Z), 1.0).to_event(1)

    def posterior(self, mean):
        return dist.Normal(mean, 0.5).to_event(1)

    def observe(self, x, mean, z):
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


class Forced(Program):
    """Teacher forcing: each element's mean has the element before it."""

    def observe(self, x, mean, z):
        before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
        pyro.sample("x", dist.Normal(mean + 0.5 * before, 0.5).to_event(1), obs=x)


class Simulating(Forced):
    """Teacher forcing, with a simulation of its own: element by element."""

    def simulate(self, num_examples):
        z = torch.randn(num_examples, Z)
        mean, x = self.decoder(z), torch.zeros(num_examples, 0)
        for d in range(D):
            before = 0.5 * x[:, -1] if d else 0.0
            x = torch.cat([x, torch.normal(mean[:, d] + before, 0.5)[:, None]], -1)
        return x, {"z": z}


class PriorLooks(Program):
    def prior(self, x):
        return dist.Normal(0.1 * x[..., :Z], 1.0).to_event(1)


class Factor(Program):
    def observe(self, x, mean, z):
        pyro.factor("tilt", -z.square().sum(-1))
        super().observe(x, mean, z)


class Reshaped(Program):
    """Pyro's first example: the data are images, the observed site is flat."""

    def guide(self, x):
        super().guide(x.reshape(-1, D))

    def observe(self, x, mean, z):
        pyro.sample("obs", dist.Normal(mean, 0.5).to_event(1), obs=x.reshape(-1, D))


class Transposed(Program):
    def guide(self, x):
        super().guide(x.reshape(-1, D))

    def observe(self, x, mean, z):
        pyro.sample("obs", dist.Normal(mean, 0.5).to_event(1), obs=x.transpose(1, 2).reshape(-1, D))


class Standardized(Program):
    def observe(self, x, mean, z):
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x / 2)


class Partly(Program):
    """Only two of four elements are observed."""

    def observe(self, x, mean, z):
        pyro.sample("x", dist.Normal(mean[..., :2], 0.5).to_event(1), obs=x[..., :2])


class NoMean(dist.TorchDistribution):
    """A distribution of the user's own, without a mean."""

    support, has_rsample, arg_constraints = constraints.real, True, {}

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return NoMean(self.loc.expand(batch_shape))

    def rsample(self, sample_shape=()):
        return dist.Normal(self.loc, 0.5).rsample(sample_shape)

    def log_prob(self, value):
        return dist.Normal(self.loc, 0.5).log_prob(value)


class FlowPosterior(Program):
    def posterior(self, mean):
        return dist.TransformedDistribution(dist.Normal(mean, 0.5), [dist.transforms.TanhTransform()]).to_event(1)

    def observe(self, x, mean, z):
        pyro.sample("x", NoMean(mean).to_event(1), obs=x)


class Cauchy(Program):
    """A mean that is NaN, as torch has it."""

    def observe(self, x, mean, z):
        pyro.sample("x", dist.Cauchy(mean, 0.5).to_event(1), obs=x)


class FromTheLeft(Program):
    """A dimension counted from the left: the plate of particles shifts it (ProdLDA's softmax)."""

    def observe(self, x, mean, z):
        super().observe(x, mean.softmax(1), z)


class Conditional(Program):
    """p(x|z, y) and q(z|x, y): y is given, x is not looked at."""

    def model(self, x, y):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(x))
            self.observe(x, self.decoder(z) + y[..., None], z)

    def guide(self, x, y):
        super().guide(x + y[..., None])


class NoisyModel(Program):
    """Random numbers of its own in the model are no look at x."""

    def observe(self, x, mean, z):
        super().observe(x, mean + torch.randn_like(mean), z)


class Masked(Program):
    """The last element of every example, and all of the first three examples of a batch of 20, are missing."""

    def observe(self, x, mean, z):
        seen = torch.ones(D, dtype=torch.bool)
        seen[-1] = False
        rows = torch.arange(len(x)) % 20 > 2
        with pyro.poutine.mask(mask=rows):
            pyro.sample("x", dist.Normal(mean, 0.5).mask(seen).to_event(1), obs=x)


class MaskedByX(Program):
    """Which elements count depends on x: a mask is no distribution."""

    def observe(self, x, mean, z):
        pyro.sample("x", dist.Normal(mean, 0.5).mask(x > 0).to_event(1), obs=x)


def no_latents():
    def model(x):
        mean = pyro.param("mean", torch.zeros(D))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pass

    return model, guide


def images(x=X):
    return x.reshape(-1, 2, 2)
