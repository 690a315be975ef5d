"""Checking a trace against the program again: what was changed since is an error that names it.

A trace keeps every number that is no parameter, buffer or input: a temperature, a branch on a flag, a submodule. The
eager step is repeated on the inputs and the noise of its first run, and compared with what it computed then.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.base.batch import Batch, filled, tensors_of
from pyro_vae.base.errors import InputError
from pyro_vae.engines.compiled.compare import TOLERANCES, tensor_errors
from pyro_vae.engines.compiled.held import changes, differs, held_values, numbers
from pyro_vae.engines.compiled.step import STOCK, StepFunction, held_tensors
from pyro_vae.engines.compiled.trace import AFTER, eager_step, reference_run
from pyro_vae.program.protocol import Program

EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}  # where a value that the program holds has changed
NAMED = 3  # changes in a message
BUFFERS = f"a registered buffer changed in place for what is meant to change (docs/engines.md), or {STOCK}"


class Tensors:
    """The parameters and buffers with which an engine was started: it reads and updates these very tensors.

    Args:
        programs: the program, or the replicates.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self._programs = programs
        self._started = [_addresses(program) for program in programs]

    def check(self) -> None:
        """Raise for a tensor that was frozen, unfrozen, replaced, added or removed.

        Raises:
            InputError: names the first ones.
        """
        for index, (program, started) in enumerate(zip(self._programs, self._started, strict=True)):
            now = _addresses(program)
            if now != started:
                found = [_said(name, started.get(name), now.get(name)) for name in {**started, **now}]
                got = _some([text for text in found if text]) + _of_replicate(index, len(self._programs))
                hint = f"tensors changed in place, fit(program, ...) anew after freezing, or {STOCK}"
                raise InputError("the parameters and buffers with which engine compiled was started", got, hint)


class Baseline:
    """The eager step at the time of the trace: inputs, outputs, and what the program held beside its tensors.

    Args:
        functions: the step of the program, or of every replicate; the trace is the first one's.
        x: the batch of the trace.
        kl_weight: the weight of the KL of the trace.

    Raises:
        InputError: the program does not run; replicates that differ in more than their parameters' values.
    """

    def __init__(self, functions: Sequence[StepFunction], x: Batch, kl_weight: Tensor) -> None:
        self._functions, self._weight = functions, kl_weight.clone()
        self._x = filled(x, [tensor.clone() for tensor in tensors_of(x)])
        self._inputs = [t.clone() for t in functions[0].inputs()]
        before = [held_values(f.program) for f in functions]
        self.reference = reference_run(functions[0], self._x, self._weight, self._inputs)
        for name, tensor in zip(functions[0].names(), self._inputs, strict=True):  # most stay as they are: one copy
            if torch.equal(self.reference[name + AFTER], tensor):
                self.reference[name + AFTER] = tensor
        self._held = [held_values(functions[0].program), *before[1:]]
        self._moving = {n for n in {**before[0], **self._held[0]} if differs(before[0], self._held[0], n)}
        self._check_alike()
        self._fresh = True  # no step was taken since the reference

    def check(self) -> None:
        """Repeat the eager step, of a replicate only where a value that it holds has changed.

        Right after the trace it is repeated only where such a value has changed.

        Raises:
            InputError: names what changed, and which of loss and gradients differ.
        """
        for index in range(len(self._functions)):
            if (index == 0 and not self._fresh) or self._changes(index):
                self._check(index)
        self._fresh = False
        self._check_alike()

    def check_where_changed(self) -> None:
        """Repeat the eager step only where a value that the program holds has changed.

        Raises:
            InputError: as :meth:`check`.
        """
        if any(self._changes(index) for index in range(len(self._functions))):
            self.check()

    def _changes(self, index: int) -> list[str]:
        return changes(*(self._settled(v) for v in (self._held[index], held_values(self._functions[index].program))))

    def _check(self, index: int) -> None:
        changed = self._changes(index)
        differing = self._differing(index, exact=bool(changed))
        if differing:
            got = (
                f"{_some(changed) or 'a change of what the program reads'}{_of_replicate(index, len(self._functions))}"
            )
            raise InputError("the program that engine compiled traced", f"{got}: {_some(differing)}", BUFFERS)

    def _check_alike(self) -> None:
        """Check that the replicates compute the same from the same parameters: all run the graph of the first."""
        if len(self._functions) == 1:
            return
        first = self._settled(numbers(held_values(self._functions[0].program)))
        for index, function in enumerate(self._functions[1:], 1):
            changed = changes(first, self._settled(numbers(held_values(function.program))))
            differing = self._differing(index, exact=True) if changed else []
            if differing:
                got = f"in replicate {index} against the first, {_some(changed)}: {_some(differing)}"
                raise InputError("replicates that differ only in their parameters' values", got, "one run for each")

    def _differing(self, index: int, *, exact: bool) -> list[str]:
        try:
            found = eager_step(self._functions[index], self._x, self._weight, self._inputs)
        except Exception as error:  # whatever the program's own code raises
            return [f"now it raises {type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"]
        limits = EXACT if exact and self._x.device.type == "cpu" else TOLERANCES  # CUDA may sum in another order
        return differing(found, self.reference, limits.get(tensors_of(self._x)[0].dtype, 1e-3))

    def _settled(self, values: Mapping[str, object]) -> dict[str, object]:
        """Leave out what the program itself changes as it runs: counters, caches."""
        return {name: value for name, value in values.items() if name not in self._moving}


def differing(found: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """Describe the tensors of two steps that differ by more than a share of their size.

    Example:
        >>> one = {"the loss": torch.tensor(2.0), "the gradient of a": torch.tensor(1.0)}
        >>> differing({"the loss": torch.tensor(3.0)}, one, 0.1)
        ['the loss off by 0.5 of its size', 'the gradient of a gone']
    """
    gone, new = ([n for n in a if n not in b] for a, b in ((reference, found), (found, reference)))
    both = [n for n in reference if n in found and not torch.equal(found[n], reference[n])]  # exact, and fast
    if both:
        both = [n for n in reference if n in found]
    computed = [name for name in both if not name.endswith(AFTER)]  # gradients count beside the largest one
    errors = dict(zip(computed, _errors(computed, found, reference), strict=True))
    errors |= {name: _errors([name], found, reference)[0] for name in both if name.endswith(AFTER)}
    off = [f"{name} off by {error:.2g} of its size" for name, error in errors.items() if not error <= tolerance]
    return off + [f"{n} gone" for n in gone] + [f"{n} new" for n in new]


def _errors(names: Sequence[str], found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[float]:
    return tensor_errors([found[name] for name in names], [reference[name] for name in names])


def _addresses(program: Program) -> dict[str, tuple[bool, bool, int, int]]:
    """Return for each tensor whether it is a parameter, whether it is trained, the object, and its memory."""
    tensors = held_tensors(program).items()
    return {n: (isinstance(t, nn.Parameter), t.requires_grad, id(t), t.data_ptr()) for n, t in tensors}


def _said(name: str, before: tuple[bool, bool, int, int] | None, now: tuple[bool, bool, int, int] | None) -> str:
    if before is None or now is None:
        return f"{name} {'added' if before is None else 'removed'}"
    if before[2:] != now[2:]:
        return f"{name} replaced by another tensor"
    return "" if before == now else f"{name} {'unfrozen' if now[1] else 'frozen'} (requires_grad={now[1]})"


def _of_replicate(index: int, count: int) -> str:
    return f" of replicate {index}" if count > 1 else ""


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
