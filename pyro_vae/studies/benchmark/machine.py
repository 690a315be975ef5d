"""What a figure was measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pyro_vae.base.types import Json

PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "numpy")


def describe_machine(device: torch.device) -> dict[str, Json]:
    """Return processor, cores, threads, versions and the device's name.

    Example:
        >>> describe_machine(torch.device("cpu"))["device"]
        'cpu'
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "jax_threads": "a pool of its own, one thread a core; --threads does not reach it",
        "device": name,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Return the model's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
