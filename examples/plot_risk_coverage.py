"""
==================================================
4. Deciding: which questions to leave to a person?
==================================================

An ensemble learns 25 intents of a bank's customers from six questions each. Suppose that it answers only the
questions that it is most certain about, and leaves the others to a person: each curve shows the error rate among its
answers (risk) against the share that it answers (coverage). All curves end at the same point, where everything is
answered. The lower a curve is before that point, the better the measure ranks the model's errors; the dotted line is
the best possible ranking. Which measure is best depends on the coverage. Up to about 0.9 it is the total uncertainty:
the most certain half of the answers has hardly an error. The disagreement counts votes: it cannot rank the 90 % of
the questions on which all four members agree, so that its curve is flat there, but answering exactly those is a good
choice. The epistemic uncertainty alone ranks errors worse than the total.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVETextClassifier
from skve.datasets import load_intents
from skve.plots import RiskCoverageDisplay

data = load_intents()
X_train, y_train = data.texts[::10], data.target[::10]  # six questions of each of 25 intents
clf = SVETextClassifier(n_members=4, layers="last:2", random_state=0).fit(X_train, y_train)

# As from_estimator does, but predicting once for all three curves.
proba = clf.predict_proba(data.texts_test)
u = clf.predict_uncertainty(data.texts_test)
figure, ax = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
for measure in ("total", "epistemic", "disagreement"):
    RiskCoverageDisplay.from_predictions(
        data.target_test, proba, uncertainty=getattr(u, measure), labels=clf.classes_, name=measure, ax=ax
    )

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
