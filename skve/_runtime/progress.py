"""Progress on standard error, which may be missing, closed, broken or full: that never ends a computation.

Terminals and notebooks show a bar. Anything else, such as a log file, gets a line now and then.
"""

import contextlib
import sys
import time
import warnings
from typing import Self

with warnings.catch_warnings(action="ignore"):  # of a notebook without ipywidgets, which shows the bar of a terminal
    from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class _SafeStream:
    """Standard error as it is at the moment, without its exceptions."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self.encoding = None
        with contextlib.suppress(Exception):
            self.encoding = self._stream.encoding

    def write(self, text: str) -> None:
        with contextlib.suppress(Exception):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()  # tqdm asks for the width of the terminal and expects any exception


class _Lines:
    """What the bar shows, as lines of text: one from time to time, and one at the end."""

    def __init__(self, total: int) -> None:
        self.total, self.n = total, 0
        self._postfix = ""
        self._start = self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._write()

    def set_postfix(self, figures: dict[str, str]) -> None:
        self._postfix = ", ".join(f"{name}={value}" for name, value in figures.items())

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._start
        form = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        options = {"prefix": "skve", "unit": "batch", "postfix": self._postfix, "bar_format": form}
        _write_line(tqdm.format_meter(self.n, self.total, elapsed, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _is_live() -> bool:
    """Say whether standard error is a terminal or a notebook, where a bar replaces itself."""
    try:
        return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")
    except Exception:
        return False


def _is_shown() -> bool:
    """Say whether this is the process of a data-parallel training that reports for all."""
    from skve._runtime.processes import rank

    return rank() == 0


def _write_line(text: str) -> None:
    stream = _SafeStream()
    stream.write(text + "\n")
    stream.flush()


def report_progress(message: str) -> None:
    """Print a message on a line of its own."""
    if _is_shown():
        _write_line(message)


def progress_bar(total: int, *, shown: bool = True) -> tqdm | _Lines:
    """Return a bar over `total` batches with the time left, or lines instead; nothing is printed unless `shown`."""
    shown = shown and _is_shown()
    if shown and not _is_live():
        return _Lines(total)
    return tqdm(total=total, unit="batch", desc="skve", file=_SafeStream(), dynamic_ncols=True, disable=not shown)
