"""Progress on standard error, which may be missing, closed, broken or full: that never ends a computation."""

import contextlib
import sys

from tqdm.auto import tqdm


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


def _is_shown() -> bool:
    """Say whether this is the process of a data-parallel training that reports for all."""
    from skve._runtime.processes import rank

    return rank() == 0


def report_progress(message: str) -> None:
    """Print a message on a line of its own."""
    if not _is_shown():
        return
    stream = _SafeStream()
    stream.write(message + "\n")
    stream.flush()


def progress_bar(total: int, *, shown: bool = True) -> tqdm:
    """Return a bar over `total` batches with the time left; nothing is printed unless `shown`."""
    return tqdm(
        total=total,
        unit="batch",
        desc="skve",
        file=_SafeStream(),
        dynamic_ncols=True,
        disable=not (shown and _is_shown()),
    )
