"""Pyro's own ways of taking a step, and this package's engines."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor

from pyro_vae.benchmark.sizes import Size
from pyro_vae.benchmark.variant import Unavailable, Variant
from pyro_vae.elbo import IWAE
from pyro_vae.engines import ENGINES
from pyro_vae.program import own_store
from pyro_vae.vae import VAE


class Stock(Variant):
    """Stock Pyro as its documentation has it: ``SVI``, ``Trace_ELBO``, ``pyro.optim.Adam``, validation on.

    For K > 1 the estimator is Pyro's ``RenyiELBO(alpha=0)``, which is the importance-weighted bound, with its
    particles vectorized.
    """

    validation = True

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        loss = Trace_ELBO() if size.particles == 1 else _renyi(size.particles)
        self.optimizer = pyro.optim.Adam({"lr": 0.0})  # the true rate is set in run
        self.svi = SVI(vae.model, vae.guide, self.optimizer, loss=loss)

    @contextmanager
    def active(self) -> Iterator[None]:
        """In a parameter store of its own, validation as this variant has it."""
        with own_store(self.vae), pyro.validation_enabled(self.validation):
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps of SVI."""
        self.optimizer.pt_optim_args["lr"] = learning_rate
        for optimizer in self.optimizer.optim_objs.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        for _ in range(steps):
            loss = self.svi.step(self.x)
        return float(loss) / len(self.x)


class StockUnvalidated(Stock):
    """The same with Pyro's and torch's validation of arguments off."""

    validation = False


class Module(Variant):
    """``Trace_ELBO()(model, guide)``, an ``ELBOModule``, with one fused torch optimiser and validation off.

    For K > 1 the estimator is this package's ``IWAE``: Pyro's ``RenyiELBO`` has no ``differentiable_loss``.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        elbo = Trace_ELBO() if size.particles == 1 else IWAE(size.particles)
        self.elbo = elbo(vae.model, vae.guide)  # type: ignore[arg-type]  # bound methods do as well as modules
        self.optimizer = torch.optim.Adam(vae.parameters(), fused=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """In a parameter store of its own, without validation."""
        with own_store(self.vae), pyro.validation_enabled(False):
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps; the loss is looked at after the last."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.elbo(self.x)
            loss.backward()
            self.optimizer.step()
        return float(loss.item()) / len(self.x)


class OnEngine(Variant):
    """An engine of this package, as :func:`pyro_vae.fit` drives it."""

    engine = "svi"

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        if self.engine not in ENGINES:
            raise Unavailable(f"this version has no engine {self.engine}")
        self.steps = ENGINES[self.engine](vae, size.estimator(), "adam", None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the engine's own context."""
        with self.steps:
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps, with what the engine reports of each."""
        for _ in range(steps):
            info = self.steps.step(self.x, learning_rate, 1.0)
        return -info.objective


class OnCompiled(OnEngine):
    """Engine ``compiled``."""

    engine = "compiled"


def _renyi(particles: int) -> RenyiELBO:
    return RenyiELBO(alpha=0, num_particles=particles, max_plate_nesting=1, vectorize_particles=True)
