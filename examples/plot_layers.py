"""
===============================================
8. Looking inside: how far did each layer move?
===============================================

An ensemble of a sentence encoder learns 25 intents, and adapts the linear layers of its last two blocks. On the
left, each cell is one layer of one member: the root mean square change of its singular values, where 0 % is
pretrained. On the right are the values themselves as ratios to the pretrained ones: the tick is the median and the
bar spans the middle 90 %, over all members. In healthy training, as here, every layer moves by some tens of
percent, to a similar degree in all members, and the ratios stay around 1. A dark row is a layer that did not learn,
a column unlike the others is a member that went astray, and ratios several times above 1 mean that ``member_lr`` is
too high.
"""

import sys

import matplotlib.pyplot as plt

from skve import SVETextClassifier
from skve.datasets import load_intents
from skve.plots import LayersDisplay

data = load_intents()
clf = SVETextClassifier(n_members=4, layers="last:2", random_state=0)
clf.fit(data.texts[::10], data.target[::10])  # six questions of each of 25 intents

figure = LayersDisplay.from_estimator(clf).figure_

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
