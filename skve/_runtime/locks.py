"""Locks that know of forks, and attributes that are computed once without a lock."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

_locks: weakref.WeakSet = weakref.WeakSet()
_Value = TypeVar("_Value")


def new_lock():
    """Return a reentrant lock that is free in a forked process, whichever thread held it at the fork."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


class cached_property(Generic[_Value]):  # noqa: N801 - as in functools
    """`functools.cached_property` without the lock that it has in Python 3.11, which a forked process may find held.

    Two threads may compute the value at the same time.
    """

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> _Value:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


def _after_fork():
    """Free the locks, whose holders are not here; compute without the OpenMP threads, which are not here either.

    torch would wait for those for ever, if the parent process had used them.
    """
    torch.set_num_threads(1)
    for lock in _locks:
        lock._at_fork_reinit()  # as the standard library does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
