"""
=============================================
6. Comparing: are the probabilities reliable?
=============================================

Two models learn ten kinds of clothes from about 20 photographs each: one fine-tune of every weight, and a singular
value ensemble of four members. Each diagram compares, bin by bin, how confident the model is with how often it is
right. The band is the 95 % interval of the accuracy, and the bars below show the share of the test images in each
bin. On the diagonal, a confidence of 0.8 is correct 80 % of the time; below it, the model is overconfident. The
fine-tune is overconfident in every bin above 0.6: of its answers with a confidence of about 0.85, roughly three in
four are right. The ensemble is closer to the diagonal and has the smaller calibration error (ECE). Ignore the far
left of either diagram: few images fall there, as the wide bands show. Most bands contain the diagonal, so the
difference is a hint rather than a proof; ``skve.metrics.paired_bootstrap`` computes its interval.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import ReliabilityDisplay

data = load_fashion()
X_train, y_train = data.images[::3], data.target[::3]  # about 20 images of each class

figure, axes = plt.subplots(1, 2, figsize=(7, 4.2), layout="constrained")
for ax, (ensemble, name) in zip(axes, {"single": "One fine-tune", "sve": "SVE, 4 members"}.items(), strict=True):
    clf = SVEClassifier(ensemble=ensemble, image_size=32, random_state=0).fit(X_train, y_train)
    ReliabilityDisplay.from_estimator(clf, data.images_test, data.target_test, n_bins=10, name=name, ax=ax)

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
