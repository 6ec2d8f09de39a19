"""Pooled features of single items, which one frozen module computes once in a process."""

from collections import OrderedDict

import numpy as np

from skve._backbones.cache import feature_limit, trim
from skve._runtime.locks import new_lock

_OVERHEAD = 400  # bytes of an entry beside its numbers


class KeptFeatures:
    """Features of items by their content; beyond `feature_limit` the least recently used are dropped.

    Features of an item differ in the last digits with the batch that it was in: kept ones are those of the first.
    """

    def __init__(self):
        self._rows: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = new_lock()
        self.nbytes = 0

    def find(self, reading, keys, n_features):
        """Return the features of items, and which are not there.

        Parameters
        ----------
        reading : hashable
            `Backbone.reading`.
        keys : list of bytes or None
            `content_keys` of a pipeline.
        n_features : int

        Returns
        -------
        features : ndarray of shape (n_items, n_features), float32
            The rows of items that are missing are not filled.
        missing : ndarray of bool, shape (n_items,)
        """
        features, missing = np.empty((len(keys), n_features), np.float32), np.ones(len(keys), bool)
        with self._lock:
            for place, key in enumerate(keys):
                row = self._rows.get((reading, key))
                if row is not None:
                    self._rows.move_to_end((reading, key))
                    features[place], missing[place] = row, False
        return features, missing

    def keep(self, reading, keys, features):
        """Keep the features (n_items, n_features) of items; those whose key is None are not kept."""
        limit = feature_limit()
        with self._lock:
            for key, row in zip(keys, features, strict=True):
                if key is not None and (reading, key) not in self._rows:
                    self._rows[reading, key] = row.copy()
                    self.nbytes += row.nbytes + _OVERHEAD
            while self.nbytes > limit:
                _, row = self._rows.popitem(last=False)
                self.nbytes -= row.nbytes + _OVERHEAD
        trim()
