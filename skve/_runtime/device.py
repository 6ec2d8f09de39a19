"""Where and how precisely a fit runs."""

import contextlib
import multiprocessing
import os
import threading

import joblib
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from skve._runtime.processes import n_processes
from skve._runtime.warnings import warn

_DEVICES = "'auto', 'cpu', 'cuda', 'cuda:1' or the like, 'mps', or a list of GPUs"


def resolve_devices(device):
    """Return the torch devices that `device` names: several where a list splits the backbone over them.

    Raises
    ------
    ValueError
        If torch does not know a device, this machine does not have it, or a list is not of different devices of one
        kind.
    """
    if not isinstance(device, list | tuple):
        return (_resolved(device),)
    devices = tuple(
        torch.device("cuda", one.index or 0) if one.type == "cuda" else one for one in map(_resolved, device)
    )
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"device must be a list of different devices where it is a list, got {device!r}.")
    if len({one.type for one in devices}) > 1:
        raise ValueError(f"device must be a list of devices of one kind where it is a list, got {device!r}.")
    return devices


def resolve_device(device):
    """Return the torch device that `device` names, of a list the first: where inputs, heads and losses are.

    "auto" is CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ValueError
        See `resolve_devices`.
    """
    return resolve_devices(device)[0]


def _resolved(device):
    if device == "auto":
        if torch.cuda.is_available():
            # Of the processes that torchrun starts on a machine, each has a GPU of its own.
            own = int(os.environ.get("LOCAL_RANK", 0)) if n_processes() > 1 else None
            return torch.device("cuda") if own is None else torch.device("cuda", own % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be {_DEVICES}, got {device!r}.") from error
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be {_DEVICES}, got {device!r}.")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that this machine has, got {device!r} without CUDA. Use 'auto'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be one of the {torch.cuda.device_count()} CUDA devices of this machine, got {device!r}."
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device must be one that this machine has, got {device!r} without MPS. Use 'auto'.")
    return resolved


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
            raise ValueError(f"precision must be 'float32' or 'auto' on MPS, got {precision!r}.")
        return getattr(torch, precision)
    native = torch.bfloat16 in native_dtypes(device)
    return torch.bfloat16 if native and (device.type == "cuda" or linear_share > 0.5) else torch.float32


_WIDE = 128  # from this many inputs and outputs on, a product saves more than converting its inputs costs


def resolve_prediction_dtype(precision, device, weights):
    """Return the dtype of the backbone's arithmetic in prediction.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 where the device multiplies it natively and most of the backbone's weights are float32
        matrices of wide linear layers: between their products, transformers normalise and add in float32, and
        probabilities stay within 0.01 of those in float32. Networks of convolutions pass bfloat16 from layer to
        layer, and on CPUs they are no faster.
    device : torch.device
    weights : list of torch.Tensor
        Weights of linear layers (matrices) and convolutions.

    Returns
    -------
    torch.dtype
        float32 stands for the arithmetic of the weights as they are.
    """
    wide = sum(w.numel() for w in weights if w.dim() == 2 and min(w.shape) >= _WIDE and w.dtype == torch.float32)
    share = wide / max(1, sum(weight.numel() for weight in weights))
    if precision == "auto" and (share <= 0.5 or device.type == "mps"):
        return torch.float32
    return resolve_training_dtype(precision, device, share)


def native_dtypes(device):
    """Return the dtypes in which a device multiplies natively; torch emulates the others, which takes longer."""
    if device.type == "cuda":
        has_bfloat16 = True
        with contextlib.suppress(AssertionError, RuntimeError):  # of torch, where a fit is only planned for a GPU
            has_bfloat16 = torch.cuda.get_device_capability(device)[0] >= 8
        return [torch.float32, torch.float16, *([torch.bfloat16] if has_bfloat16 else [])]
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has_bfloat16 = device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return [torch.float32, *([torch.bfloat16] if has_bfloat16 else [])]


def warn_if_emulated(name, precision, device):
    """Warn where a user asks for arithmetic, by the parameter `name`, that costs time instead of saving it."""
    names = [str(dtype).removeprefix("torch.") for dtype in native_dtypes(device)]
    if precision != "auto" and precision not in names:
        where = "this processor" if device.type == "cpu" else str(device)
        warn(
            f"{name}={precision!r} is emulated on {where} and slower than 'float32': what it multiplies natively is "
            f"{' and '.join(map(repr, names))}. Set {name}='auto'."
        )


def autocast(device, dtype):
    """Return the context of arithmetic in `dtype`, whatever autocast the caller may have switched on."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    # Without the cache: it is emptied when the outermost autocast ends, and that outlives the steps of a fit, which
    # would go on with the weights of the first one.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def dtype_of_products(device, dtype):
    """Return the dtype in which matrices of `dtype` are multiplied on a device at present: autocast may narrow it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def attention_in_float32():
    """Return the context in which attention computes in float32 if a backward pass follows in autocast on a CPU.

    There, the backward pass of torch's fused attention takes up to six times as long in bfloat16 as in float32.
    """
    narrow = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return _AttentionInFloat32() if narrow else contextlib.nullcontext()


class _AttentionInFloat32(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        narrow = torch.get_autocast_dtype("cpu")

        def wide(value):
            is_wide = not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.is_cpu
            return value if is_wide else value.float()

        with torch.autocast("cpu", enabled=False):
            output = func(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
        return output.to(narrow)


def reader_threads(device):
    """Return how many threads may read files while the network computes on `device`.

    As many as the cores hold networks of torch's threads. None in a worker of joblib or multiprocessing, nor in any
    thread but the main one: there, others work beside this one.
    """
    if multiprocessing.parent_process() is not None or threading.current_thread() is not threading.main_thread():
        return 0
    return joblib.cpu_count() // (torch.get_num_threads() if device.type == "cpu" else 1)


@contextlib.contextmanager
def neutral_modes(device):
    """Leave the modes of torch that the caller may be in: inference mode, no_grad, autocast, a default device.

    Tensors of inference mode would stay in the cache, and autocast would reach into backward passes.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        lying_on_cpu(),
    ):
        yield


def lying_on_cpu():
    """Let tensors that name no device lie on the CPU, whatever `torch.set_default_device` says; in this thread."""
    cpu = torch.device("cpu")
    # torch 2.6 cannot say what the default device is once set_default_device(None) was called.
    return contextlib.nullcontext() if torch.empty(0).device == cpu else cpu
