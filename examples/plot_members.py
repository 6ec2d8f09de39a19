"""
==========================================
2. First steps: what does each member say?
==========================================

Each row shows an image and, for its three most probable classes, the probabilities of the four members (marks) and
their mean (bars). The true class is in bold type, and has a row of its own if it is not among the three. From top to
bottom: the test image that the ensemble is most certain about, where the marks coincide; the most ambiguous one,
where every member spreads its probability over several classes (aleatoric uncertainty); the most contested one, where
members favour different classes (epistemic uncertainty); and the most contested digit, for which no class is right.
Single members are more certain about it than their mean, so that one member alone would have hidden the uncertainty.
Texts are drawn in the same way: fit ``SVETextClassifier`` and pass a list of texts.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import MembersDisplay

data = load_fashion()
clf = SVEClassifier(n_members=4, layers="last:3", image_size=32, random_state=0)
clf.fit(data.images[::3], data.target[::3])  # about 20 images of each class

u = clf.predict_uncertainty(data.images_test)
sure, ambiguous, contested = u.total.argmin(), (u.aleatoric - u.epistemic).argmax(), u.epistemic.argmax()
chosen = [sure, ambiguous, contested]
foreign = clf.predict_uncertainty(data.images_ood).epistemic.argmax()

images = [*data.images_test[chosen], data.images_ood[foreign]]
truth = [*data.target_test[chosen], "none: a digit"]
figure = MembersDisplay.from_estimator(clf, images, truth).figure_

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
