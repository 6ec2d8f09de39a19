"""Locks: every one of the package is free in a forked process."""

import functools
import importlib
import pkgutil
import threading

import skve
from skve._runtime import locks

KINDS = (
    *(type(make()) for make in (threading.Lock, threading.RLock)),
    *(threading.Condition, threading.Semaphore, threading.Event, threading.Barrier, functools.cached_property),
)


def held(thing):
    """Return the locks among the values of a module or a class, and of the classes in it."""
    found = []
    for name, value in vars(thing).items():
        if isinstance(value, KINDS):
            found.append((name, value))
        elif isinstance(value, type) and value.__module__ == getattr(thing, "__name__", None):
            found += held(value)
    return found


def test__all_modules__locks__are_those_that_know_forks():
    """In Python 3.11 a cached_property has a lock that all instances share."""
    found = []
    for module in pkgutil.walk_packages(skve.__path__, "skve."):
        loaded = importlib.import_module(module.name)
        found += [(module.name, name, value) for name, value in held(loaded)]
    known = set(map(id, locks._locks))
    assert len(found) >= 3
    assert [(module, name) for module, name, value in found if id(value) not in known] == []


def test__held__lock_of_a_module_and_of_a_class__found():
    class Holder:
        __module__ = "threading"
        lock = threading.Lock()

    assert [name for name, _ in held(Holder)] == ["lock"]


def test__cached_property__read_twice__computed_once_and_no_lock():
    class Square:
        count = 0

        @locks.cached_property
        def value(self):
            """The square."""
            self.count += 1
            return 9

    square = Square()
    assert (square.value, square.value, square.count) == (9, 9, 1)
    assert Square.value.__doc__ == "The square."
    assert held(Square) == []
