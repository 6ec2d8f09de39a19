"""
==========================================================
5. Deciding: is this input of a kind that the model knows?
==========================================================

An ensemble that knows ten kinds of clothes is shown test photographs of clothes (filled) and handwritten digits
(hatched), which belong to no class. Each panel is a histogram of one measure for both; the less they overlap, the
better digits are detected, and the AUROC says how well in one number: 0.5 is chance, 1 perfect. The total
uncertainty asks whether the answer may be wrong: it is high for most digits, but for many clothes, too. The novelty
asks whether the image is unlike the training data: nearly all digits lie at the right end, and clothes are spread
evenly, since novelty is the share of training samples that are nearer. A limit of 0.95 calls about one in twenty
clothes foreign. Use both: hand over what is uncertain *or* foreign.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import UncertaintyDisplay

data = load_fashion()
clf = SVEClassifier(n_members=4, layers="last:2", image_size=64, max_epochs=6, random_state=0)
clf.fit(data.images[::3], data.target[::3])  # about 20 images of each class

clothes, digits = clf.predict_uncertainty(data.images_test), clf.predict_uncertainty(data.images_ood)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, measure in zip(axes, ("total", "novelty"), strict=True):
    UncertaintyDisplay.from_predictions(clothes, digits, uncertainty=measure, name="Clothes and digits", ax=ax)

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
