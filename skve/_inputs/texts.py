"""What users pass as texts: every accepted container becomes a sequence of texts; every input error is here."""

import numpy as np

WANTED = (
    "a list of strings, an array or Series of strings, a DataFrame with one column of texts, or for sentence pairs "
    "a list of tuples (first, second) or a DataFrame with two columns"
)


class TextSequence:
    """Texts or sentence pairs, and what they were tokenised to.

    Parameters
    ----------
    first : list of str
    second : list of str or None
        The second sentences of pairs.
    rows : ndarray of int or None
        The part of both lists that this sequence shows, in its order; None shows all.
    kept : dict or None
        Results of `computed_once`, shared by all parts of the same lists.
    """

    def __init__(self, first, second=None, rows=None, kept=None):
        self.first, self.second = first, second
        self.rows = np.arange(len(first)) if rows is None else rows
        self._kept = {} if kept is None else kept

    def __len__(self):
        return len(self.rows)

    @property
    def paired(self):
        return self.second is not None

    def take(self, indices):
        """Return the texts at `indices` as a sequence of their own."""
        return TextSequence(self.first, self.second, self.rows[indices], self._kept)

    def computed_once(self, key, compute):
        """Return `compute()`, which looks at all texts, kept for all parts under `key`."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


def check_texts(X, *, paired=None):
    """Turn X of any accepted kind into a `TextSequence`.

    Parameters
    ----------
    X : object
        See `WANTED`. Empty and whitespace-only texts are texts.
    paired : bool or None
        Whether the estimator was fitted on sentence pairs; None in fit.

    Returns
    -------
    TextSequence

    Raises
    ------
    TypeError
        If X or an element is of no accepted kind; the index is named.
    ValueError
        If X is empty, has a wrong shape or a missing text, or holds pairs where fit saw single texts, or the
        other way round.
    """
    items = _unwrap(X)
    if len(items) == 0:
        raise ValueError("X is empty: 0 sample(s) while a minimum of 1 is required")
    is_pairs = isinstance(items[0], tuple)
    first, second = [], []
    for index, item in enumerate(items):
        if isinstance(item, tuple) != is_pairs and isinstance(item, str | tuple):
            raise TypeError(
                f"X mixes single texts and pairs: X[0] is {_show(items[0])}, X[{index}] is {_show(item)}; "
                f"make all of one kind"
            )
        if not is_pairs:
            first.append(_check_text(item, f"X[{index}]"))
            continue
        if len(item) != 2:
            raise ValueError(f"X[{index}] has {len(item)} texts: {_show(item)}; pass pairs (first, second)")
        first.append(_check_text(item[0], f"X[{index}][0]"))
        second.append(_check_text(item[1], f"X[{index}][1]"))
    if paired is not None and paired != is_pairs:
        kinds = {True: "sentence pairs", False: "single texts"}
        raise ValueError(
            f"X holds {kinds[is_pairs]}, but the estimator was fitted on {kinds[paired]}; pass those, or fit again"
        )
    return TextSequence(first, second if is_pairs else None)


def _unwrap(X):
    """Reduce containers to a list of single texts or a list of tuples."""
    kind = type(X).__name__
    if isinstance(X, str | bytes):
        raise TypeError(f"X is one {kind}; wanted a list of texts, as in [X]")
    if hasattr(X, "columns") and hasattr(X, "shape"):  # pandas and polars frames, duck-typed
        if X.shape[1] not in (1, 2):
            raise ValueError(f"X has {X.shape[1]} columns; wanted one column of texts, or two for sentence pairs")
        columns = [X.iloc[:, i] if hasattr(X, "iloc") else X[X.columns[i]] for i in range(X.shape[1])]
        columns = [_unwrap(column) for column in columns]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    if isinstance(X, list | tuple):
        return X
    if hasattr(X, "to_list"):  # pandas and polars series
        return X.to_list()
    if not isinstance(X, np.ndarray):
        raise TypeError(f"X is a {kind}; wanted {WANTED}")
    if X.dtype.kind not in "OUT":
        raise TypeError(f"X is an array of {X.dtype}; wanted {WANTED}")
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if X.ndim == 2 and X.shape[1] == 2:
        return [tuple(row) for row in X.tolist()]
    if X.ndim != 1:
        raise ValueError(f"X has shape {X.shape}; wanted (n,), or (n, 2) for sentence pairs")
    return X.tolist()


def _check_text(item, where):
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} = {_show(item)} is no valid Unicode: {error}; take such characters out"
            ) from None
        return str(item)  # numpy's string scalars are subclasses
    if _is_missing(item):
        raise ValueError(f"{where} is {item!r}: missing texts must be filled in or dropped")
    hint = "every text must be a string"
    if isinstance(item, list):
        hint = "a text is one string, a sentence pair a tuple (first, second); join tokens with ' '.join"
    elif isinstance(item, bytes):
        hint = "decode it first, as in X[i].decode('utf-8')"
    raise TypeError(f"{where} is {_show(item)}, a {type(item).__name__}; {hint}")


def _is_missing(item):
    return item is None or type(item).__name__ in ("NAType", "NaTType") or (isinstance(item, float) and item != item)


def _show(item):
    shown = repr(item)
    return shown if len(shown) <= 60 else shown[:57] + "..."
