"""
==========================================================
5. Deciding: is this input of a kind that the model knows?
==========================================================

An ensemble that knows ten kinds of clothes is shown test photographs of clothes (filled) and handwritten digits
(hatched), which belong to no class. Each panel is a histogram of one measure of uncertainty for both; the less they
overlap, the better digits can be told, and the AUROC says how well in one number: 0.5 is chance, 1 perfect. Most
digits stand to the right in both panels, so a limit on either measure would catch most of them. But there is no
limit that catches all digits and no clothes: some clothes are as uncertain as the digits, and a few digits as
certain as clothes. Here the total uncertainty does slightly better than the epistemic part. Which measure is better
depends on the model and on what is foreign: compare them on your own.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import UncertaintyDisplay

data = load_fashion()
clf = SVEClassifier(n_members=4, image_size=32, max_epochs=6, random_state=0)
clf.fit(data.images[::3], data.target[::3])  # about 20 images of each class

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, measure in zip(axes, ("total", "epistemic"), strict=True):
    UncertaintyDisplay.from_estimator(
        clf, data.images_test, data.images_ood, uncertainty=measure, name="Clothes and digits", ax=ax
    )

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
