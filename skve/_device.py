"""Where and how precisely a fit runs, and the random generators that make it repeatable."""

import contextlib
import multiprocessing
import numbers
import os
import pathlib
import random
import re
import threading
import weakref

import joblib
import numpy as np
import torch

_MEMINFO, _CGROUP = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup")
PURPOSES = ("split", "order", "augment", "member", "noise", "bootstrap")  # the place in the list enters the seed


def resolve_device(device):
    """Return the torch device that `device` names; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ValueError
        If torch does not know the device, or this machine does not have it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a torch device; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from error
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={device!r}: skve computes on 'cpu', 'cuda' and 'mps'; use one of them, or 'auto'")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this machine has no usable CUDA device; use device='auto'")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}: this machine has no usable MPS device; use device='auto'")
    return resolved


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


def resolve_training_dtype(precision, device, linear_share):
    """Return the dtype of the backbone's arithmetic in training.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16", "float16"}
        "auto" is bfloat16 where the processor multiplies it natively and it is faster: on CUDA devices from
        compute capability 8.0, and on CPUs with AVX512-BF16 or AMX if most of the backbone's weights sit in
        linear layers (convolutions, the depthwise ones above all, gain nothing there). It is never float16, whose
        narrow range needs scaled losses and may still overflow.
    device : torch.device
    linear_share : float
        Share of the backbone's matrix weights that belongs to linear layers, 0 to 1.

    Returns
    -------
    torch.dtype
    """
    if precision != "auto":
        if device.type == "mps" and precision != "float32":
            raise ValueError(f"precision={precision!r}: on MPS all is float32; set precision='float32' or 'auto'")
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    if device.type == "cpu" and linear_share > 0.5 and _cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_multiplies_bfloat16():
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def autocast(device, dtype):
    """Return the context of arithmetic in `dtype`, whatever autocast the caller may have switched on."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    # Without the cache: it is emptied when the outermost autocast ends, and that outlives the steps of a fit, which
    # would go on with the weights of the first one.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def reader_threads(device):
    """Return how many threads may read files while the network computes on `device`.

    As many as the cores hold networks of torch's threads. None in a worker of joblib or multiprocessing, nor in any
    thread but the main one: there, others work beside this one.
    """
    if multiprocessing.parent_process() is not None or threading.current_thread() is not threading.main_thread():
        return 0
    return joblib.cpu_count() // (torch.get_num_threads() if device.type == "cpu" else 1)


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)


def is_out_of_memory(error):
    """Say whether an exception tells that memory is short: CUDA and Python have a class for it, others only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def release_memory(device):
    """Give what torch keeps for later allocations back to an accelerator."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


_locks: weakref.WeakSet = weakref.WeakSet()


def new_lock():
    """Return a reentrant lock that is free in a forked process, whichever thread held it at the fork."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _after_fork():
    """Free the locks, whose holders are not here; compute without the OpenMP threads, which are not here either.

    torch would wait for those for ever, if the parent process had used them.
    """
    torch.set_num_threads(1)
    for lock in _locks:
        lock._at_fork_reinit()  # as the standard library does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
_global_generators = new_lock()


@contextlib.contextmanager
def own_global_generators(seed):
    """Let foreign code draw from the global generators of torch, NumPy and Python, seeded; put them back afterwards.

    One thread at a time: the generators belong to the process.
    """
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _global_generators, torch.random.fork_rng(devices=cuda):
        of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():  # else the seed would wait there and replace the caller's
                torch.cuda.manual_seed_all(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


@contextlib.contextmanager
def neutral_modes(device):
    """Leave the modes of torch that the caller may be in: inference mode, no_grad, autocast.

    Tensors of inference mode would stay in the cache, and autocast would reach into backward passes.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


class Seeds:
    """The independent random streams of one fit: one `torch.Generator` per purpose and member.

    Parameters
    ----------
    random_state : None, int or numpy.random.RandomState
        None takes fresh entropy from the operating system, so that NumPy's global state stays untouched.
    n_epochs : int, default=0
        Epochs that were trained before: a fit that goes on must not repeat the orders of the last one.
    split_seed : int, default=None
        Seed of the first fit's "split", which a fit that goes on must repeat: what was trained on must not become
        validation data.
    """

    def __init__(self, random_state, n_epochs=0, split_seed=None):
        self._n_epochs, self._split_seed = n_epochs, split_seed
        if random_state is None:
            self._root = np.random.SeedSequence()
        elif isinstance(random_state, numbers.Integral):
            self._root = np.random.SeedSequence(int(random_state))
        else:
            self._root = np.random.SeedSequence(int(random_state.randint(2**31)))

    def generator(self, purpose, member=0):
        """Return the generator of `purpose` (one of `PURPOSES`) for a member, on the CPU."""
        if purpose == "split" and self._split_seed is not None:
            return torch.Generator().manual_seed(self._split_seed)
        key = (PURPOSES.index(purpose), member, *([self._n_epochs] if self._n_epochs else []))
        child = np.random.SeedSequence(self._root.entropy, spawn_key=key)
        return torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0]) >> 1)
