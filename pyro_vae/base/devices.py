"""The device of a run."""

import torch

from pyro_vae.base.errors import InputError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA if it is available, else the CPU.

    Raises:
        InputError: an unknown device, or a CUDA device that is not available.

    Example:
        >>> from pyro_vae.base import resolve_device
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError("a device, one of auto, cpu, cuda", repr(name), "device='auto'") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError("a device, one of auto, cpu, cuda", repr(str(name)), "device='cpu'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("a CUDA device", "a machine on which torch sees none", "device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"one of the {count} CUDA devices here", repr(str(name)), "device='cuda:0'")
    return device
