"""Made-up but lifelike inputs of every display, used by the tests and to look at the pictures."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB

from skve import plots
from skve.uncertainty import Uncertainty


def _digits():
    data = load_digits()
    rng = np.random.default_rng(0)
    X = data.data + rng.normal(scale=8, size=data.data.shape)
    model = GaussianNB().fit(X[:900], data.target[:900])
    return data.target[900:], model.predict_proba(X[900:])


def _history(n_layers=12, n_epochs=8):
    epochs = np.arange(1, n_epochs + 1)
    return {
        "epoch": epochs.tolist(),
        "loss": (2.2 * np.exp(-epochs / 2.5) + 0.1).tolist(),
        "valid_nll": (1.9 * np.exp(-epochs / 2.2) + 0.35 + 0.01 * epochs).tolist(),
        "ratio_spread": {
            f"blocks.{i}.attn.qkv": (0.01 + 0.004 * (i + 1) * (1 - np.exp(-epochs / 3))).tolist()
            for i in range(n_layers)
        },
        "gradient_norm": {},
    }


def _ratios(n_layers=12, n_members=4):
    rng = np.random.default_rng(0)
    return {
        f"blocks.{i}.attn.qkv": np.exp(rng.normal(scale=0.02 + 0.01 * i, size=(n_members, 64)))
        for i in range(n_layers)
    }


def reliability(ax=None):
    return plots.ReliabilityDisplay.from_predictions(*_digits(), name="Naive Bayes", ax=ax)


def reliability_classes(ax=None):
    return plots.ReliabilityDisplay.from_predictions(*_digits(), classes=[1, 8, 9], n_bins=5, ax=ax)


def risk_coverage(ax=None):
    y_true, y_proba = _digits()
    display = plots.RiskCoverageDisplay.from_predictions(y_true, y_proba, name="Naive Bayes", ax=ax)
    rng = np.random.default_rng(0)
    noisy = rng.uniform(size=len(y_true)) - 0.5 * y_proba.max(axis=1)
    plots.RiskCoverageDisplay.from_predictions(y_true, y_proba, uncertainty=noisy, name="with noise", ax=display.ax_)
    return display


def uncertainty(ax=None):
    rng = np.random.default_rng(0)
    return plots.UncertaintyDisplay.from_predictions(
        rng.gamma(1.2, 0.3, size=800),
        rng.gamma(4.0, 0.4, size=500),
        name="SVE, 4 members",
        xlabel="Epistemic uncertainty (nats)",
        ax=ax,
    )


def members_images(ax=None):
    data = load_digits()
    rng = np.random.default_rng(3)
    chosen = [3, 5, 69]
    logits = 4 * np.eye(10)[data.target[chosen]] + rng.normal(scale=[[0.5], [1.5], [2.5]], size=(4, 3, 10))
    proba = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return plots.MembersDisplay.from_members(
        proba, samples=data.images[chosen], y_true=data.target[chosen], name="SVE", ax=ax
    )


def members_texts(ax=None):
    texts = [
        "I want to move money from my savings to my checking account, how long does that take?",
        "What is the weather like on the far side of the moon this afternoon, and is there any chance that "
        "it will rain there before the end of the week?",
        "freeze my card",
    ]
    classes = ["transfer", "weather", "freeze_account_please", "balance"]
    rng = np.random.default_rng(0)
    logits = 3 * np.eye(4)[[0, 1, 2]] + rng.normal(scale=[[0.5], [2.5], [1]], size=(6, 3, 4))
    proba = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return plots.MembersDisplay.from_members(
        proba, samples=texts, classes=classes, y_true=["transfer", "weather", "balance"], name="SVE", ax=ax
    )


def contact_sheet(ax=None):
    data = load_digits()
    rng = np.random.default_rng(0)
    members, novelty = rng.dirichlet(np.full(10, 0.4), size=(4, 8)), rng.uniform(size=8)
    u = Uncertainty.from_members(members, classes=range(10), novelty=novelty)
    return plots.ContactSheetDisplay.from_predictions(
        u, data.images[:8], y_true=data.target[:8], n_items=6, name="Least certain", ax=ax
    )


def training(ax=None):
    return plots.TrainingDisplay.from_history(_history(), name="SVEClassifier", ax=ax)


def layers(ax=None):
    return plots.LayersDisplay.from_ratios(_ratios(), name="SVEClassifier", ax=ax)


def layers_many(ax=None):
    return plots.LayersDisplay.from_ratios(_ratios(n_layers=74, n_members=8), ax=ax)


CASES = {
    function.__name__: function
    for function in (
        reliability,
        reliability_classes,
        risk_coverage,
        uncertainty,
        members_images,
        members_texts,
        contact_sheet,
        training,
        layers,
        layers_many,
    )
}
# Height in inches at a column's width of 3.3.
COLUMN_HEIGHT = {"reliability": 3.8, "reliability_classes": 3.8, "risk_coverage": 2.6, "uncertainty": 2.6}
