"""
====================================================
9. Scaling: a large collection, and how many members
====================================================

To predict a collection that does not fit into memory, or whose results should survive a crash, predict it in parts:
pass paths rather than arrays, and append the table of each part to a file. The memory then depends on the size of a
part, and not on the size of the collection.

The cost of a prediction grows with the number of members, because every image passes through the network once for
each of them. The second half of the example fits ensembles of one, two and four members and draws what they
cost, in seconds, and what they gain, in the negative log-likelihood (NLL) of test images. The times depend on the
machine, so look at their proportions.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.metrics import log_loss

from skve import SVEClassifier
from skve.datasets import load_fashion

data = load_fashion()
X_train, y_train = data.images[::3], data.target[::3]  # about 20 images of each class


def make_classifier(n_members):
    return SVEClassifier(n_members=n_members, layers="last:2", image_size=32, max_steps=80, random_state=0)


# %%
# In parts
# --------
# First a folder of photographs, as a stand-in for a large one:

folder = Path(tempfile.mkdtemp())
for index, image in enumerate([*data.images_test, *data.images_ood[:100]]):
    Image.fromarray(image).save(folder / f"{index:06}.png")

# %%
# The paths may come from anywhere that yields them one after the other. Each part is read, predicted, appended to the
# file and forgotten:

clf = make_classifier(4).fit(X_train, y_train)
paths = sorted(folder.iterdir())
table = folder / "predictions.csv"
for start in range(0, len(paths), 200):
    part = paths[start : start + 200]
    frame = clf.predict_uncertainty(part).to_frame(X=[path.name for path in part])
    frame.to_csv(table, mode="a", header=start == 0, index=False)

# %%
# The file is read line by line, too. Answer the familiar items of which the model is certain, and leave the others to
# a person:

counts = {"answered": 0, "left to a person": 0, "foreign": 0}
with table.open(newline="") as file:
    for row in csv.DictReader(file):
        if float(row["novelty"]) > 0.95:
            counts["foreign"] += 1
        else:
            counts["answered" if float(row["total"]) < 0.5 else "left to a person"] += 1
print(counts)

# %%
# How many members?
# -----------------

numbers, seconds, errors = [1, 2, 4], {"fit": [], "predict": []}, []
for n_members in numbers:
    clf = make_classifier(n_members)
    begin = time.perf_counter()
    clf.fit(X_train, y_train)
    fitted = time.perf_counter()
    proba = clf.predict_proba(data.images_test)
    seconds["fit"].append(fitted - begin)
    seconds["predict"].append(time.perf_counter() - fitted)
    errors.append(log_loss(data.target_test, proba, labels=clf.classes_))

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
for name, values in seconds.items():
    left.plot(numbers, values, "o-", label=f"{name}, {len(X_train if name == 'fit' else proba)} images")
left.set(xlabel="Members", ylabel="Seconds", ylim=(0, None), xticks=numbers)
left.legend()
right.plot(numbers, errors, "o-")
right.set(xlabel="Members", ylabel="Test NLL", ylim=(0, 1.1 * max(errors)), xticks=numbers)

if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=120)
else:
    plt.show()
