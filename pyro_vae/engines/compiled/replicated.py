"""One traced graph for R replicates: the graph of one, batched over parameters, buffers and noise."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Argument, Target

from pyro_vae.base.batch import Batch, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng, seed_noise
from pyro_vae.base.types import State
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.engines.compiled.compare import TOLERANCES, tensor_errors
from pyro_vae.engines.compiled.step import StepFunction, StepResult, laid_out_as
from pyro_vae.engines.compiled.trace import Flat, TracedStep, refusing, trace_checked
from pyro_vae.models.replicates import Replicates, members
from pyro_vae.program.protocol import Program

aten = torch.ops.aten
NoiseSource = tuple[Callable[..., Tensor], Tensor]  # the sampler, and a tensor of the shape and type of a sample
# operations that fill a tensor with noise: the sampler of standard noise, and how the operation transforms it
FILLED: dict[object, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    aten.normal_.default: (torch.randn, lambda z, mean=0.0, std=1.0: z * std + mean),
    aten.uniform_.default: (torch.rand, lambda u, low=0.0, high=1.0: u * (high - low) + low),
    aten.bernoulli_.float: (torch.rand, lambda u, p=0.5: (u < p).to(u.dtype)),
    aten.exponential_.default: (torch.rand, lambda u, rate=1.0: -torch.log1p(-u) / rate),
}


class ReplicatedFunction:
    """The step of :class:`StepFunction` for R programs at once; the first dimension of every tensor is R.

    The parameters of the programs become views of the stacked ones, so each program stays up to date.

    Args:
        replicates: on their device.
        estimator: one of ours.
        clip_norm: largest norm of each program's gradient.
        kl_weighted: whether the second argument weights the KL; always, where a replicate has a weight other than 1.
    """

    replicated = True

    def __init__(
        self, replicates: Replicates, estimator: Estimator, clip_norm: float = math.inf, *, kl_weighted: bool = False
    ) -> None:
        self.programs, self.estimator = members(replicates), estimator
        self.kl_weighted = kl_weighted or any(weight != 1 for weight in replicates.kl_weights)
        self.least_kl_weight = min(replicates.kl_weights)
        twins = [StepFunction(p, estimator) for p in self.programs]
        self._parameters = {name: _stack([t.parameters[name] for t in twins]) for name in twins[0].parameters}
        self._constants = {name: _stack([t.constants[name] for t in twins]) for name in twins[0].constants}
        self.singles = [StepFunction(p, estimator, clip_norm, kl_weighted=self.kl_weighted) for p in self.programs]
        self.single = self.singles[0]  # the one that is traced
        self.views = [list(t.parameters.values()) for t in twins]  # each program's; they share the stacked storage
        self._rates = replicates.rates
        self.separate = len(set(replicates.rates)) > 1  # whether learning rates differ
        for tensor in self.parameters.values():
            tensor.requires_grad_()
        self._tensors = [t.detach() for t in (*self.parameters.values(), *self.constants.values())]
        self._weights = torch.tensor(replicates.kl_weights, dtype=torch.float64, device=self._tensors[0].device)
        self._state = {name: s.repeat(len(self.programs)) for name, s in self.single.state.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable tensors by name, stacked."""
        return self._parameters

    @property
    def constants(self) -> dict[str, Tensor]:
        """The other tensors by name, stacked."""
        return self._constants

    @property
    def state(self) -> dict[str, Tensor]:
        """The estimator's state for each replicate, (R,)."""
        return self._state

    def tensors(self) -> list[Tensor]:
        """Return parameters and buffers, stacked."""
        return self._tensors

    def inputs(self) -> list[Tensor]:
        """Return parameters, buffers and the estimator's state, stacked."""
        return [*self._tensors, *self.state.values()]

    def weights(self, kl_weight: Tensor) -> Tensor:
        """Return each replicate's weight of the KL, (R,)."""
        return kl_weight * self._weights

    def set_grads(self, result: StepResult) -> None:
        """Set the gradients of the stacked parameters and, with separate rates, of each program's views."""
        for name, gradient in result.gradients.items():
            self.parameters[name].grad = laid_out_as(self.parameters[name], gradient)
            if self.separate:
                index = list(self.parameters).index(name)
                for view, part in zip(self.views, gradient, strict=True):
                    view[index].grad = laid_out_as(view[index], part)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameters in (self.parameters.values(), *self.views):
            for parameter in parameters:
                parameter.grad = None

    @property
    def groups(self) -> list[dict[str, list[Tensor]]]:
        """The optimiser's groups: all stacked parameters, or one group per program."""
        return [{"params": view} for view in self.views] if self.separate else [{"params": [*self.parameters.values()]}]

    @property
    def rates(self) -> list[float]:
        """The factor of the learning rate of every group."""
        return list(self._rates) if self.separate else [self._rates[0]]

    def advance(self, state: Sequence[Tensor]) -> None:
        """Set the estimator's state after a step."""
        self._state = dict(zip(self._state, state, strict=True))

    def estimator_state(self) -> State:
        """Return the estimator's state of all replicates for a checkpoint."""
        return dict(self._state)

    def load_estimator_state(self, state: State) -> None:
        """Restore the estimator's state from a checkpoint."""
        self._state = {name: value.to(self._weights.device) for name, value in state.items()}


def step_function(
    thing: Program | Replicates, estimator: Estimator, clip_norm: float, *, kl_weighted: bool
) -> StepFunction | ReplicatedFunction:
    """Return the step of a program, or of replicates."""
    if isinstance(thing, Replicates):
        return ReplicatedFunction(thing, estimator, clip_norm, kl_weighted=kl_weighted)
    return StepFunction(thing, estimator, clip_norm, kl_weighted=kl_weighted)


