"""Variants on Pyro: stock SVI, ``ELBOModule``, and this package's engines."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import ClassVar

import pyro
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor

from pyro_vae.data import Images
from pyro_vae.elbo.importance import IWAE
from pyro_vae.engines.batches import Batches
from pyro_vae.engines.protocol import EngineValue
from pyro_vae.engines.select import Compiled, StockSVI
from pyro_vae.models.replicates import Replicates
from pyro_vae.models.vae import VAE
from pyro_vae.program.contexts import own_store
from pyro_vae.studies.benchmark.sizes import Size
from pyro_vae.studies.benchmark.variant import Variant

COPIES = 500  # of the batch in the data set of an engine on CUDA


class Stock(Variant):
    """Stock Pyro as in its tutorials: ``SVI``, ``Trace_ELBO``, ``pyro.optim.Adam``, validation on.

    For K > 1 the estimator is Pyro's ``RenyiELBO(alpha=0)``, the importance-weighted bound, with vectorized particles.
    """

    validation = True

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        loss = Trace_ELBO() if size.num_particles == 1 else _renyi(size.num_particles)
        self.optimizer = pyro.optim.Adam({"lr": 0.0})  # type: ignore[attr-defined]  # run sets the learning rate
        self.svi = SVI(vae.model, vae.guide, self.optimizer, loss=loss)

    @contextmanager
    def active(self) -> Iterator[None]:
        """In a parameter store of its own, with this variant's validation setting."""
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
    """Stock Pyro with its validation, and torch's of arguments, off."""

    validation = False


class OnELBOModule(Variant):
    """``Trace_ELBO()(model, guide)``, an ``ELBOModule``, with one fused torch optimiser and validation off.

    For K > 1 the estimator is this package's ``IWAE``: Pyro's ``RenyiELBO`` has no ``differentiable_loss``.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        elbo = Trace_ELBO() if size.num_particles == 1 else IWAE(size.num_particles)
        self.elbo = elbo(vae.model, vae.guide)  # type: ignore[arg-type]  # bound methods work like modules
        self.optimizer = torch.optim.Adam(vae.parameters(), fused=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """In a parameter store of its own, without validation."""
        with own_store(self.vae), pyro.validation_enabled(False):
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps; read the loss after the last one only."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.elbo(self.x)
            loss.backward()
            self.optimizer.step()
        return float(loss.item()) / len(self.x)


class OnEngine(Variant):
    """An engine of this package, called as :func:`pyro_vae.fit` calls it.

    On CUDA that is :meth:`~pyro_vae.engines.Engine.run`: the engine gathers its batches itself, and engine
    ``compiled`` records its steps as a CUDA graph. The data set repeats one batch :data:`COPIES` times, so that the
    maths equals that of the other variants.
    """

    value: ClassVar[EngineValue] = StockSVI()

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.engine = self.value.start(self.program(), size.estimator(), "adam", None)
        if x.is_cuda:
            self.images = Images(x.to(torch.uint8).repeat(COPIES, *[1] * (x.dim() - 1)), max_value=1)
            self.order = torch.arange(len(self.images), device=x.device)

    def program(self) -> VAE | Replicates:
        """Return what the engine trains."""
        return self.vae

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the engine's context."""
        with self.engine:
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take steps, including the engine's report of each."""
        if self.x.is_cuda:
            return self._run_epochs(steps, learning_rate)
        for _ in range(steps):
            info = self.engine.step(self.x, learning_rate, 1.0)
        return -info.objective

    def _run_epochs(self, steps: int, learning_rate: float) -> float:
        rates, weights = [learning_rate] * COPIES, [1.0] * COPIES
        while steps > 0:
            taken = min(steps, COPIES)
            start = COPIES - taken
            batches = Batches(self.images, self.order, len(self.x), start, (0,), rates, weights)
            *_, last = self.engine.run(batches)
            steps -= taken
        torch.cuda.synchronize(self.x.device)
        return -last[-1].objective


class OnCompiled(OnEngine):
    """Engine ``compiled``, with replicates. Its context is entered once: leaving it discards its CUDA graphs."""

    value: ClassVar[EngineValue] = Compiled()

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.open, self.entered = ExitStack(), False

    def program(self) -> VAE | Replicates:
        """Return the program, or the size's replicates: equal copies, each with its own noise."""
        count = self.size.replicates
        return Replicates([self.vae, *(deepcopy(self.vae) for _ in range(1, count))]) if count > 1 else self.vae

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the engine's context, which stays open until :meth:`close`."""
        if not self.entered:
            self.open.enter_context(self.engine)
            self.entered = True
        yield

    def close(self) -> None:
        """Leave the engine's context."""
        self.open.close()


def _renyi(particles: int) -> RenyiELBO:
    return RenyiELBO(alpha=0, num_particles=particles, max_plate_nesting=1, vectorize_particles=True)
