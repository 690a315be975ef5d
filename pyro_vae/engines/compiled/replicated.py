"""One traced graph for R replicates: the graph of one, batched over parameters, buffers and noise."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.base.errors import InputError
from pyro_vae.base.random import isolated_rng, seed_noise
from pyro_vae.engines.compiled.compare import TOLERANCES, tensor_errors
from pyro_vae.engines.compiled.step import StepFunction, StepResult, laid_out_as
from pyro_vae.engines.compiled.trace import traced
from pyro_vae.models.replicates import Replicates

aten = torch.ops.aten
FILLED: dict[
    Any, tuple[Callable[..., Tensor], Callable[..., Tensor]]
] = {  # operations that fill a tensor with noise: what they make of a standard draw of its shape
    aten.normal_.default: (torch.randn, lambda z, mean=0.0, std=1.0: z * std + mean),
    aten.uniform_.default: (torch.rand, lambda u, low=0.0, high=1.0: u * (high - low) + low),
    aten.bernoulli_.float: (torch.rand, lambda u, p=0.5: (u < p).to(u.dtype)),
    aten.exponential_.default: (torch.rand, lambda u, rate=1.0: -torch.log1p(-u) / rate),
}


class ReplicatedFunction:
    """The step of ``StepFunction``, for R programs at once; every tensor has R in front.

    The parameters of the programs become views of stacked ones: each program stays alive and up to date.

    Args:
        programs: on their device.
        estimator: one of ours.
        clip_norm: largest norm of each program's gradient.
    """

    def __init__(self, programs: Replicates, estimator: Any, clip_norm: float = math.inf) -> None:
        self.programs, self.estimator = programs, estimator
        self.weighted = any(weight != 1 for weight in programs.kl_weights)
        twins = [StepFunction(p, estimator) for p in programs.programs]  # type: ignore[arg-type]
        self.parameters = {name: _stack([t.parameters[name] for t in twins]) for name in twins[0].parameters}
        self.constants = {name: _stack([t.constants[name] for t in twins]) for name in twins[0].constants}
        self.single = StepFunction(programs.programs[0], estimator, clip_norm)  # type: ignore[arg-type]
        self.views = [list(t.parameters.values()) for t in twins]  # each program's own, which share the stacked storage
        self.separate = len(set(programs.rates)) > 1  # whether each has a learning rate of its own
        for tensor in self.parameters.values():
            tensor.requires_grad_()
        self._tensors = [t.detach() for t in (*self.parameters.values(), *self.constants.values())]
        first = self._tensors[0]
        self._weights = torch.tensor(programs.kl_weights, dtype=torch.float64, device=first.device)
        self._remembered = {name: m.repeat(len(programs)) for name, m in self.single.memory.items()}

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the estimator remembers for each replicate, (R,)."""
        return self._remembered

    @property
    def trained(self) -> list[str]:
        """The names of the parameters that have a gradient."""
        return self.single.trained

    def tensors(self) -> list[Tensor]:
        """Return parameters and buffers, stacked."""
        return self._tensors

    def inputs(self) -> list[Tensor]:
        """Return parameters, buffers and memory, stacked."""
        return [*self._tensors, *self.memory.values()]

    def weights(self, kl_weight: Tensor) -> Tensor:
        """Return each replicate's weight of the KL, (R,)."""
        return kl_weight * self._weights

    def result(self, flat: Sequence[Tensor]) -> StepResult:
        """Give the flat tensors their names; loss and norm are (R,)."""
        return self.single.result(flat)

    def hand_over(self, result: StepResult) -> None:
        """Put the gradients where the optimiser looks for them: at the stacked parameters, or at each program's."""
        for name, gradient in zip(self.trained, result.gradients, strict=True):
            self.parameters[name].grad = laid_out_as(self.parameters[name], gradient)
            if self.separate:
                index = list(self.parameters).index(name)
                for view, part in zip(self.views, gradient, strict=True):
                    view[index].grad = laid_out_as(view[index], part)

    def let_go(self) -> None:
        """Drop the gradients."""
        for parameters in (self.parameters.values(), *self.views):
            for parameter in parameters:
                parameter.grad = None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What an optimiser is given: all stacked parameters, or a group a program."""
        return [{"params": view} for view in self.views] if self.separate else [{"params": [*self.parameters.values()]}]

    @property
    def rates(self) -> list[float]:
        """The factor of the learning rate of every group."""
        rates = self.programs.rates
        return list(rates) if self.separate else [rates[0]]

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Take up what was remembered before."""
        self._remembered = {name: value.to(self._weights.device) for name, value in memory.items()}

    def remember(self, result: StepResult) -> None:
        """Keep what the estimator is to remember."""
        self._remembered = dict(zip(self._remembered, result.memory, strict=True))


