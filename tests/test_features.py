"""`transform`: features of the backbone and of members, as scikit-learn's transformers give them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skve.testing import ToyClassifier


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4))
    return X, (X[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def fitted(data):
    return ToyClassifier(n_members=3, max_epochs=2, random_state=0).fit(*data)


def test__features_of_the_backbone__are_those_of_the_plain_module(data):
    import torch

    from skve.testing import make_toy_backbone

    module = make_toy_backbone(4)
    clf = ToyClassifier(module, n_members=2, max_epochs=2, random_state=0).fit(*data)
    plain = module(torch.from_numpy(np.arcsinh(data[0])).float()).detach().numpy()
    np.testing.assert_allclose(clf.transform(data[0]), plain, atol=1e-6)


def test__members_features__give_their_probabilities_with_their_heads(data, fitted):
    X, _ = data
    features = fitted.set_params(features="members").transform(X).reshape(40, 3, 16)
    head = fitted._state.arrays
    logits = np.einsum("nmd,mcd->mnc", features, head["head.weight"]) + head["head.bias"][:, None]
    proba = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_proba_members(X), proba, atol=1e-5)
    mean = fitted.set_params(features="mean").transform(X)
    np.testing.assert_allclose(mean, features.mean(axis=1), atol=1e-6)
    fitted.set_params(features="backbone")


@pytest.mark.parametrize(("features", "n"), [("backbone", 16), ("mean", 16), ("members", 48)])
def test__tables__have_the_names_of_the_features(data, fitted, features, n):
    pytest.importorskip("pandas")
    import sklearn

    fitted.set_params(features=features)
    with sklearn.config_context(transform_output="pandas"):
        table = fitted.transform(data[0][:3])
    assert list(table.columns) == list(fitted.get_feature_names_out()) == [f"toyclassifier{i}" for i in range(n)]
    fitted.set_params(features="backbone")


def test__a_step_of_a_pipeline__feeds_the_next_one(data):
    X, y = data
    pipeline = make_pipeline(ToyClassifier(n_members=2, max_epochs=1, random_state=0), LogisticRegression())
    assert pipeline.fit(X, y).score(X, y) > 0.8
    assert pipeline[:-1].get_feature_names_out().shape == (16,)


def test__unknown_features__are_refused(data, fitted):
    with pytest.raises(ValueError, match="features"):
        fitted.set_params(features="pixels").transform(data[0])
    fitted.set_params(features="backbone")
