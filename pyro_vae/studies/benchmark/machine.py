"""The machine on which a benchmark ran."""

import os
import platform
from pathlib import Path
from typing import TypedDict

import torch

from pyro_vae.base.version import installed_versions

PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "numpy")


class Machine(TypedDict):
    """What a benchmark records about its machine."""

    processor: str
    machine: str
    system: str
    cores: int | None
    threads: int
    jax_threads: str
    device: str
    float32_matmul_precision: str
    versions: dict[str, str | None]


def describe_machine(device: torch.device) -> Machine:
    """Return processor, cores, threads, versions and the device's name.

    Example:
        >>> import torch
        >>> from pyro_vae.studies.benchmark import describe_machine
        >>> describe_machine(torch.device("cpu"))["device"]
        'cpu'
    """
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "jax_threads": "JAX's own pool, one thread per core, whatever torch's threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": installed_versions(PACKAGES),
    }


def _processor() -> str:
    """Return the processor's model name where the system reports one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
