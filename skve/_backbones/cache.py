"""The process cache of backbones, and of what predicts with them, bounded by an environment variable."""

import contextlib
import os
import re
import weakref
from collections import OrderedDict

from skve._runtime.device import lying_on_cpu
from skve._runtime.locks import new_lock
from skve._runtime.randomness import OwnDraws

LIMIT = "SKVE_CACHE_LIMIT"  # environment variable, which worker processes inherit
DEFAULT_LIMIT = "2G"

_cache: OrderedDict = OrderedDict()  # key -> Backbone, the least recently used first
_predictors: OrderedDict = OrderedDict()  # key -> (Predictor, weak reference to its owner), likewise
_lock = new_lock()


def cached(key, build):
    """Return the backbone under `key`, building it at most once; drop the least recently used beyond the limit.

    The one that is returned always stays. The global random generators are not touched.
    """
    limit = cache_limit()
    with _lock:
        if key not in _cache:
            with lying_on_cpu(), OwnDraws(0):  # building a module draws random weights
                _cache[key] = build()
        _cache.move_to_end(key)
        _drop_beyond(limit)
        return _cache[key]


def trim():
    """Drop the least recently used beyond the limit, after what is kept has grown."""
    with _lock:
        _drop_beyond(cache_limit())


def _drop_beyond(limit, n_predictors=0):
    """Drop predictors but for the last ones, then backbones but for the last one, while they exceed the limit."""
    for entries, n_kept in ((_predictors, n_predictors), (_cache, 1)):
        while len(entries) > n_kept and _kept_bytes() > limit:
            with contextlib.suppress(KeyError):  # an owner's end comes at any time, without the lock
                entries.popitem(last=False)


def _kept_bytes():
    predictors = [predictor for predictor, _ in list(_predictors.values())]
    return sum(entry.nbytes for entry in [*_cache.values(), *predictors])


def kept_predictor(owner, key):
    """Return what `keep_predictor` kept for an object under a key, or None."""
    key = (id(owner), *key)
    with contextlib.suppress(KeyError):
        predictor, reference = _predictors[key]
        _predictors.move_to_end(key)
        return predictor if reference() is owner else None
    return None


def keep_predictor(owner, key, predictor):
    """Keep a predictor while its owner lives, if the limit leaves room for it beside its backbone.

    Others make room for it, and it makes room for backbones: those take longer to load.
    """
    key, limit = (id(owner), *key), cache_limit()
    if predictor.backbone.nbytes + predictor.nbytes > limit:
        return
    with _lock:
        # Where the entry goes first, its weak reference goes with it. The lock might wait in the midst of anything.
        _predictors[key] = (predictor, weakref.ref(owner, lambda _: _predictors.pop(key, None)))
        _predictors.move_to_end(key)
        _drop_beyond(limit, n_predictors=1)


def cache_limit() -> int:
    """Return the bound of the cache in bytes, from the environment variable `SKVE_CACHE_LIMIT`."""
    text = os.environ.get(LIMIT, DEFAULT_LIMIT)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(
            f"The environment variable {LIMIT} must be a number of bytes, optionally with the unit K, M, G or T, "
            f"got {text!r}. Set it as in {LIMIT}=500M."
        )
    return int(float(found[1]) * 1024 ** ("KMGT".find(found[2].upper()) + 1 if found[2] else 0))


def feature_limit() -> int:
    """Return the bound of the features that are kept of one backbone, in bytes."""
    return cache_limit() // 8


def clear_cache() -> None:
    """Release every backbone that this process keeps, with its decompositions, features and copies on GPUs.

    skve keeps backbones, so that the fits of a grid search and all predictions share one copy of the weights and
    their decompositions. It also keeps the features that a frozen backbone computed of each item, for
    `ensemble="head"` and `"laplace"`, for `novelty` and for `transform`: the folds and candidates of a search pass an
    item through the backbone once. And it keeps the members' weights of estimators that have predicted, until these
    are fitted again or deleted. Items are recognised by their content, files by their path, size and times of
    change; images in memory that have more than six times the pixels of the network's input are computed each time.

    Beyond 2 GiB, the least recently used backbones are released; the environment variable `SKVE_CACHE_LIMIT` sets
    another bound, in bytes or with a unit as in `"500M"` or `"8G"`. It is read whenever a backbone is needed, and
    `"0"` keeps only the one used last. An eighth of the bound is for the features of each backbone (256 MiB, enough
    for 130,000 texts with MiniLM, or for 48,000 images with EfficientNet-Lite0); with `"0"` none are kept. Fitted
    estimators stay valid: what was released is loaded, or computed, again when it is needed.

    Examples
    --------
    >>> import skve
    >>> skve.clear_cache()
    """
    with _lock:
        _predictors.clear()
        _cache.clear()
