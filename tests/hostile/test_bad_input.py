"""Bad input and bad parameters: the error names them, and the estimator stays as it was and usable."""

import numpy as np
import pytest

from tests._inputs.test_images import TYPE_ERRORS, VALUE_ERRORS
from tests.toys import TinyMLP, image_files, toy_classifier


def test__fit__bad_input_of_any_kind__estimator_as_it_was_and_usable(images):
    X, y = images
    classifier = toy_classifier(max_epochs=1).fit(X, y)
    before, expected = dict(vars(classifier)), classifier.predict_proba(X)
    for bad, _ in [*VALUE_ERRORS.values(), *TYPE_ERRORS.values()]:
        labels = np.arange(len(bad) if hasattr(bad, "__len__") else 3) % 2
        for call in (
            lambda bad=bad, labels=labels: classifier.fit(bad, labels),
            lambda bad=bad: classifier.predict(bad),
        ):
            with pytest.raises((ValueError, TypeError)):
                call()
        assert vars(classifier) == before
    assert np.array_equal(classifier.predict_proba(X), expected)


def test__fit__unreadable_file_in_the_validation_part__index_of_the_users_x(tmp_path, images):
    X, y = images
    paths = image_files(X, tmp_path)
    for broken in (0, 11, 23):
        good = paths[broken].read_bytes()
        paths[broken].write_bytes(b"this is no image")
        with pytest.raises(ValueError, match=rf"X\[{broken}\] = '.*/{broken}\.png' must be an image file"):
            toy_classifier(early_stopping=True, validation_fraction=0.3, max_epochs=1).fit(paths, y)
        paths[broken].write_bytes(good)
    files = toy_classifier(max_epochs=1).fit(paths, y)
    arrays = toy_classifier(max_epochs=1).fit(X, y)
    assert np.array_equal(files.predict_proba(paths), arrays.predict_proba(X))


BAD_PARAMETERS = [
    {"ensemble": "svd"},
    {"ensemble_params": 3},
    {"n_members": 0},
    {"n_members": 2.5},
    {"layers": 4},
    {"layers": "fc9"},
    {"init_scale": -1},
    {"train_bias": "yes"},
    {"member_lr": 0},
    {"head_lr": -1e-3},
    {"weight_decay": -1},
    {"head_weight_decay": -1},
    {"max_epochs": 0},
    {"batch_size": 0},
    {"schedule": "step"},
    {"warmup": 1.0},
    {"grad_clip": 0},
    {"label_smoothing": 1.0},
    {"class_weight": "equal"},
    {"validation_fraction": 0},
    {"validation_fraction": 1.0},
    {"early_stopping": None},
    {"n_iter_no_change": 0},
    {"image_size": 4},
    {"image_shape": 5},
    {"augment": "heavy"},
    {"precision": "float8"},
    {"device": "tpu9"},
    {"warm_start": 2},
    {"random_state": -1},
    {"random_state": "seed"},
    {"verbose": -1},
    {"callbacks": "print"},
]


@pytest.mark.parametrize("bad", BAD_PARAMETERS, ids=str)
def test__fit__bad_parameter__value_error_names_it_and_estimator_stays_usable(images, bad):
    classifier = toy_classifier(TinyMLP(), max_epochs=1)
    good = {name: getattr(classifier, name) for name in bad}
    name = next(iter(bad))
    with pytest.raises(ValueError, match=name):
        classifier.set_params(**bad).fit(*images)
    assert not hasattr(classifier, "classes_")
    assert classifier.set_params(**good).fit(*images).predict(images[0]).shape == (24,)


@pytest.mark.parametrize("n", [0, 23, 25])
def test__fit__lengths_that_differ__value_error(images, n):
    X, y = images
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        toy_classifier().fit(X, np.resize(y, n))
