r"""The floor: the matrix products that every step needs, and nothing else.

A dense layer y = x Wᵀ with R rows needs three products: forward, the gradient of W, and the gradient of x (not where x
is the data). Each takes :math:`2 R \cdot \mathrm{in} \cdot \mathrm{out}` operations. A convolution is counted by the
same rule, with one row per output position. ``torch.mm`` runs the products into preallocated memory; convolutions use
torch's own kernels. On CUDA the products are recorded once and replayed as a graph, which removes the cost of
launches. There a roofline gives a second floor: the larger of bytes / bandwidth and operations / rate, both measured
by :func:`measure_device`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast

import torch
from torch import Tensor, nn

from pyro_vae.models.vae import VAE
from pyro_vae.studies.benchmark.sizes import Size
from pyro_vae.studies.benchmark.variant import Variant, layers_of

Kernel = Callable[[], object]
Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
STATES = 10  # reads and writes per parameter: W twice, its gradient once; Adam reads g, W, m, v and writes W, m, v


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One layer that a step runs, with its input and output."""

    layer: Layer
    x: Tensor  # (rows, in), or (images, channels, height, width)
    y: Tensor
    needs_gradient: bool  # of x

    @property
    def operations(self) -> float:
        """Multiplications and additions in the products."""
        weights = self.layer.weight.numel()
        if isinstance(self.layer, nn.Linear):
            positions = self.x.numel() / self.layer.in_features
        else:  # one row per position at which the kernel is applied
            side = self.x if isinstance(self.layer, nn.ConvTranspose2d) else self.y
            positions = side.shape[0] * math.prod(side.shape[2:])
        return float(2 * positions * weights * (2 + self.needs_gradient))

    @property
    def bytes(self) -> float:
        """Bytes that the products and Adam read and write, if no operand is cached."""
        state = STATES * sum(p.numel() for p in self.layer.parameters())
        activations = (2 + self.needs_gradient) * self.x.numel() + (2 + self.needs_gradient) * self.y.numel()
        return float(self.x.element_size() * (state + activations))

    def kernels(self) -> list[Kernel]:
        """Return the products as functions without arguments."""
        return self._dense() if isinstance(self.layer, nn.Linear) else self._convolution()

    def _dense(self) -> list[Kernel]:
        weight, x, upstream = self.layer.weight.detach(), self.x, torch.randn_like(self.y)
        out, in_weight, in_x = torch.empty_like(self.y), torch.empty_like(weight), torch.empty_like(x)
        kernels: list[Kernel] = [
            lambda: torch.mm(x, weight.t(), out=out),
            lambda: torch.mm(upstream.t(), x, out=in_weight),
        ]
        return [*kernels, lambda: torch.mm(upstream, weight, out=in_x)] if self.needs_gradient else kernels

    def _convolution(self) -> list[Kernel]:
        layer, x, upstream = self.layer, self.x, torch.randn_like(self.y)
        weight = layer.weight.detach()
        transposed = isinstance(layer, nn.ConvTranspose2d)
        geometry = (layer.stride, layer.padding, layer.dilation, transposed, [0, 0], 1)
        wanted = [self.needs_gradient, True, False]
        return [
            lambda: torch.ops.aten.convolution(x, weight, None, *geometry),
            lambda: torch.ops.aten.convolution_backward(upstream, x, weight, None, *geometry, wanted),
        ]


@torch.no_grad()
def layer_calls(size: Size, vae: VAE, x: Tensor) -> list[LayerCall]:
    """Return every layer that a step runs, in forward order; the inputs are random numbers of the right shape.

    Example:
        >>> import torch
        >>> from pyro_vae.studies.benchmark import Size
        >>> from pyro_vae.studies.benchmark.floor import layer_calls
        >>> size = Size(batch_size=2, latent_dim=3, hidden=(5,))
        >>> calls = layer_calls(size, size.build(torch.device("cpu")), torch.zeros(2, 784))
        >>> [(call.layer.in_features, call.layer.out_features, call.needs_gradient) for call in calls]
        [(784, 5, False), (5, 6, True), (3, 5, True), (5, 784, True)]
    """
    calls: list[LayerCall] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (entered,) = inputs
        calls.append(LayerCall(cast(Layer, layer), torch.randn_like(entered), output, needs_gradient=bool(calls)))

    encoder, decoder = layers_of(vae.encoder), layers_of(vae.decoder)
    layers = [
        m for net in (encoder, decoder) for m in net.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        encoder(x)
        decoder(torch.randn(size.num_particles * len(x), size.latent_dim, device=x.device))
    finally:
        for handle in handles:
            handle.remove()
    return calls


class Products(Variant):
    """The products of a step, one after another; on CUDA as one recorded graph."""

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.kernels = [kernel for call in layer_calls(size, vae, x) for kernel in call.kernels()]
        self.run_once: Kernel = self._recorded() if x.is_cuda else self._in_turn

    def run(self, steps: int, learning_rate: float) -> float:
        """Run the products of ``steps`` steps; the loss is NaN."""
        for _ in range(steps):
            self.run_once()
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        return math.nan

    def _in_turn(self) -> None:
        with torch.no_grad():
            for kernel in self.kernels:
                kernel()

    def _recorded(self) -> Kernel:
        side = torch.cuda.Stream(self.x.device)
        side.wait_stream(torch.cuda.current_stream(self.x.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self._in_turn()
        torch.cuda.current_stream(self.x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._in_turn()
        self.graph = graph
        return graph.replay


def work(size: Size, vae: VAE, x: Tensor) -> tuple[float, float]:
    """Return the operations and bytes of a step, over all replicates."""
    calls = layer_calls(size, vae, x)
    return size.replicates * sum(call.operations for call in calls), size.replicates * sum(call.bytes for call in calls)


def measure_device(device: torch.device, length: int = 8192, repeats: int = 10) -> tuple[float, float]:
    """Return the operations per second of a large matrix product, and the bytes per second of a large copy.

    Both use float32 at the current ``torch.get_float32_matmul_precision``; the best of ``repeats`` counts.

    Args:
        device: the device to measure.
        length: rows and columns of each matrix; the copy moves four.
        repeats: of each measurement.
    """
    a, b = torch.randn(2, length, length, device=device)
    out = torch.empty_like(a)
    source = torch.randn(4, length, length, device=device)
    target = torch.empty_like(source)
    product = min(_timed(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats))
    copy = min(_timed(lambda: target.copy_(source), device) for _ in range(repeats))
    return 2.0 * length**3 / product, 2.0 * source.nbytes / copy


def _timed(action: Kernel, device: torch.device) -> float:
    _wait(device)
    start = perf_counter()
    action()
    _wait(device)
    return perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
