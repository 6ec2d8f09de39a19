"""How many members, which layers, which learning rate: a grid search, then the best on a test set.

The candidates are compared by the negative log-likelihood, which punishes wrong confidence, not by accuracy alone.
Every fold and candidate shares one decomposition of the backbone. Takes two to four minutes on two cores.
"""

import time

import numpy as np
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold

import skve
from skve.datasets import load_fashion
from skve.metrics import expected_calibration_error


def main():
    data = load_fashion()
    some = np.arange(0, len(data.images), 3)  # 20 images a class keep the search short
    search = GridSearchCV(
        skve.SVEClassifier(image_size=32, max_epochs=3, random_state=0),
        {"n_members": [1, 4], "layers": ["last:2", "all"], "member_lr": [2e-2, 1e-1]},
        scoring="neg_log_loss",
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
    )
    start = time.perf_counter()
    search.fit(data.images[some], data.target[some])
    print(f"{len(search.cv_results_['params'])} candidates, two folds each: {time.perf_counter() - start:.0f} s\n")
    print("rank     NLL  candidate")
    for index in np.argsort(search.cv_results_["rank_test_score"]):
        nll, parameters = -search.cv_results_["mean_test_score"][index], search.cv_results_["params"][index]
        print(f"{search.cv_results_['rank_test_score'][index]:4} {nll:7.3f}  {parameters}")
    proba = search.predict_proba(data.images_test)
    print(f"\nthe best, fitted on all {len(some)} images, on {len(data.images_test)} test images:")
    print(f"accuracy {accuracy_score(data.target_test, search.classes_[proba.argmax(1)]):.3f}")
    print(f"NLL      {log_loss(data.target_test, proba):.3f}")
    print(f"ECE      {expected_calibration_error(data.target_test, proba, labels=search.classes_):.3f}")
    uncertainty = skve.predict_uncertainty(search, data.images_ood)
    print(f"mean uncertainty on digits: {uncertainty.total.mean():.2f} nats of {np.log(10):.2f} possible")


if __name__ == "__main__":
    main()