def trace_step(
    function: StepFunction | ReplicatedFunction, x: Batch, kl_weight: Tensor, reference: Mapping[str, Tensor]
) -> TracedStep:
    """Trace a step and compare it with the eager program; for replicates, batch the first one's trace over all."""
    if isinstance(function, ReplicatedFunction):
        return trace_batched(function, x, kl_weight, reference)
    return trace_checked(function, x, kl_weight, reference)


def trace_batched(
    function: ReplicatedFunction, x: Batch, kl_weight: Tensor, reference: Mapping[str, Tensor]
) -> TracedStep:
    """Trace the first program's step, check it, and batch it over the replicates.

    Raises:
        InputError: the program cannot be traced, or its sampling cannot be batched.
    """
    with torch.no_grad():
        single = trace_checked(function.single, x, kl_weight, reference)
        graph = single.graph
        sources = _noise_sources(graph, [*tensors_of(x), kl_weight, *function.single.inputs()])

        def step(*inputs: Tensor) -> list[Tensor]:
            noise = [make((len(function.programs), *like.shape), like) for make, like in sources]
            return _each(graph, function, noise, len(tensors_of(x)))(*inputs)

        batched = refusing(lambda: "whose steps can be batched over replicates", "one run per seed")
        with batched, isolated_rng(x.device):
            found: GraphModule = make_fx(step)(*tensors_of(x), kl_weight, *(t.clone() for t in function.inputs()))
            _check(graph, function, sources, x.roll(1, 0), kl_weight)
    return single.by(found)


def _each(graph: GraphModule, function: ReplicatedFunction, noise: list[Tensor], shared: int) -> Flat:
    """Return the graph as a function of ``shared`` tensors of a batch and of stacked ones, on given noise."""

    def one(noise: list[Tensor], *inputs: Tensor) -> list[Tensor]:
        found: list[Tensor] = _Given(graph, noise).run(*inputs)
        return found

    def every(*inputs: Tensor) -> list[Tensor]:
        batch, kl_weight, tensors = inputs[:shared], inputs[shared], inputs[shared + 1 :]
        dims = (0, *(None for _ in batch), 0, *(0 for _ in tensors))
        mapped = torch.func.vmap(one, in_dims=dims, randomness="different")
        with warnings.catch_warnings():  # operations without a batching rule are looped over, while tracing only
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found: list[Tensor] = mapped(noise, *batch, function.weights(kl_weight), *tensors)
        return found

    return every


@torch.no_grad()
def _check(
    graph: GraphModule, function: ReplicatedFunction, sources: list[NoiseSource], x: Batch, kl_weight: Tensor
) -> None:
    """Compare the batched step with the single one, replicate by replicate, on the same given noise."""
    batch = tensors_of(x)
    seed_noise(20_001, x.device)
    noise = [make((len(function.programs), *like.shape), like) for make, like in sources]
    together = _each(graph, function, noise, len(batch))(*batch, kl_weight, *(t.clone() for t in function.inputs()))
    if any(_ignores_given_noise(node) for node in graph.graph.nodes):
        return  # noise cannot be given to these operations
    for index in range(len(function.programs)):
        tensors = [t[index].clone() for t in function.inputs()]
        alone = _Given(graph, [n[index] for n in noise]).run(*batch, function.weights(kl_weight)[index], *tensors)
        error = max(tensor_errors([t[index] for t in together], alone))
        if not error <= TOLERANCES.get(batch[0].dtype, 1e-3):
            got = f"a difference of {error:.2g} of a tensor's size in replicate {index}"
            raise InputError("replicates that equal single steps on the same noise", got, "one run per seed")


def _ignores_given_noise(node: Node) -> bool:
    """Whether an operation samples its own noise: Bernoulli, categorical, gamma, dropout."""
    tags = getattr(node.target, "tags", ())
    return node.target not in FILLED and torch.Tag.nondeterministic_seeded in tags


def _noise_sources(graph: GraphModule, inputs: list[Tensor]) -> list[NoiseSource]:
    """Return the source of each tensor that the graph fills with noise, in order."""
    found: list[NoiseSource] = []

    class Watch(Interpreter):
        def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
            if target in FILLED:
                filled = cast(Tensor, args[0])
                found.append((_like(FILLED[target][0]), filled.detach().clone()))
            return super().call_function(target, args, kwargs)

    with isolated_rng(inputs[0].device):
        Watch(graph).run(*(t.clone() for t in inputs))
    return found


def _like(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda shape, like: sample(shape, dtype=like.dtype, device=like.device)


class _Given(Interpreter):
    """Runs a graph on given noise; each operation that samples takes the next tensor."""

    def __init__(self, graph: GraphModule, noise: Sequence[Tensor]) -> None:
        super().__init__(graph)
        self._noise = iter(noise)

    def run_node(self, n: Node) -> object:
        if n.op != "call_function" or n.target not in FILLED:
            return super().run_node(n)
        arguments, options = self.fetch_args_kwargs_from_env(n)
        transform = FILLED[n.target][1]
        value = transform(next(self._noise), *arguments[1:], **_without_generator(options))
        self.env[n.all_input_nodes[0]] = value  # later nodes read the filled tensor
        return value


def _without_generator(kwargs: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in kwargs.items() if key != "generator"}


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack tensors and make each of them a view of its row."""
    stacked = torch.stack([t.detach() for t in tensors])
    for index, tensor in enumerate(tensors):
        tensor.data = stacked[index]
    return stacked
