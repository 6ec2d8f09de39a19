"""What users pass as texts: every accepted container becomes a sequence of texts; every input error is here."""

import numpy as np

from skve._inputs.containers import as_sequence, columns_of, is_frame, plain_str
from skve._runtime.wording import quoted

PROMPTS = "a list of tuples (prompt, choices), such as ('The sky is', ['blue', 'green'])"
ACCEPTED = (
    "a list of strings, an array or Series of strings, a DataFrame with one column of texts, or for sentence pairs "
    "a list of tuples (first, second) or a DataFrame with two columns"
)


class TextSequence:
    """Texts, sentence pairs or prompts with choices, and what they were tokenised to.

    Parameters
    ----------
    first : list of str
    second : list of str, list of list of str, or None
        The second sentences of pairs, or the choices of each prompt.
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
        """Whether these are sentence pairs; "choices" for prompts with choices."""
        return "choices" if self.second and isinstance(self.second[0], list) else self.second is not None

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
        See `ACCEPTED`. Empty and whitespace-only texts are texts.
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
        raise ValueError("X must have at least one text, got 0 sample(s) while a minimum of 1 is required.")
    is_pairs = isinstance(items[0], tuple)
    first, second = [], []
    for index, item in enumerate(items):
        if isinstance(item, tuple) != is_pairs and isinstance(item, str | tuple):
            raise TypeError(
                f"X must hold either single texts or pairs, got X[0] = {quoted(items[0])} and X[{index}] = "
                f"{quoted(item)}. Make all of one kind."
            )
        if not is_pairs:
            first.append(_check_text(item, f"X[{index}]"))
            continue
        if len(item) != 2:
            raise ValueError(f"X[{index}] must be a pair (first, second), got {len(item)} texts: {quoted(item)}.")
        if isinstance(item[1], list):
            raise TypeError(
                f"X[{index}][1] must be a string, got {quoted(item[1])}. Lists of choices require head='likelihood'."
            )
        first.append(_check_text(item[0], f"X[{index}][0]"))
        second.append(_check_text(item[1], f"X[{index}][1]"))
    if paired is not None and paired != is_pairs:
        kinds = {True: "sentence pairs", False: "single texts"}
        raise ValueError(
            f"X must hold {kinds[paired]} as in fit, got {kinds[is_pairs]}. Pass the former, or fit again."
        )
    return TextSequence(first, second if is_pairs else None)


def check_choices(X):
    """Turn prompts with choices, in any container, into a `TextSequence`.

    Parameters
    ----------
    X : object
        Pairs of a prompt, which may be empty, and two choices or more, which may not: `PROMPTS`, or a DataFrame with
        two columns.

    Returns
    -------
    TextSequence

    Raises
    ------
    TypeError
        If X or an element is of no accepted kind; the index is named.
    ValueError
        If X is empty, or a prompt has fewer than two choices, or an empty one.
    """
    items = _unwrap(X)
    if len(items) == 0:
        raise ValueError("X must have at least one prompt, got 0 sample(s) while a minimum of 1 is required.")
    prompts, choices = [], []
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(f"X must be {PROMPTS} for head='likelihood', got X[{index}] = {quoted(item)}.")
        where = f"X[{index}][1]"
        listed = as_sequence(item[1], where)
        if not isinstance(listed, list | tuple | np.ndarray):
            raise TypeError(f"{where} must be a list of choices for head='likelihood', got {quoted(listed)}.")
        if len(listed) < 2:
            raise ValueError(f"{where} must have at least two choices, got {len(listed)}.")
        own = [_check_text(choice, f"{where}[{place}]") for place, choice in enumerate(listed)]
        for place, choice in enumerate(own):
            if not choice.strip():
                raise ValueError(f"{where}[{place}] must be a text that can be scored, got {choice!r}.")
        prompts.append(_check_text(item[0], f"X[{index}][0]"))
        choices.append(own)
    return TextSequence(prompts, choices)


def _unwrap(X):
    """Reduce containers to a list of single texts or a list of tuples."""
    kind = type(X).__name__
    if isinstance(X, str | bytes):
        raise TypeError(f"X must be a list of texts, got one {kind}. Pass [X].")
    if is_frame(X):
        if X.shape[1] not in (1, 2):
            raise ValueError(f"X must have one column of texts, or two for sentence pairs, got {X.shape[1]} columns.")
        columns = [_unwrap(column) for column in columns_of(X)]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    X = as_sequence(X, "X")
    if isinstance(X, list | tuple):
        return X
    if not isinstance(X, np.ndarray):
        raise TypeError(f"X must be {ACCEPTED}, got a {kind}.")
    if X.dtype.kind not in "OUT":
        raise TypeError(f"X must be {ACCEPTED}, got an array of {X.dtype}.")
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if X.ndim == 2 and X.shape[1] == 2:
        return [tuple(row) for row in X.tolist()]
    if X.ndim != 1:
        raise ValueError(f"X must have shape (n,), or (n, 2) for sentence pairs, got {X.shape}.")
    return X.tolist()


def _check_text(item, where):
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} must be valid Unicode, got {quoted(item)}: {error}. Remove such characters."
            ) from None
        return plain_str(item)
    if _is_missing(item):
        raise ValueError(f"{where} must be a text, got {item!r}. Fill in missing texts, or drop them.")
    hint = ""
    if isinstance(item, list):
        hint = " A sentence pair is a tuple (first, second); join tokens with ' '.join."
    elif isinstance(item, bytes):
        hint = " Decode it first, as in X[i].decode('utf-8')."
    elif isinstance(item, dict):
        hint = " Pass the texts of its column, as in dataset['text']."
    raise TypeError(f"{where} must be a string, got {quoted(item)} of type {type(item).__name__}.{hint}")


def _is_missing(item):
    return item is None or type(item).__name__ in ("NAType", "NaTType") or (isinstance(item, float) and item != item)
