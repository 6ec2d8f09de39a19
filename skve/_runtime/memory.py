"""How much memory is free, and what happens when it is not."""

import contextlib
import os
import pathlib
import re

import torch

_MEMINFO, _CGROUP = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup")


def available_memory(device):
    """Return the free memory of a device in bytes, or None where the system does not tell."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
            return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    rooms = [room for room in (_memory_of_machine(), _room_of_cgroup()) if room is not None]
    return min(rooms, default=None)


def _memory_of_machine():
    with contextlib.suppress(OSError, StopIteration):  # what Linux could free is free, too
        lines = _MEMINFO.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _room_of_cgroup():
    """Return what Linux lets a container still take, or None where there is no limit."""
    files = (  # of version 2, and of version 1, which writes a huge limit where there is none
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
    for limit, usage, statistics in files:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            room = int((_CGROUP / limit).read_text()) - int((_CGROUP / usage).read_text())
            with contextlib.suppress(OSError, ValueError):
                told = dict(line.split() for line in (_CGROUP / statistics).read_text().splitlines())
                room += int(told.get("active_file", 0)) + int(told.get("inactive_file", 0))  # the cache of files
            return max(room, 0)
    return None


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)


def is_out_of_memory(error):
    """Say whether an exception means that memory is short: CUDA and Python have a class for it, others only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def release_memory(device):
    """Give what torch keeps for later allocations back to an accelerator."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def shape_of(inputs):
    """Describe the sizes of a batch."""
    if isinstance(inputs, torch.Tensor):
        return f"shape {tuple(inputs.shape)}"
    return ", ".join(f"{key}: {tuple(value.shape)}" for key, value in inputs.items())
