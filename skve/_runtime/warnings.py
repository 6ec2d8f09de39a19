"""Warnings that name the line of the user's code."""

import os
import sys
import warnings

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def warn(message):
    """Warn at the line outside skve that led here: Python shows a warning once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