def batched(function: ReplicatedFunction, x: Tensor, kl_weight: Tensor) -> GraphModule:
    """Trace the first program's step, check it, and batch it over the replicates.

    Raises:
        InputError: the program cannot be traced, or draws in a way that cannot be batched.
    """
    single = function.single
    single.weighted = function.weighted
    with torch.no_grad():
        graph = traced(single, x, kl_weight)
        draws = _draws(graph, [x, kl_weight, *single.inputs()])

        def step(x: Tensor, kl_weight: Tensor, *tensors: Tensor) -> list[Tensor]:
            noise = [make((len(function.programs), *like.shape), like) for make, like in draws]
            return _each(graph, function, noise)(x, kl_weight, *tensors)

        with isolated_rng(x.device):
            try:
                found: GraphModule = make_fx(step)(x, kl_weight, *(t.clone() for t in function.inputs()))
            except RuntimeError as error:
                got = str(error).splitlines()[0].rstrip(".")
                raise InputError(
                    "a program whose steps can be batched over replicates", got, "one run a seed"
                ) from error
            _check(graph, function, draws, x.roll(1, 0), kl_weight)
    return found


def _each(graph: GraphModule, function: ReplicatedFunction, noise: list[Tensor]) -> Callable[..., list[Tensor]]:
    """Return the graph as a function of stacked tensors, its noise given, (R, ...) each."""

    def one(noise: list[Tensor], x: Tensor, kl_weight: Tensor, *tensors: Tensor) -> list[Tensor]:
        return _Given(graph, noise).run(x, kl_weight, *tensors)  # type: ignore[no-any-return]

    def every(x: Tensor, kl_weight: Tensor, *tensors: Tensor) -> list[Tensor]:
        dims = (0, None, 0, *(0 for _ in tensors))
        mapped = torch.func.vmap(one, in_dims=dims, randomness="different")
        with warnings.catch_warnings():  # what has no rule of its own is looped over, while tracing alone
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found: list[Tensor] = mapped(noise, x, function.weights(kl_weight), *tensors)
        return found

    return every


@torch.no_grad()
def _check(graph: GraphModule, function: ReplicatedFunction, draws: list[Any], x: Tensor, kl_weight: Tensor) -> None:
    """Compare the batched step with the single one, replicate by replicate, on the same given noise."""
    seed_noise(20_001, x.device)
    noise = [make((len(function.programs), *like.shape), like) for make, like in draws]
    together = _each(graph, function, noise)(x, kl_weight, *(t.clone() for t in function.inputs()))
    if any(_draws_by_itself(node) for node in graph.graph.nodes):
        return  # such draws have no noise that could be given
    for index in range(len(function.programs)):
        tensors = [t[index].clone() for t in function.inputs()]
        alone = _Given(graph, [n[index] for n in noise]).run(x, function.weights(kl_weight)[index], *tensors)
        error = max(tensor_errors([t[index] for t in together], alone))
        if not error <= TOLERANCES.get(x.dtype, 1e-3):
            got = f"a difference of {error:.2g} of a tensor's size in replicate {index}"
            raise InputError("replicates that equal single steps on the same noise", got, "one run a seed")


def _draws_by_itself(node: Node) -> bool:
    """Whether an operation draws noise that is not given: Bernoulli, categorical, gamma, dropout."""
    tags = getattr(node.target, "tags", ())
    return node.target not in FILLED and torch.Tag.nondeterministic_seeded in tags


def _draws(graph: GraphModule, inputs: list[Tensor]) -> list[tuple[Callable[..., Tensor], Tensor]]:
    """Return, for every tensor that the graph fills with noise, what draws it and a tensor of its kind."""
    found: list[tuple[Callable[..., Tensor], Tensor]] = []

    class Watch(Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target in FILLED:
                found.append((_like(FILLED[target][0]), args[0].detach().clone()))
            return super().call_function(target, args, kwargs)

    with isolated_rng(inputs[0].device):
        Watch(graph).run(*(t.clone() for t in inputs))
    return found


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda shape, like: draw(shape, dtype=like.dtype, device=like.device)


class _Given(Interpreter):
    """Runs a graph on noise that is given; each draw takes the next."""

    def __init__(self, graph: GraphModule, noise: Sequence[Tensor]) -> None:
        super().__init__(graph)
        self._noise = iter(noise)

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or n.target not in FILLED:
            return super().run_node(n)
        arguments, options = self.fetch_args_kwargs_from_env(n)
        shape = FILLED[n.target][1]
        value = shape(next(self._noise), *arguments[1:], **_without_generator(options))
        self.env[n.all_input_nodes[0]] = value  # the tensor that is filled, for whoever looks at it later
        return value


def _without_generator(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "generator"}


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack tensors and make each of them a view of its row."""
    stacked = torch.stack([t.detach() for t in tensors])
    for index, tensor in enumerate(tensors):
        tensor.data = stacked[index]
    return stacked
