"""Shapes that depend on values: a trace keeps those of its one run, so a graph that selects by a mask is refused."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_vae.base.errors import InputError
from pyro_vae.engines.compiled.step import STOCK


def refuse_varying_shapes(graph: GraphModule, constants: range) -> None:
    """Refuse a graph in which the number of selected entries depends on data, parameters or noise.

    ``z[z > 0]`` has another length in each step, but the graph fills, sums and expands to the length of its trace.
    Selecting by a mask that never varies (a buffer, a constant) is kept.

    Args:
        graph: traced by ``make_fx``.
        constants: numbers of the inputs that do not vary from step to step.

    Raises:
        InputError: names the operation, and how many entries it selected in the trace.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> refuse_varying_shapes(make_fx(lambda z, mask: z[mask])(torch.ones(3), torch.ones(3).bool()), range(1, 2))
        >>> refuse_varying_shapes(make_fx(lambda z: z[z > 0])(torch.ones(3)), range(0))
        Traceback (most recent call last):
        ...
        pyro_vae.base.errors.InputError: Expected a program whose shapes are the same in each step; got a selection of 3 entries by a mask that depends on data, parameters or noise (aten.index). Try torch.where instead of a mask, or engine="svi".
    """  # noqa: E501 - a message is one line
    varying = _varying(graph, constants)
    for node in graph.graph.nodes:
        if _selects(node) and varying.intersection(_selectors(node)):
            operation = str(node.target).rpartition(".")[0]
            got = f"a selection {_count(node)}by a mask that depends on data, parameters or noise ({operation})"
            hint = f"torch.where instead of a mask, or {STOCK}"
            raise InputError("a program whose shapes are the same in each step", got, hint)


def _selects(node: Node) -> bool:
    """Whether the shape of an operation's output depends on values; of an index, only if it is a mask."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    return node.target is not torch.ops.aten.index.Tensor or any(map(_is_mask, _selectors(node)))


def _selectors(node: Node) -> list[Node]:
    """Return what decides how many entries are selected: an index's indices, any other operation's inputs."""
    if node.target is not torch.ops.aten.index.Tensor:
        return node.all_input_nodes
    indices = node.args[1]
    assert isinstance(indices, Iterable)
    return [index for index in indices if isinstance(index, Node)]


def _is_mask(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def _count(node: Node) -> str:
    value = node.meta.get("val")
    return f"of {value.shape[0]} entries " if isinstance(value, Tensor) and value.ndim else ""


def _varying(graph: GraphModule, constants: range) -> set[Node]:
    """Return the nodes whose values differ from step to step, those that an operation changes in place included."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    varying = {node for number, node in enumerate(inputs) if number not in constants}
    for node in graph.graph.nodes:
        if varying.intersection(node.all_input_nodes) or _samples(node):
            varying.update([node, *_changed_in_place(node)])
    return varying


def _samples(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _changed_in_place(node: Node) -> list[Node]:
    """Return the tensor that an operation writes to, and those of which it is a view."""
    changed: list[Node] = []
    follows = _writes(node)
    while follows and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
        changed.append(node)
        follows = _returns_its_input(node)
    return changed


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _returns_its_input(node: Node) -> bool:
    """Whether the output shares memory with the first input: a view, or an operation in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(output.alias_info is not None for output in schema.returns)
