r"""The floor: the matrix products that a step cannot do without, and nothing else.

A dense layer y = x Wᵀ of R rows costs three products: forward, the gradient of W, and the gradient of x; the last is
not needed where x is the data. Each is :math:`2 R \cdot \mathrm{in} \cdot \mathrm{out}` operations. A convolution is
counted by the same rule, every output position being a row. On the CPU the products are run by ``torch.mm`` into
memory that is there already, convolutions by the library's own kernels; on CUDA the same is recorded once and replayed
as a graph, so that launches cost nothing, and a second floor is computed from what the device can do: the larger of
bytes over bandwidth and operations over rate, both measured (:func:`measure_device`).
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
from pyro_vae.studies.benchmark.variant import Variant, bare

Kernel = Callable[[], object]
Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
STATES = 10  # reads and writes of a parameter's size: W twice, its gradient; g, W, m, v read and W, m, v written


@dataclass(frozen=True, eq=False)
class Use:
    """One layer of the step, with what goes in and what comes out."""

    layer: Layer
    x: Tensor  # (rows, in), or (images, channels, height, width)
    y: Tensor
    needs_gradient: bool  # of x

    @property
    def operations(self) -> float:
        """Multiplications and additions of the products."""
        weights = self.layer.weight.numel()
        if isinstance(self.layer, nn.Linear):
            positions = self.x.numel() / self.layer.in_features
        else:  # the side on which a kernel is laid down at every position
            side = self.x if isinstance(self.layer, nn.ConvTranspose2d) else self.y
            positions = side.shape[0] * math.prod(side.shape[2:])
        return float(2 * positions * weights * (2 + self.needs_gradient))

    @property
    def bytes(self) -> float:
        """What products and Adam read and write, once a use, if nothing stays in a cache."""
        state = STATES * sum(p.numel() for p in self.layer.parameters())
        activations = (2 + self.needs_gradient) * self.x.numel() + (2 + self.needs_gradient) * self.y.numel()
        return float(self.x.element_size() * (state + activations))

    def kernels(self) -> list[Kernel]:
        """Return the products, each ready to run."""
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
def layer_uses(size: Size, vae: VAE, x: Tensor) -> list[Use]:
    """Return every layer that a step runs, forward order, with random numbers of the right shape where it reads.

    Example:
        >>> size = Size(batch=2, latent_dim=3, hidden=(5,))
        >>> uses = layer_uses(size, size.build(torch.device("cpu")), torch.zeros(2, 784))
        >>> [(use.layer.in_features, use.layer.out_features, use.needs_gradient) for use in uses]
        [(784, 5, False), (5, 6, True), (3, 5, True), (5, 784, True)]
    """
    uses: list[Use] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (entered,) = inputs
        uses.append(Use(cast(Layer, layer), torch.randn_like(entered), output, needs_gradient=bool(uses)))

    encoder, decoder = bare(vae.encoder), bare(vae.decoder)
    layers = [
        m for net in (encoder, decoder) for m in net.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        encoder(x)
        decoder(torch.randn(size.particles * len(x), size.latent_dim, device=x.device))
    finally:
        for handle in handles:
            handle.remove()
    return uses


class Products(Variant):
    """The products of a step alone, one after another; on CUDA as one recorded graph."""

    def __init__(self, size: Size, vae: VAE, x: Tensor) -> None:
        super().__init__(size, vae, x)
        self.kernels = [kernel for use in layer_uses(size, vae, x) for kernel in use.kernels()]
        self.once: Kernel = self._recorded() if x.is_cuda else self._in_turn

    def run(self, steps: int, learning_rate: float) -> float:
        """Run the products of so many steps; there is no loss."""
        for _ in range(steps):
            self.once()
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
    """Return operations and bytes of a step, of all replicates."""
    uses = layer_uses(size, vae, x)
    return size.replicates * sum(use.operations for use in uses), size.replicates * sum(use.bytes for use in uses)


def measure_device(device: torch.device, length: int = 8192, repeats: int = 10) -> tuple[float, float]:
    """Return operations a second of a large product of matrices, and bytes a second of a large copy.

    Both in float32 at the precision in force (``torch.get_float32_matmul_precision``), the best of ten.

    Args:
        device: where.
        length: of the matrices; the copy is of four of them.
        repeats: how many of each.
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
