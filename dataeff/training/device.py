"""The device that computes: which it is, what it is called, how fast and how full it is, and how much fits on it.

Nothing here decides a loss, and nothing here enters a run id.
"""

import logging
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from dataeff.errors import InputError, OutOfMemory

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Dense bfloat16 peak in FLOPs a second, by a part of the device's name; the first that fits counts.
# Data sheets, without sparsity: nvidia.com/en-us/data-center/{h100,h200,a100,dgx-b200}.
PEAK_BFLOAT16_FLOPS = {"GB200": 2500e12, "B200": 2250e12, "H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12}
PEAK_BFLOAT16_FLOPS |= {"H100": 989.4e12, "A100": 312e12}


def pick_device(device: str) -> torch.device:
    """Return the device named, or for "auto" the first there is of cuda, mps and cpu. Raises `InputError`."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name, there in available.items() if there]
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
    name = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return f"{device.type} ({name[1].strip() if name else platform.processor() or platform.machine()})"


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the device's dense peak in FLOPs a second at this precision; None where it is not in the table."""
    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in name), None)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory; outside CUDA it says so in a plain RuntimeError."""
    said = "can't allocate memory" in str(error) or "MPS backend out of memory" in str(error)
    return said or isinstance(error, torch.OutOfMemoryError)


def halve_until_it_fits(work: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """Return work(size) and the size, which is halved until the device's memory suffices, but not below 1."""
    while True:
        try:
            return work(size), size
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Outside of the `except`: the error, and the tensors that its frames hold, are gone before the next try.
        size = (size + 1) // 2
        log.warning("out of memory: going on with %d at a time", size)


def in_batches(work: Callable[[slice], Result], count: int, size: int) -> Iterator[Result]:
    """Yield work(rows) for all of `count` rows in order, `size` rows at a time or as many as fit."""
    start = 0
    while start < count:
        result, size = halve_until_it_fits(lambda rows, start=start: work(slice(start, start + rows)), min(size, count - start))
        start += size
        yield result


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: by tensors on a CUDA device, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # bytes on macOS, kibibytes on Linux


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Compute with one CPU thread: sums then have one order, a job one result in whatever process, and two workers on two cores
    were 3-7x as fast as with two threads each. Raises `OutOfMemory` where torch runs out of memory.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        remedy = "use a smaller model or context, or a device with more memory"
        raise OutOfMemory(f"{describe_device(device)} has too little memory: {error}; {remedy}") from error
    finally:
        torch.set_num_threads(threads)
