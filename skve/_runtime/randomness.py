"""Random generators that make a fit repeatable and that nobody else feels."""

import contextlib
import numbers
import random

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from skve._runtime.locks import new_lock

# The place in the list enters the seed.
PURPOSES = ("split", "order", "augment", "member", "noise", "bootstrap", "novelty")


_global_generators = new_lock()


class OwnDraws(TorchFunctionMode):
    """Let torch draw from a generator of this thread's own where code would draw from the global one.

    For what is built of torch alone. Nothing of the process changes, whatever other threads do meanwhile.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed):
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _DRAWS and kwargs.get("generator") is None:
            with contextlib.suppress(RuntimeError):  # of a tensor on another device, whose generator is another
                return func(*args, **{**kwargs, "generator": self._generator})
        return func(*args, **kwargs)


_DRAWS = frozenset(
    ["bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm"]
    + ["bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"]
    # Of torch.nn.init, where a mode sees the whole function and nothing in it.
    + ["kaiming_normal_", "kaiming_uniform_", "orthogonal_", "trunc_normal_", "xavier_normal_", "xavier_uniform_"]
)


@contextlib.contextmanager
def own_global_generators(seed):
    """Let a user's code draw from the global generators of torch, NumPy and Python, seeded; put them back afterwards.

    One thread at a time: the generators belong to the process. Threads that are not skve's should not draw from them
    meanwhile.
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
