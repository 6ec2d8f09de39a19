"""Progress goes to standard error and ends nothing, whatever has become of standard error."""

import io
import os
import sys

import numpy as np
import pytest

from skve._runtime.progress import progress_bar, report_progress
from skve.testing import ToyClassifier

X, y = np.random.default_rng(0).normal(size=(48, 3)), np.arange(48) % 2


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


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


def test__progress__standard_error_closed_half_way__goes_on(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(3) as bar:
        bar.update()
        stream.close()
        bar.set_postfix(loss=1)
        bar.update(2)
        assert bar.n == 3


def test__report__message__one_line_on_standard_error(capsys):
    report_progress("a message")
    assert capsys.readouterr() == ("", "a message\n")


@pytest.mark.parametrize("shown", [True, False])
def test__progress_bar__shown_or_not__counts_batches(shown, capsys):
    with progress_bar(4, shown=shown) as bar:
        bar.update(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("4/4" in captured.err and "skve" in captured.err) if shown else not captured.err
