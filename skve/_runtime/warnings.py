"""Warnings that name the line of the user's code, and those of other libraries that say nothing to the user."""

import contextlib
import os
import re
import sys
import warnings

from skve._runtime.locks import new_lock

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_CALLBACKS = os.path.join("sklearn", "callback", "")  # which wraps `fit`


def warn(message):
    """Warn at the line outside skve that led here: Python shows a warning once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_OWN) or _CALLBACKS in frame.f_code.co_filename
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


_lock = new_lock()
_ignored: dict[tuple, list] = {}  # filter -> the list of filters that each block under way has found


@contextlib.contextmanager
def ignored(message):
    """Ignore the UserWarnings that match a regular expression.

    `warnings.catch_warnings` puts back all filters as they were, and where threads overlap those of another thread
    stay for ever. This adds one filter, and takes just that away behind the last thread.
    """
    own = ("ignore", re.compile(message, re.IGNORECASE), UserWarning, None, 0)
    with _lock:
        _ignored.setdefault(own, []).append(warnings.filters)
        if own not in warnings.filters:
            warnings.filters.insert(0, own)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _lock:
            lists = [*_ignored[own], warnings.filters]  # others where somebody's catch_warnings began or ended
            _ignored[own].pop()
            if not _ignored[own]:
                del _ignored[own]
                for filters in lists:
                    while own in filters:
                        filters.remove(own)
