"""The configuration of a run: every option, what it builds, and what a resumed run must share with the first."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from pyro_vae import data as data_sets
from pyro_vae.base.errors import InputError
from pyro_vae.base.imports import locate
from pyro_vae.data import DataSet, Images, is_path
from pyro_vae.models.replicates import Replicates
from pyro_vae.models.vae import VAE
from pyro_vae.program.adapter import as_program
from pyro_vae.program.call import data_for
from pyro_vae.training.settings import ENGINE, ESTIMATOR, EXTENDABLE, Settings

MAY_DIFFER = (*EXTENDABLE, "device", "data_root")  # what a resumed run may change


VAE_OPTIONS = ("latent_dim", "hidden", "likelihood", "activation")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Everything that determines a run; its fields are the options of ``pyro-vae train``.

    Args:
        data: digits, mnist, fashion-mnist, frey-face, omniglot, binarized-mnist, caltech101-silhouettes, or a
            path to .npy, .npz, .pt or a folder of images.
        data_root: folder that holds the published data sets, or into which MNIST is downloaded; by
            default ./data.
        binarize: dynamic (a fresh Bernoulli sample each epoch), threshold (at one half) or none; a default that
            suits the data.
        model: vae, a Python file with model(x) and guide(x), FILE.py:NAME, or an import path.
        latent_dim: length of the latent vector; 20 by default.
        hidden: hidden units of the encoder, in reverse those of the decoder; [400] by default.
        likelihood: bernoulli, gaussian:scale=0.1 or learned_gaussian; bernoulli by default where pixels are
            binary, else learned_gaussian.
        activation: of the networks; relu by default.
        model_args: further arguments of your own class, as a mapping.
        replicates: copies of the program, trained at once from their own initial parameters and on their own noise.
        device: auto (cuda if available), cpu or cuda.
        estimator: a name with arguments, such as trace_elbo:num_particles=5.
        engine: svi, compiled, or auto: the compiled one for long runs (compare: svi by default).
        epochs: passes over the training data.
        max_steps: stop after this many steps in all; no limit by default.
        batch_size: examples in a step.
        optimizer: a torch optimiser with arguments, such as adam:eps=1e-4, adagrad, sgd:momentum=0.9.
        learning_rate: step size of the optimiser; the loss is a sum over the batch.
        schedule: constant, cosine:final=0.1, exponential:gamma=0.99 or multistep:every=10.
        clip_norm: largest norm of the whole gradient; no limit by default.
        kl_warmup: epochs over which the KL's weight rises linearly to 1.
        patience: stop after this many epochs without a better held-out bound; never by default.
        eval_particles: particles per example for held-out bounds.
        vectorize_particles: false runs several particles one by one, for programs that do not broadcast over them.
        seed: fixes split, initial parameters, order, binarization and noise.
    """

    data: str = "digits"
    data_root: str | None = None
    binarize: str | None = None
    model: str = "vae"
    latent_dim: int | None = None
    hidden: list[int] | None = None
    likelihood: str | None = None
    activation: str | None = None
    model_args: dict[str, object] | None = None
    replicates: int = 1
    device: str = "auto"
    estimator: str = ESTIMATOR  # on the command line and in YAML, by name
    engine: str = ENGINE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.replicates, int) or self.replicates < 1:
            raise InputError("replicates of at least 1", self.replicates, "replicates=1")

    def absolute(self) -> "RunConfig":
        """Return the same options with every path absolute, so that a run can be resumed from anywhere."""
        data = str(Path(self.data).expanduser().absolute()) if is_path(self.data) else self.data
        root = self.data_root and str(Path(self.data_root).expanduser().absolute())
        file, colon, name = self.model.partition(":")
        model = f"{Path(file).expanduser().absolute()}{colon}{name}" if file.endswith(".py") else self.model
        return replace(self, data=data, data_root=root, model=model)

    def settings(self) -> dict[str, Any]:
        """Return the keywords of :func:`pyro_vae.fit` among the fields."""
        return {field.name: getattr(self, field.name) for field in fields(Settings)}

    def load_data(self) -> DataSet:
        """Load and split the data."""
        return data_sets.load(self.data, self.data_root, binarize=self.binarize, seed=self.seed)  # type: ignore[arg-type]

    def build_program(self, images: Images) -> object:
        """Build the program that ``model`` names for these images, with fresh parameters.

        Raises:
            InputError: nothing of that name, or options that it does not take.
        """
        options = {name: getattr(self, name) for name in VAE_OPTIONS if getattr(self, name) is not None}
        options |= self.model_args or {}
        if self.replicates > 1:
            return self._replicates(images)
        target = VAE if self.model == "vae" else locate(self.model)
        if target is VAE:
            options.setdefault("likelihood", "bernoulli" if images.is_binary else "learned_gaussian")
        if not inspect.isclass(target) and not (inspect.isfunction(target)):
            if options:
                raise InputError(f"no options for the functions in {self.model}", options, "a class that takes them")
            return target
        return _construct(target, options, images, self.model)

    def _replicates(self, images: Images) -> Replicates:
        """Build the program once per replicate, in turn, from one random stream."""
        one = replace(self, replicates=1)
        built = [one.build_program(images) for _ in range(self.replicates)]
        programs = [as_program(thing, data_for(thing, images).batch(slice(0, 2))) for thing in built]
        return Replicates(cast(list[nn.Module], programs))


def _construct(target: Callable[..., object], options: dict[str, object], images: Images, name: str) -> object:
    takes = inspect.signature(target).parameters
    if "event_shape" in takes:
        options = {"event_shape": tuple(images.event_shape), **options}
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        got = str(error).removeprefix("got ")
        raise InputError(f"arguments that {name} takes ({', '.join(takes)})", got, "model_args={...}") from None
    return target(**options)


def fingerprint(config: RunConfig) -> str:
    """Return, as JSON, what a resumed run must share with the one that it resumes."""
    shared = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    file = Path(config.model.partition(":")[0])
    if file.suffix == ".py" and file.is_file():
        shared["model file"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return json.dumps(shared, sort_keys=True, default=str)
