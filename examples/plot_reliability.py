"""
=============================================
6. Comparing: are the probabilities reliable?
=============================================

Two models learn ten kinds of clothes from some twenty photographs each: one fine-tune of every weight, and a singular
value ensemble of four members. Each diagram compares, bin by bin, how confident the model is with how often it is
right; the band is the 95 % interval of the accuracy, and the bars below show how many test images each bin holds. On
the diagonal a confidence of 0.8 is right 80 times in a hundred; below it the model promises too much. The fine-tune
does so in every bin above 0.6: of its answers at about 0.85, roughly three in four are right. The ensemble keeps
closer to the diagonal, puts fewer images into the last bin, and has the smaller calibration error (ECE). Do not read
the far left of either diagram: few images fall there, and the bands say so. Most bands hold the diagonal, so this is
a hint and no proof; ``skve.metrics.paired_bootstrap`` tells how sure the difference is.
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
    clf = SVEClassifier(ensemble=ensemble, image_size=32, max_epochs=8, random_state=0).fit(X_train, y_train)
    ReliabilityDisplay.from_estimator(clf, data.images_test, data.target_test, n_bins=10, name=name, ax=ax)

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
