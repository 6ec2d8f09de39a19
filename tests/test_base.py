"""scikit-learn's own checks, on the shell that image and text classifiers share."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skve.testing import ToyClassifier

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "a sample of weight 2 is drawn once, two samples may fall "
    "into two mini-batches: the results agree in expectation, not to 1e-7",
}


QUICK = {"n_members": 2, "max_epochs": 15, "head_lr": 5e-2, "device": "cpu", "random_state": 0}


@parametrize_with_checks(
    [ToyClassifier(**QUICK), ToyClassifier(ensemble="deep", member_lr=2e-3, **QUICK)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test__shell__sklearn_check__passes(estimator, check):
    check(estimator)
