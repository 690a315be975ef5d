"""The working memory of a step: what it allocates beyond parameters and optimiser state."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent
from torch.profiler import ProfilerActivity, profile

MEANING = {
    "cuda": "peak of torch.cuda.max_memory_allocated over a step, less what was allocated before it",
    "cpu": "highest less lowest number of bytes that torch's CPU allocator held during a step, from torch.profiler",
    "jax": "XLA's own account of the compiled loop or step: temporaries and outputs",
}


def working_memory(step: Callable[[], object], device: torch.device) -> float:
    """Return the bytes that a step allocates on top of what was allocated before it: see :data:`MEANING`.

    Parameters and optimiser state are not included. Take the step once before, so that no compilation and no lazy
    initialisation is counted.

    Example:
        >>> import torch
        >>> from pyro_vae.studies.benchmark.memory import working_memory
        >>> a = torch.ones(1000, 1000)
        >>> working_memory(lambda: (a + 1).exp().sum(), torch.device("cpu")) / 1e6 >= 8.0
        True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()  # so that the profiler saw the allocation of what the next step frees
        start = time.time_ns()
        step()
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    changes = sorted(_allocations(results.experimental_event_tree()))
    held, levels = 0, [0]
    for when, size in changes:
        held += size
        if when >= start:
            levels.append(held)
        else:
            levels = [held]
    return max(levels) - min(levels)


def _allocations(events: Sequence[_ProfilerEvent]) -> Iterator[tuple[int, int]]:
    """Yield (nanoseconds, bytes) of every allocation and, with negative bytes, every release."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, cast(_ExtraFields_Allocation, event.extra_fields).alloc_size
        yield from _allocations(event.children)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler from writing to stderr when it starts and stops."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "6"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
