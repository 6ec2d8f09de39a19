"""Progress goes to standard error and ends nothing, whatever has become of standard error."""

import io
import os
import sys

import numpy as np
import pytest

from skve._runtime import progress
from skve._runtime.progress import progress_bar, report_progress
from skve.testing import ToyClassifier

X, y = np.random.default_rng(0).normal(size=(48, 3)), np.arange(48) % 2


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def detached():
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    stream.detach()
    return stream


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return io.TextIOWrapper(os.fdopen(write, "wb", buffering=0), "utf-8", write_through=True)


STREAMS = {"none": lambda: None, "closed": closed, "detached": detached, "broken pipe": broken_pipe, "full": Full}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test__progress__unusable_standard_error__fit_and_predict_as_without(make, monkeypatch):
    parameters = {"n_members": 2, "max_epochs": 1, "batch_size": 2, "random_state": 0}
    silent = ToyClassifier(**parameters).fit(X, y).predict_proba(X)
    monkeypatch.setattr(sys, "stderr", make())
    assert np.array_equal(ToyClassifier(**parameters, verbose=1).fit(X, y).predict_proba(X), silent)


@pytest.mark.parametrize("is_terminal", [True, False])
def test__progress__standard_error_closed_half_way__goes_on(is_terminal, monkeypatch):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(3) as bar:
        bar.update()
        stream.close()
        bar.set_postfix({"loss": "1"})
        bar.update(2)
        assert bar.n == 3


def test__report__message__one_line_on_standard_error(capsys):
    report_progress("a message")
    assert capsys.readouterr() == ("", "a message\n")


@pytest.mark.parametrize("shown", [True, False])
def test__progress_bar__terminal__one_bar(shown, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(4, shown=shown) as bar:
        bar.update(4)
        bar.set_postfix({"loss": "0.5"})
    written = stream.getvalue()
    assert ("\r" in written and "4/4" in written and "skve" in written) if shown else not written


@pytest.mark.parametrize(("seconds", "n_lines"), [(0, 4), (1e9, 1)], ids=["lines at once", "a line in ages"])
def test__progress_bar__log_file__few_whole_lines(seconds, n_lines, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", seconds)
    with progress_bar(3) as bar:
        bar.set_postfix({"epoch": "1/2", "loss": "0.5"})
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == n_lines
    assert lines[-1].startswith("skve: 100% 3/3 [")
    assert lines[-1].endswith("epoch=1/2, loss=0.5]")
    assert "\r" not in "".join(lines)


def test__progress_bar__log_file_not_shown__nothing(capsys):
    with progress_bar(3, shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test__progress_bar__notebook__a_bar(monkeypatch):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(2) as bar:
        bar.update(2)
    assert "\r" in stream.getvalue()
