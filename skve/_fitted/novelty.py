"""How far an input is from the training data, and the share of the training samples that are nearer."""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches
from sklearn.utils.extmath import randomized_svd

N_NEIGHBORS = 5
_KEPT_BYTES = 49_500  # of the two arrays of half precision, for each class; decides on the number of directions
_FEWEST_CLASSES = 20  # for which there is room always: under a megabyte
FAMILIAR = 0.95  # the share up to which an input counts as one of the training data's kind
RESOLUTION = 1e-3  # what half precision and the projection leave of a distance
_DUPLICATE = 1e-5  # distance up to which two training samples count once
_ROWS = 512  # inputs that are compared at once


def n_kept(n_classes: int) -> int:
    """Return how many training samples are kept; of more a random part."""
    return min(100 * max(_FEWEST_CLASSES, n_classes), 20_000)


@dataclasses.dataclass(frozen=True, eq=False)
class Novelty:
    """What is kept of the training data to see how far other inputs are from it.

    The distance of an input is one minus the mean cosine similarity of its features to those of the
    `N_NEIGHBORS` nearest training samples (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML 2022; examples/benchmarks/novelty.py compares it with others). Training samples are kept as
    coordinates along the directions that they have most of: these give the inner products with them, while an
    input is scaled by the norm of all its features.

    Attributes
    ----------
    directions : ndarray of shape (n_directions, n_features), float16
        Right singular vectors of the training samples' unit vectors.
    coordinates : ndarray of shape (n_kept, n_directions), float16
        The training samples along them.
    distances : ndarray of shape (n_kept,), float64
        Distance of each kept sample to the others, in ascending order.
    """

    directions: np.ndarray
    coordinates: np.ndarray
    distances: np.ndarray

    @classmethod
    def of_training(cls, features: np.ndarray, earlier: Novelty | None = None, *, n_classes: int = 2) -> Novelty:
        """Keep the features of training samples.

        Parameters
        ----------
        features : ndarray of shape (n_samples, n_features)
            At least one sample. Copies of a sample count once: their distance of zero to one another would let
            all other inputs look far.
        earlier : Novelty, default=None
            What is kept of the data of earlier calls of `partial_fit`, which stays.
        n_classes : int, default=2
            With 20 classes or fewer less than a megabyte is kept, with more in proportion.
        """
        units = normalize(np.asarray(features, np.float64))
        if earlier is not None:
            units = np.concatenate([normalize(earlier.coordinates @ earlier.directions.astype(np.float64)), units])
        if len(units) > n_kept(n_classes):
            units = units[np.sort(np.random.default_rng(0).permutation(len(units))[: n_kept(n_classes)])]
        copies = [
            np.tril(1 - units[rows] @ units.T < _DUPLICATE, rows.start - 1).any(axis=1)
            for rows in gen_batches(len(units), _ROWS)
        ]
        units = units[~np.concatenate(copies)]
        room = _KEPT_BYTES * max(_FEWEST_CLASSES, n_classes)
        n_directions = min(*units.shape, room // (2 * sum(units.shape)))
        directions = randomized_svd(units, max(1, n_directions), random_state=0)[2].astype(np.float16)
        directions = np.ascontiguousarray(directions)  # as it is read again: the layout decides on the last bits
        coordinates = np.ascontiguousarray((units @ directions.T).astype(np.float16))
        new = cls(directions, coordinates, np.zeros(len(units)))
        return dataclasses.replace(new, distances=np.sort(new._to_nearest(units, others=True)))

    def distances_of(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each input (n_samples,) by its features (n_samples, n_features): about 0 to 2."""
        return self._to_nearest(normalize(np.asarray(features, np.float64)))

    def shares(self, distances: np.ndarray) -> np.ndarray:
        """Return the share of the training samples that are nearer to the others than each input is.

        The n samples' own distances cut the line into n + 1 parts, into each of which the distance of another
        sample of the same kind falls with the same probability. Between them the share is interpolated, beyond
        the largest it approaches 1, so that it grows strictly with the distance.

        Parameters
        ----------
        distances : ndarray of shape (n_samples,)
            From `distances_of`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Between 0 and 1.
        """
        known, shares, spread = self.curve()
        beyond = np.maximum(distances - known[-1], 0) / spread
        # A power law: an exponential one would round to 1, and lose the order, a few spreads away.
        return np.where(beyond > 0, 1 - (1 - shares[-1]) / (1 + beyond), np.interp(distances, known, shares))

    def curve(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return distances in ascending order, the share at each, and the spread that scales what lies beyond."""
        known, n_nearer = np.unique(self.distances, return_index=True)
        shares = (n_nearer + 1) / (len(self.distances) + 1)
        middle = np.median(self.distances)
        spread = max(RESOLUTION, float(np.mean(self.distances[self.distances >= middle]) - middle))
        return np.append(min(known[0], 0) - RESOLUTION, known), np.append(0, shares), spread

    @property
    def n_neighbors(self) -> int:
        """The number of neighbours of an input that count."""
        return max(1, min(N_NEIGHBORS, len(self.coordinates) - 1))

    def _to_nearest(self, units, *, others=False):
        """Return the distances of unit vectors; with `others`, of the kept samples, each without itself."""
        n_neighbors = self.n_neighbors
        kept, directions = self.coordinates.astype(np.float64), self.directions.astype(np.float64)
        distances = np.zeros(len(units))
        if others and len(units) == 1:  # no other sample
            return distances
        for rows in gen_batches(len(units), _ROWS):
            similarity = units[rows] @ directions.T @ kept.T
            if others:
                places = np.arange(rows.start, rows.stop)
                similarity[places - rows.start, places] = -np.inf
            nearest = np.partition(similarity, -n_neighbors, axis=1)[:, -n_neighbors:]
            distances[rows] = 1 - nearest.mean(axis=1)
        return distances
