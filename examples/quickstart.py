"""Clothes, and things that are none: a singular value ensemble beside logistic regression.

Fits an ensemble on 600 small photographs of clothing with a pretrained backbone (EfficientNet-Lite0, from a package
on PyPI: no network is needed), and logistic regression on the features of the same backbone as it came. Prints how
good and how honest both are, and how well each detects handwritten digits, which are no clothes. Draws the images
that the ensemble is most and least certain of, and those that are most unlike its training data. Takes two or three
minutes on two cores.
"""

import argparse
import pathlib
import time

import matplotlib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.metrics import expected_calibration_error, ood_auroc
from skve.plots import ContactSheetDisplay
from skve.uncertainty import entropy

matplotlib.use("agg")
import matplotlib.pyplot as plt


def main(output):
    data = load_fashion()
    print(f"{len(data.images)} training images of {', '.join(data.target_names)}")
    print(f"{len(data.images_test)} test images, {len(data.images_ood)} images of digits, which belong to no class\n")
    clf = SVEClassifier(n_members=4, image_size=64, random_state=0, verbose=1)
    start = time.perf_counter()
    clf.fit(data.images, data.target)
    print(f"fitted in {time.perf_counter() - start:.0f} seconds; {clf.n_member_parameters_:,} numbers a member")

    # What one would use instead: logistic regression on the features of the backbone as it came.
    regression = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": np.logspace(-3, 1, 5)}, scoring="neg_log_loss", cv=5
    ).fit(clf.transform(data.images), data.target)
    proba_regression, proba_digits = (
        regression.predict_proba(clf.transform(images)) for images in (data.images_test, data.images_ood)
    )
    images = [*data.images_test, *data.images_ood]
    u = clf.predict_uncertainty(images)
    clothes, digits = u[: len(data.images_test)], u[len(data.images_test) :]
    proba = clf.predict_proba(data.images_test)

    print(f"\n{'':24} accuracy    NLL    ECE   digits detected (AUROC): by entropy, by novelty")
    for name, p, by_entropy, by_novelty in (
        ("logistic regression", proba_regression, (entropy(proba_regression), entropy(proba_digits)), None),
        ("singular value ensemble", proba, (clothes.total, digits.total), (clothes.novelty, digits.novelty)),
    ):
        accuracy = accuracy_score(data.target_test, clf.classes_[p.argmax(axis=1)])
        nll, ece = (
            metric(data.target_test, p, labels=clf.classes_) for metric in (log_loss, expected_calibration_error)
        )
        found = "" if by_novelty is None else f"{ood_auroc(*by_novelty):12.3f}"
        print(f"{name:24} {accuracy:8.1%} {nll:6.3f} {ece:6.3f} {ood_auroc(*by_entropy):36.3f}{found}")
    print(
        f"\nnovelty above 0.95: {(clothes.novelty > 0.95).mean():.1%} of the clothes, "
        f"{(digits.novelty > 0.95).mean():.1%} of the digits"
    )
    picture = output / "quickstart.png"
    draw(u, images, [*data.target_test, *["a digit"] * len(digits)], picture)
    print(f"the images that are most and least certain, and the most unusual: {picture}")


def draw(u, images, truth, picture):
    """Draw the images with the lowest and the highest total uncertainty, and with the highest novelty."""
    rows = {
        "Most certain": np.argsort(u.total),
        "Least certain": np.argsort(-u.total),
        "Most unlike the training data": np.argsort(-u.novelty),
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(8.2, 7.2), layout="constrained")
    for ax, (name, order) in zip(axes, rows.items(), strict=True):
        ContactSheetDisplay.from_predictions(u, images, y_true=truth, indices=order[:6], name=name, ax=ax)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default, help="folder of the picture")
    main(parser.parse_args().output)
