"""What a run is trained on: which device, what it is called, how fast and how full it is.

Nothing here decides a loss, and nothing here enters a run id.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dataeff.errors import InputError

# Dense bfloat16 peak in FLOPs a second, by a part of the device's name; the first that fits counts.
# Data sheets, without sparsity: nvidia.com/en-us/data-center/{h100,h200,a100,dgx-b200}.
PEAK_BFLOAT16_FLOPS: dict[str, float] = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
}

# torch.compile takes about a minute. It is used on CUDA from the training FLOPs that an uncompiled run would need
# more than about a minute for, at 150 TFLOPs a second; below that it cannot pay for itself.
COMPILE_FROM_FLOPS = 1e16


def pick_device(device: str) -> torch.device:
    """Return the device named, or for "auto" the first there is of cuda, mps and cpu. Raises `InputError`."""
    usable = [
        name
        for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True))
        if there
    ]
    name = usable[0] if device == "auto" else device
    if name.partition(":")[0] not in usable:
        raise InputError(f"device '{device}' is not on this machine; use one of: auto, {', '.join(usable)}")
    return torch.device(name)


def describe_device(device: torch.device | str) -> str:
    """Return the kind and the model of the device, such as "cuda (NVIDIA H100 80GB HBM3)" or "cpu (AMD EPYC)"."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type} ({names[0] if names else platform.processor() or platform.machine()})"


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the device's dense peak in FLOPs a second at this precision; None where it is not in the table."""
    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in name), None)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory; outside CUDA it says so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        said in str(error) for said in ("can't allocate memory", "MPS backend out of memory")
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: by tensors on a CUDA device, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # bytes on macOS, kibibytes on Linux


def compile_pays(device: torch.device, training_flops: int) -> bool:
    """Return whether the run is worth compiling: on CUDA, from 1e16 training FLOPs."""
    return device.type == "cuda" and training_flops >= COMPILE_FROM_FLOPS


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU compute with one thread: sums then have one order, and a run has one result in whatever process."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
