"""The same program in NumPyro: ``lax.fori_loop`` over steps of ``SVI.update``, under jit.

NumPyro and JAX are optional: ``pip install 'pyro-vae[bench]'`` installs them. This module can be imported without
them; :class:`InNumPyro` then raises :class:`~pyro_vae.studies.benchmark.variant.Unavailable`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from pyro_vae.models.vae import VAE
from pyro_vae.studies.benchmark.sizes import Size
from pyro_vae.studies.benchmark.variant import Unavailable, Variant, layers_of

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    from jax import lax
    from numpyro import distributions as dist
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
except ImportError:
    jax = None

if TYPE_CHECKING:
    from jax import Array, Device
    from numpyro.infer.svi import SVIState

Convolution = nn.Conv2d | nn.ConvTranspose2d
Apply: TypeAlias = "Callable[[Array], Array]"
INSTALL = "pip install 'pyro-vae[bench]'"


class InNumPyro(Variant):
    """NumPyro's SVI, all steps in one compiled loop whose arguments are the number of steps and the learning rate.

    Convolutions on the CPU are the exception: XLA runs them several times slower inside a loop (jax issue 12868), so
    each step is a separate compiled call.
    """

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        if jax is None:
            raise Unavailable(f"not installed: {INSTALL}")
        self.device = _device(x.device)
        with jax.default_device(self.device):
            self.batch = _array(x)
            elbo = Trace_ELBO() if size.num_particles == 1 else RenyiELBO(alpha=0, num_particles=size.num_particles)
            self.svi = SVI(*_program(size, vae), numpyro.optim.Adam(lambda step: self._rate), elbo)
            self._rate: Array | float = 0.0
            self.state = self.svi.init(jax.random.key(0), self.batch)
            self.step = jax.jit(self._step, donate_argnums=0)
            self.loop = jax.jit(self._loop, donate_argnums=0)
            self.one_by_one = size.convolutional and x.device.type == "cpu"

    @contextmanager
    def active(self) -> Iterator[None]:
        """With the variant's device as JAX's default."""
        with jax.default_device(self.device) if jax is not None else nullcontext():
            yield

    def run(self, steps: int, learning_rate: float) -> float:
        """Take the steps in one call, or one by one for convolutions on the CPU."""
        if self.one_by_one:
            for _ in range(steps):
                self.state, loss = self.step(self.state, learning_rate, self.batch)
        else:
            self.state, loss = self.loop(self.state, steps, learning_rate, self.batch)
        return float(loss) / len(self.x)

    def seed(self, seed: int) -> None:
        """Seed the noise of the following steps; it differs from torch's."""
        self.state = self.state._replace(rng_key=jax.random.key(seed))

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters as torch has them."""
        return {name: torch.tensor(jax.device_get(p).tolist()) for name, p in self.svi.get_params(self.state).items()}

    def memory(self) -> float | None:
        """Return what XLA says that its compiled loop takes beside its arguments."""
        lowered = (
            self.step.lower(self.state, 0.0, self.batch)
            if self.one_by_one
            else self.loop.lower(self.state, 1, 0.0, self.batch)
        )
        found = lowered.compile().memory_analysis()
        return None if found is None else float(found.temp_size_in_bytes + found.output_size_in_bytes)

    def _step(self, state: "SVIState", learning_rate: "Array", batch: "Array") -> "tuple[SVIState, Array]":
        self._rate = learning_rate  # read by the optimiser while this is traced
        found: tuple[SVIState, Array] = self.svi.update(state, batch)
        return found

    def _loop(self, state: "SVIState", steps: int, learning_rate: "Array", batch: "Array") -> "tuple[SVIState, Array]":
        start = (state, jnp.zeros(()))
        found: tuple[SVIState, Array] = lax.fori_loop(
            0, steps, lambda _, carried: self._step(carried[0], learning_rate, batch), start
        )
        return found


def _device(device: torch.device) -> "Device":
    """Return the JAX device; its backend starts without preallocating most of the GPU's memory."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    before = os.environ.get(name)
    os.environ[name] = before or "false"
    try:
        return jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    except RuntimeError:
        raise Unavailable("jax sees no GPU: pip install 'jax[cuda12]'") from None
    finally:
        if before is None:
            del os.environ[name]


