"""
==================================================
1. First steps: which predictions can you rely on?
==================================================

An ensemble learns ten kinds of clothes from about 20 photographs each. Then it sees new photographs of clothes, and
handwritten digits, which are not clothes at all. From top to bottom: the clothes it is most confident about, the
clothes it is most uncertain about, and, of all images, those least like its training data.

Two numbers answer two questions. The *total uncertainty*, in nats, shows whether the answer may be wrong: captions in
colour are errors, at most one of them in the first row and most of them in the second. The *novelty* shows how unlike
the training data an image is: 0.95 means that 95 % of the training images lie nearer to the rest of them. Most images
of the third row are digits, although the model has never seen any. So use the answers of the first row, let a person
decide about the second, and reject the third.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import ContactSheetDisplay

data = load_fashion()
clf = SVEClassifier(n_members=4, layers="last:3", image_size=32, random_state=0)
clf.fit(data.images[::3], data.target[::3])  # about 20 images of each class

images = [*data.images_test[::2], *data.images_ood[::5]]
truth = [*data.target_test[::2], *["a digit"] * len(data.images_ood[::5])]
u = clf.predict_uncertainty(images)

rows = {
    "Most confident: answer these": np.argsort(u.total[:250])[:5],
    "Most uncertain: let a person decide": np.argsort(-u.total[:250])[:5],
    "Most foreign: do not answer": np.argsort(-u.novelty)[:5],
}
figure, axes = plt.subplots(3, 1, figsize=(6.9, 7.3), layout="constrained")
for ax, (title, chosen) in zip(axes, rows.items(), strict=True):
    ContactSheetDisplay.from_predictions(u, images, y_true=truth, indices=chosen, name=title, ax=ax)

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=110)
else:
    plt.show()
