"""Warnings: the user's line is named, and what other libraries say to nobody is ignored without a trace."""

import threading
import warnings

import pytest

from skve._runtime.warnings import ignored, warn
from tests.toys import toy_classifier


def test__warn__from_skve__names_the_line_outside_it():
    with pytest.warns(UserWarning, match="said") as caught:
        warn("said")
    assert caught[0].filename == __file__


@pytest.fixture
def filters():
    """The filters as the test found them; they must be the same ones behind it."""
    before = list(warnings.filters)
    yield before
    assert warnings.filters == before


def test__ignored__matching_warning__not_shown(filters):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ignored("so many"):
            warnings.warn("So many words", UserWarning, stacklevel=1)
            warnings.warn("other words", UserWarning, stacklevel=1)
        warnings.warn("so many words", UserWarning, stacklevel=1)
    assert [str(each.message) for each in caught] == ["other words", "so many words"]


def test__ignored__two_threads_that_overlap__no_filter_stays(filters):
    """`warnings.catch_warnings` leaves the first thread's filter behind when the second ends last."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with ignored("the same"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with ignored("the same"):
        thread.start()
        entered.wait(10)
    assert len(warnings.filters) == len(filters) + 1  # the other thread needs it
    leave.set()
    thread.join()


def test__ignored__around_the_end_of_a_block_of_catch_warnings__no_filter_stays(filters):
    block, ours = warnings.catch_warnings(), ignored("that")
    with ours:
        block.__enter__()
    block.__exit__(None, None, None)
    with warnings.catch_warnings():
        ours = ignored("that")
        ours.__enter__()
    ours.__exit__(None, None, None)
    assert warnings.filters == filters


def test__fit__in_threads__no_filter_of_ours_stays(images):
    threads = [
        threading.Thread(target=lambda: toy_classifier(max_epochs=1, n_members=1).fit(*images)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [each for each in warnings.filters if each[1] is not None and "lr_scheduler" in each[1].pattern]
