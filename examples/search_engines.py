"""Search parameters, or cross-validate, on the workers of Dask or Ray, or in processes of this machine.

    python examples/search_engines.py dask grid
    python examples/search_engines.py ray halving --workers 4
    python examples/search_engines.py dask cross-validation --address tcp://host:8786

joblib sends the fits to the workers, which must have skve. A task holds the estimator, whose backbone is a name, and
the texts: no weights. A worker reads the backbone, and decomposes it, once for all its fits. Without an address, the
engine starts on this machine with two workers.
"""

import argparse
import contextlib
import os
import time

import joblib
from score_engines import check
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate

RATES = {"member_lr": [3e-3, 1e-2, 3e-2]}


@contextlib.contextmanager
def workers(engine, n_workers, address=None):
    """Let joblib's jobs run on an engine: "dask", "ray", or "loky", the processes of this machine."""
    if engine == "dask":
        from dask.distributed import Client, LocalCluster

        options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
        started = contextlib.nullcontext(address) if address else LocalCluster(n_workers=n_workers, **options)
        with started as cluster, Client(cluster), joblib.parallel_config("dask", n_jobs=-1):
            yield
    elif engine == "ray":
        import ray
        from ray.util.joblib import register_ray

        ray.init(address, **({} if address else {"num_cpus": n_workers, "include_dashboard": False}))
        try:
            register_ray()
            with joblib.parallel_config("ray", n_jobs=-1):
                yield
        finally:
            ray.shutdown()
    else:
        with joblib.parallel_config("loky", n_jobs=n_workers):
            yield


def grid(clf, X, y, scoring, candidates=RATES, cv=3):
    """Return the mean score of each candidate."""
    search = GridSearchCV(clf, candidates, scoring=scoring, cv=cv, refit=False, error_score="raise").fit(X, y)
    return search.cv_results_["mean_test_score"]


def halving(clf, X, y, scoring, candidates=RATES, cv=3):
    """Return the mean score of each candidate in each round: the better ones go on, with more training steps."""
    search = HalvingGridSearchCV(
        clf,
        candidates,
        resource="max_steps",
        max_resources=clf.max_steps,
        scoring=scoring,
        cv=cv,
        refit=False,
        error_score="raise",
        random_state=0,
    )
    return search.fit(X, y).cv_results_["mean_test_score"]


def cross_validation(clf, X, y, scoring, cv=3):
    """Return the score of each fold."""
    return cross_validate(clf, X, y, scoring=scoring, cv=cv, error_score="raise")["test_score"]


SEARCHES = {"grid": grid, "halving": halving, "cross-validation": cross_validation}


def main(arguments=None):
    from skve import SVETextClassifier
    from skve.datasets import load_intents

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["dask", "ray", "loky"])
    parser.add_argument("search", choices=SEARCHES)
    parser.add_argument("--workers", type=int, default=2, help="processes, where no address is given")
    parser.add_argument("--address", help="of a running cluster")
    parser.add_argument("--steps", type=int, default=80, help="of a training, at most")
    parsed = parser.parse_args(arguments)
    if parsed.engine != "loky":
        check(parsed.engine, parsed.address)
    data = load_intents()
    clf = SVETextClassifier(max_steps=parsed.steps, random_state=0)
    with workers(parsed.engine, parsed.workers, parsed.address):
        start = time.perf_counter()
        scores = SEARCHES[parsed.search](clf, data.texts, data.target, "neg_log_loss")
        print(f"{parsed.engine}, {parsed.search}: {time.perf_counter() - start:.1f} s", scores.round(3))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one for each worker
    main()
