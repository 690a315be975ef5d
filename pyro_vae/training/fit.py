"""Training: one function, and the loop in it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from pyro.infer import ELBO

from pyro_vae.base.devices import resolve_device
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.base.types import State
from pyro_vae.data import Given
from pyro_vae.engines.protocol import EngineValue
from pyro_vae.engines.select import Auto
from pyro_vae.program.adapter import FunctionProgram, keep_in_store
from pyro_vae.training.loop import Hook, Loop
from pyro_vae.training.result import FitResult
from pyro_vae.training.settings import ENGINE, ESTIMATOR, Settings
from pyro_vae.training.setup import prepare, start_loop


def fit(
    program: object,
    train: Given,
    *,
    validation: Given | None = None,
    device: str | torch.device = "auto",
    hooks: Sequence[Hook] = (),
    resume: State | None = None,
    estimator: str | ELBO = ESTIMATOR,
    engine: str | EngineValue | Auto = ENGINE,
    epochs: int = 20,
    max_steps: int | None = None,
    batch_size: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    clip_norm: float | None = None,
    kl_warmup: float = 0.0,
    patience: int | None = None,
    eval_particles: int = 1,
    vectorize_particles: bool = True,
    seed: int = 0,
) -> FitResult:
    r"""Train a program by stochastic variational inference.

    Each epoch takes the data in a fresh order. Batches are gathered and binarized on the device; order and binarization
    of a batch depend on (seed, epoch, batch) alone. The caller's random states and parameter store are restored. The
    program is moved to the device and trained in place: of functions, their modules and every ``pyro.param``, which
    starts from its value in the caller's store, if there is one, and is in that store afterwards.

    Args:
        program: a :class:`~pyro_vae.VAE`, any ``nn.Module`` with ``model(x)`` and ``guide(x)``, a pair of functions
            ``(model, guide)``, or :class:`~pyro_vae.Replicates` of a program.
        train: the data; their first dimension counts examples. A tensor, an array or :class:`~pyro_vae.Images` for
            ``model(x)``; a tuple for ``model(x, y)``, a mapping for ``model(x=x, y=y)``; a ``Dataset`` or a
            ``DataLoader`` of torch (:func:`~pyro_vae.data.as_data`). Labels of images are given as ``y`` to a program
            whose model and guide have that parameter, without a default or with default None.
        validation: held-out data, likewise; each epoch reports their bound with a standard error.
        device: ``auto`` (CUDA if available), ``cpu`` or ``cuda``.
        hooks: watch the run; called in this order.
        resume: the ``state`` of a :class:`~pyro_vae.FitResult`, or a run's checkpoint: training resumes where it
            stopped, and ends bit for bit as without the stop. Epochs and steps count from the beginning.
        estimator: a name of :data:`~pyro_vae.elbo.ESTIMATORS` with arguments (``"trace_elbo:num_particles=5"``), or any
            ``pyro.infer.ELBO``.
        engine: a name of :data:`~pyro_vae.engines.ENGINES` with arguments, or a value such as
            ``Compiled(inductor=False)``; ``auto``: ``compiled`` for long runs of programs that can be traced, else
            ``svi``.
        epochs: passes over the training data.
        max_steps: stop after this many steps in all, those before resuming included; None: no limit.
        batch_size: examples in a step.
        optimizer: a name of :data:`~pyro_vae.engines.OPTIMIZERS` with arguments (``"adam:eps=1e-4"``).
        learning_rate: step size of the optimiser. The loss is a sum over the batch, as in Pyro.
        schedule: a name of :data:`~pyro_vae.engines.SCHEDULES` with arguments (``"cosine:final=0.1"``).
        clip_norm: largest norm of the whole gradient; None: no limit.
        kl_warmup: epochs over which the weight of log p(z) − log q(z|x) rises linearly to 1.
        patience: stop after this many epochs without a better held-out bound; None: never.
        eval_particles: particles per example for the held-out bound.
        vectorize_particles: several particles in one run, in a plate, of an estimator by name and of held-out bounds;
            False: in runs one by one, for programs that do not broadcast. An estimator given as a value has its own.
        seed: fixes order, binarization and noise.

    Returns:
        The program, one :class:`~pyro_vae.training.EpochRecord` per epoch, why training stopped early if it did, and
        the state to resume from.

    Raises:
        InputError: an argument that does not fit; the message says which, and what to try.
        NonFiniteError: a loss or gradient that is not finite; the parameters are those before that step.

    Example:
        >>> from pyro_vae import VAE
        >>> x = torch.bernoulli(torch.full((64, 8, 8), 0.3))
        >>> result = fit(VAE((8, 8), latent_dim=2, hidden=(16,)), x, epochs=2, batch_size=32, device="cpu")
        >>> [record.step for record in result.history]
        [2, 4]
    """
    settings = Settings(
        estimator=estimator,
        engine=engine,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        clip_norm=clip_norm,
        kl_warmup=kl_warmup,
        patience=patience,
        eval_particles=eval_particles,
        vectorize_particles=vectorize_particles,
        seed=seed,
    )
    if not isinstance(hooks, Sequence) or not all(isinstance(hook, Hook) for hook in hooks):
        raise InputError("hooks as a list of pyro_vae.Hook", repr(hooks), "hooks=[Mine()], with class Mine(Hook)")
    loop = start_loop(program, train, validation, resolve_device(device), settings, resume)
    with _running(loop, hooks, resume, given=program):
        while loop.unfinished():
            for infos in loop.engine.run(loop.epoch()):
                loop.count(infos, hooks)
                if loop.stopping:
                    break
            loop.end_epoch(hooks)
        state = copy.deepcopy(loop.state_dict())
    return FitResult(loop.program, loop.history, loop.stopping, state)


@contextmanager
def _running(loop: Loop, hooks: Sequence[Hook], resume: State | None, given: object) -> Iterator[None]:
    """Run the steps inside: on the run's own random states, in the program's store, between the hooks."""
    with ExitStack() as outside, isolated_rng(loop.train.device, loop.settings.seed), loop.engine:
        if resume is not None:
            loop.load_state_dict(copy.deepcopy(resume))  # an optimiser works in place
        try:
            for hook in hooks:
                hook.preparing(loop)
            prepare(loop)
            if isinstance(loop.program, FunctionProgram) and loop.program is not given:
                outside.callback(keep_in_store, loop.program)  # after an error, too: their modules are trained by then
            for hook in hooks:
                hook.started(loop)
            yield
            for hook in hooks:
                hook.stopped(loop)
        finally:
            for hook in hooks:
                hook.closed()
