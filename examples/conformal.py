"""Prediction sets that contain the true class 90 % of the time, for images and texts.

Fits a singular value ensemble on small photographs of clothing and another on a bank's questions, three of each
intent. MAPIE (`pip install mapie`) then turns their probabilities into sets: half of the test data sets a threshold,
the other half shows how often the truth is in the set, how large sets are, and that they grow with the uncertainty.
Needs no network; takes a minute or two on one core.
"""

import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.model_selection import train_test_split

from skve import SVEClassifier, SVETextClassifier
from skve.datasets import load_fashion, load_intents


def main():
    data = load_fashion()
    clf = SVEClassifier(n_members=4, layers="last:2", image_size=48, max_epochs=4, random_state=0, verbose=1)
    clf.fit(data.images, data.target)
    report("clothes", clf, data.images_test, data.target_test, data.images_ood[:200], "digits")

    # MAPIE requires X with a shape: for texts an array, for PIL images or files an array of objects or a Series.
    data = load_intents()
    texts, foreign = (np.array(X, dtype=object) for X in (data.texts_test, data.texts_ood[:200]))
    X_train, _, y_train, _ = train_test_split(
        data.texts, data.target, train_size=3 * len(data.target_names), stratify=data.target, random_state=0
    )
    clf = SVETextClassifier(n_members=4, layers="last:2", max_epochs=10, random_state=0, verbose=1)
    clf.fit(X_train, y_train)
    report("questions", clf, texts, data.target_test, foreign, "out-of-scope questions")


def report(name, clf, X, y, X_foreign, foreign_name):
    """Set the threshold on half of X, and print what the sets are worth on the other half."""
    # At random, so that both halves are exchangeable; neither half was trained on.
    X_calibrate, X_test, y_calibrate, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    print(
        f"\n{name}: {len(y_calibrate)} to calibrate, {len(y_test)} to test, accuracy {clf.score(X_test, y_test):.3f}"
    )
    print("score   level  truth in the set  mean size  empty")
    truth = np.searchsorted(clf.classes_, y_test)
    levels = [0.8, 0.9, 0.95]
    for score in ("aps", "lac"):
        conformal = SplitConformalClassifier(
            clf, confidence_level=levels, conformity_score=score, prefit=True, random_state=0
        )
        conformal.conformalize(X_calibrate, y_calibrate)
        answers, sets = conformal.predict_set(X_test)  # sets: (n_samples, n_classes, n_levels) of booleans
        for level, held in zip(levels, np.moveaxis(sets, -1, 0), strict=True):
            covered, size = held[np.arange(len(truth)), truth], held.sum(1)
            print(f"{score:7} {level:.0%} {covered.mean():17.1%} {size.mean():10.2f} {(size == 0).mean():6.1%}")

    held = sets[:, :, 1]  # LAC at 90 %
    covered, size = held[np.arange(len(truth)), truth], held.sum(1)
    unsure = clf.predict_uncertainty(X_test).total
    print("\nLAC at 90 %: size  samples  mean uncertainty  truth in the set  answer right")
    for k in np.unique(size):
        chosen = size == k
        print(
            f"{k:17} {chosen.sum():8} {unsure[chosen].mean():12.2f} nats {covered[chosen].mean():16.1%}"
            f" {(answers == y_test)[chosen].mean():13.1%}"
        )

    print("\nexamples of sets")
    for k in np.unique(size)[:4]:
        for index in np.flatnonzero(size == k)[:2]:
            what = f"{X_test[index]!r}: " if isinstance(X_test[index], str) else ""
            print(f"  {what}{{{', '.join(clf.classes_[held[index]])}}}  truth: {y_test[index]}")

    # No promise covers inputs of a foreign kind: no set holds their truth, and sets may look like any other.
    size = conformal.predict_set(X_foreign)[1][:, :, 1].sum(1)
    unsure_foreign = clf.predict_uncertainty(X_foreign).total
    print(
        f"\n{foreign_name}: mean size {size.mean():.2f}, empty {(size == 0).mean():.1%}; "
        f"uncertainty {unsure_foreign.mean():.2f} nats against {unsure.mean():.2f} of {name}\n"
    )


if __name__ == "__main__":
    main()
