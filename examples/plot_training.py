"""
============================================
7. Looking inside: did training do its work?
============================================

Two ensembles of the same kind learn clothes: on the left with the default learning rate of the singular values, on
the right with one that is far too small. The upper panels show the training loss and the negative log-likelihood
(NLL) of validation images. The lower panels show, for each adapted layer, how widely its singular values spread, as
ratios to the pretrained ones. On the left all layers move. The validation NLL falls for about seven epochs and then
hardly further, while the training loss continues to fall: more epochs would not help. On the right both losses fall
for two epochs and then stay high, because only the heads learn; the lower panel shows the reason, singular values
that stay where they were drawn. ``skve.diagnose`` reports such a model as "ratios hardly moved".
"""

import sys

import matplotlib.pyplot as plt

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.plots import TrainingDisplay

data = load_fashion()
X_train, y_train = data.images[::3], data.target[::3]  # about 20 images of each class
X_val, y_val = data.images[1::3], data.target[1::3]  # as many others

figure, axes = plt.subplots(1, 2, figsize=(7.2, 4.2), layout="constrained")
displays = []
for ax, (member_lr, name) in zip(axes, {None: "Default member_lr", 1e-5: "member_lr=1e-5"}.items(), strict=True):
    clf = SVEClassifier(n_members=2, layers="last:3", member_lr=member_lr, image_size=32, random_state=0)
    clf.fit(X_train, y_train, X_val=X_val, y_val=y_val)
    displays.append(TrainingDisplay.from_estimator(clf, name=name, ax=ax))

for panels in zip(*(display.axes_ for display in displays), strict=True):  # one scale left and right
    plt.setp(panels, ylim=(0, max(ax.get_ylim()[1] for ax in panels)))

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
