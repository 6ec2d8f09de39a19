"""Locks that know of forks."""

import os
import threading
import weakref

import torch

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