def _program(size: Size, vae: VAE) -> "tuple[Callable[[Array], None], Callable[[Array], None]]":
    """Return model and guide, with the names and values of the torch program's parameters."""
    encoder, decoder = (_Network(name, getattr(vae, name)) for name in ("encoder", "decoder"))
    event_dim = len(size.event_shape)
    zeros, ones = jnp.zeros(size.latent_dim), jnp.ones(size.latent_dim)

    def model(x: "Array") -> None:
        logits_of = decoder.registered()
        with numpyro.plate("data", len(x), dim=-1):
            z = numpyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            logits = logits_of(z).reshape(x.shape)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(event_dim), obs=x)

    def guide(x: "Array") -> None:
        heads_of = encoder.registered()
        with numpyro.plate("data", len(x), dim=-1):
            loc, log_scale = jnp.split(heads_of(x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


class _Network:
    """The layers of a torch network as functions of JAX arrays."""

    def __init__(self, name: str, network: nn.Module) -> None:
        self.layers = list(layers_of(network).children())
        self.names = [f"{name}.layers.{index}" for index in range(len(self.layers))]
        self.initial = {f"{name}.{key}": _array(p) for key, p in network.named_parameters()}

    def registered(self) -> Apply:
        """Register the parameters with NumPyro and return the network as a function."""
        values = {name: numpyro.param(name, value) for name, value in self.initial.items()}

        def apply(x: "Array") -> "Array":
            for name, layer in zip(self.names, self.layers, strict=True):
                x = LAYERS[type(layer)](layer, values.get(f"{name}.weight"), values.get(f"{name}.bias"), x)
            return x

        return apply


def _convolution(layer: Convolution, weight: "Array", bias: "Array", x: "Array") -> "Array":
    padding = [(p, p) for p in layer.padding]
    kernel = weight.transpose(2, 3, 1, 0)
    return _channels_last(x, lambda x: lax.conv_general_dilated(x, kernel, layer.stride, padding, **LAYOUT) + bias)


def _transposed_convolution(layer: Convolution, weight: "Array", bias: "Array", x: "Array") -> "Array":
    sizes = zip(layer.kernel_size, cast(tuple[int, ...], layer.padding), strict=True)
    padding = [(k - 1 - p, k - 1 - p) for k, p in sizes]
    kernel = jnp.flip(weight, (2, 3)).transpose(2, 3, 0, 1)
    more = {"lhs_dilation": layer.stride, **LAYOUT}
    return _channels_last(x, lambda x: lax.conv_general_dilated(x, kernel, (1, 1), padding, **more) + bias)


LAYOUT = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def _channels_last(x: "Array", apply: Apply) -> "Array":
    """Apply with channels last: XLA is slower with channels first, above all in a loop on the CPU (jax issue 12868)."""
    return apply(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


LAYERS: "dict[type[nn.Module], Callable[..., Array]]" = {
    nn.Linear: lambda layer, weight, bias, x: x @ weight.T + bias,
    nn.ReLU: lambda layer, weight, bias, x: jax.nn.relu(x),
    nn.Tanh: lambda layer, weight, bias, x: jnp.tanh(x),
    nn.Flatten: lambda layer, weight, bias, x: x.reshape(len(x), -1),
    nn.Unflatten: lambda layer, weight, bias, x: x.reshape(*x.shape[:-1], *layer.unflattened_size),
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _transposed_convolution,
}


def _array(tensor: Tensor) -> "Array":
    return jnp.asarray(tensor.detach().cpu().numpy())
