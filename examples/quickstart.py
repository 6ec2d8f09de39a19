"""Clothes, and images that are none: a singular value ensemble beside linear heads.

Fits both on 600 small photographs of clothing with the same pretrained backbone (EfficientNet-Lite0, from a package
on PyPI: no network is required), prints how accurate and how well calibrated they are, and draws the images that the
ensemble is most and least certain about. Takes a minute or two on two cores.
"""

import argparse
import pathlib
import time

import matplotlib
import numpy as np
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from skve import SVEClassifier
from skve.datasets import load_fashion
from skve.metrics import expected_calibration_error
from skve.plots import ContactSheetDisplay

matplotlib.use("agg")
import matplotlib.pyplot as plt


def main(output):
    data = load_fashion()
    print(f"{len(data.images)} training images of {', '.join(data.target_names)}")
    print(f"{len(data.images_test)} test images, {len(data.images_ood)} images of digits that no class fits\n")
    rows, fitted = [], {}
    for name, ensemble in (("linear heads", "head"), ("singular value ensemble", "sve")):
        print(f"fitting: {name}, 4 members")
        clf = SVEClassifier(ensemble=ensemble, n_members=4, image_size=64, max_epochs=6, random_state=0, verbose=1)
        start = time.perf_counter()
        clf.fit(data.images, data.target)
        seconds = time.perf_counter() - start
        proba = clf.predict_proba(data.images_test)
        clothes, digits = clf.predict_uncertainty(data.images_test), clf.predict_uncertainty(data.images_ood)
        is_digit = np.repeat([0, 1], [len(clothes.total), len(digits.total)])
        rows.append(
            (
                name,
                accuracy_score(data.target_test, clf.classes_[proba.argmax(1)]),
                log_loss(data.target_test, proba),
                expected_calibration_error(data.target_test, proba, labels=clf.classes_),
                roc_auc_score(is_digit, np.concatenate([clothes.total, digits.total])),
                clf.n_member_parameters_,
                seconds,
            )
        )
        fitted[ensemble] = clf
    print(f"\n{'':24} accuracy    NLL    ECE  digits detected (AUROC)  parameters a member  seconds")
    for name, accuracy, nll, ece, auroc, size, seconds in rows:
        print(f"{name:24} {accuracy:8.3f} {nll:6.3f} {ece:6.3f} {auroc:24.3f} {size:20,} {seconds:8.1f}")
    picture = output / "quickstart.png"
    draw(fitted["sve"], data, picture)
    print(f"\nthe most and the least certain images: {picture}")


def draw(clf, data, picture):
    """Draw the test images and digits with the lowest and the highest total uncertainty."""
    images = [*data.images_test, *data.images_ood]
    truth = [*data.target_test, *["a digit"] * len(data.images_ood)]
    uncertainty = clf.predict_uncertainty(images)
    order = np.argsort(uncertainty.total)
    figure, axes = plt.subplots(2, 1, figsize=(8.2, 4.8), layout="constrained")
    for ax, (name, chosen) in zip(
        axes, {"Most certain": order[:6], "Least certain": order[::-1][:6]}.items(), strict=True
    ):
        ContactSheetDisplay.from_predictions(uncertainty, images, y_true=truth, indices=chosen, name=name, ax=ax)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(__file__).parent / "output"
    parser.add_argument("--output", type=pathlib.Path, default=default, help="folder of the picture")
    main(parser.parse_args().output)
