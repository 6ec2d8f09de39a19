"""The callbacks of scikit-learn, which it has from version 1.9 on."""

import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris

from skve.testing import ToyClassifier

pytest.importorskip("sklearn.callback")


class Log:
    """A callback that notes what it is called for, and ends the fit after a number of epochs."""

    def __init__(self, n_epochs=None):
        self.n_epochs, self.calls = n_epochs, []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context):
        self.calls.append(f"end {context.task_name}")
        return self.n_epochs is not None and self.calls.count("end epoch") >= self.n_epochs

    def teardown(self, estimator, context):
        self.calls.append("teardown")


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def test__set_callbacks__fit__each_epoch_is_a_task(iris):
    log = Log()
    clf = ToyClassifier(n_members=2, max_epochs=2, random_state=0).set_callbacks(log)
    clone(clf).fit(*iris)
    epoch = ["begin epoch", "end epoch"]
    assert log.calls == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]


def test__set_callbacks__callback_that_ends_the_fit__fitted_so_far(iris):
    clf = ToyClassifier(n_members=2, max_epochs=5, random_state=0).set_callbacks(Log(n_epochs=2))
    assert clf.fit(*iris).n_iter_ == 2


def test__set_callbacks__fit_that_fails__torn_down_and_nothing_left(iris):
    log = Log()
    clf = ToyClassifier(n_members=0).set_callbacks(log)
    before = dict(vars(clf))
    with pytest.raises(ValueError, match="n_members"):
        clf.fit(*iris)
    assert log.calls[-1] == "teardown"
    assert vars(clf) == before


def test__set_callbacks__heads_that_are_solved__one_task(iris):
    log = Log()
    ToyClassifier(ensemble="head", n_members=2, random_state=0).set_callbacks(log).fit(*iris)
    assert log.calls == ["setup", "begin fit", "end fit", "teardown"]
