"""The process cache of backbones and their decompositions."""

from collections import OrderedDict

from skve._runtime.locks import new_lock
from skve._runtime.randomness import own_global_generators

CACHE_BYTES = 2 * 1024**3


_cache: OrderedDict = OrderedDict()  # key -> Backbone, the least recently used first


_lock = new_lock()


def cached(key, build):
    """Return the backbone under `key`, building it at most once; drop the least recently used beyond 2 GiB.

    The global random generators are left as they were.
    """
    with _lock:
        if key not in _cache:
            with own_global_generators(0):  # building a module draws random weights
                _cache[key] = build()
        _cache.move_to_end(key)
        while len(_cache) > 1 and sum(backbone.nbytes for backbone in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return _cache[key]


def clear_cache():
    """Forget every backbone and decomposition that this process keeps."""
    with _lock:
        _cache.clear()
