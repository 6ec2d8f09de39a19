"""
============================================
3. Deciding: a report to hand to a colleague
============================================

``skve.report`` puts everything that is known about a fitted ensemble on one page: how accurate and how well
calibrated it is, from which uncertainty on a person should decide, whether it detects foreign inputs, what it
confuses, which items it gets wrong although it is confident, and what ``skve.diagnose`` finds. With
``path="report.html"`` it writes the page as a single file with its pictures inside. Here the page is shown as a
notebook shows it, after a picture of the questions that the model is least certain about.
"""

import sys

import matplotlib.pyplot as plt

import skve
from skve.datasets import load_intents
from skve.plots import ContactSheetDisplay

data = load_intents()
clf = skve.SVETextClassifier(n_members=4, layers="last:1", max_steps=80, random_state=0)
clf.fit(data.texts[::10], data.target[::10])  # six questions of each of 25 intents

X, y = data.texts_test[::3], data.target_test[::3]
figure = ContactSheetDisplay.from_estimator(clf, X, y, n_items=6, name="Least certain questions").figure_

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()

# %%
# The page: figures with intervals first, then pictures, items and findings. Scroll in it.

summary = skve.report(clf, X, y, X_ood=data.texts_ood[::4])
summary  # noqa: B018

# %%
# The same as figures and as a table, with one row for each item:

print(summary.to_dict()["metrics"])
summary.to_frame()[["X", "y", "prediction", "total", "novelty"]].sort_values("total").tail(3)
