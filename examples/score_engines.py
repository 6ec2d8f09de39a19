"""Predict for a table of texts or paths on Dask, Ray or Spark: Parquet in, Parquet out.

    python examples/score_engines.py dask model texts.parquet scores/ --column text
    python examples/score_engines.py ray model texts.parquet scores/ --workers 4
    python examples/score_engines.py spark model texts.parquet scores/ --address spark://host:7077

`model` is a folder that `save` wrote. All workers must be able to read it and the tables. Each part of the table, or
each actor of Ray, loads it; a process reads the backbone once. Each row gets its class, the probability of every
class, total and epistemic uncertainty, and novelty. A part whose worker dies is computed again, and the scores have
each row once. Without an address, the engine starts on this machine with two workers. `score.py` needs no engine.
"""

import argparse
import importlib.util
import os
import pathlib
import shutil
import socket
import sys
import urllib.parse

import numpy as np
import pandas as pd

MEASURES = ["total", "epistemic", "novelty"]


def load(model):
    """Return the saved estimator; a process reads its backbone once."""
    import skve

    if not pathlib.Path(model).is_dir():
        raise FileNotFoundError(
            f"model must be a folder that every worker can read, got {str(model)!r}, which {socket.gethostname()} "
            f"does not have. Put it in storage that all of them share, and pass its absolute path."
        )
    return skve.load(model)


def score(frame, clf, column):
    """Return a table with one row for each of `frame`: the item, its class, probabilities and uncertainty."""
    items = frame[column]
    names = [f"p({label})" for label in clf.classes_]
    if len(items):
        uncertainty = clf.predict_uncertainty(items)
        numbers = np.column_stack([clf.predict_proba(items), *(getattr(uncertainty, name) for name in MEASURES)])
    else:
        numbers = np.empty((0, len(names) + len(MEASURES)))
    classes = pd.Series(clf.classes_.tolist()).take(numbers[:, : len(names)].argmax(axis=1))
    first = pd.DataFrame({column: items, "class": classes.set_axis(items.index)})
    return first.join(pd.DataFrame(numbers, columns=names + MEASURES, index=items.index))


class Scorer:
    """What an actor of Ray is."""

    def __init__(self, model, column):
        self.clf, self.column = load(model), column

    def __call__(self, frame):
        return score(frame, self.clf, self.column)


def with_dask(model, items, scores, column, n_workers, address):
    import dask.dataframe
    from dask.distributed import Client, LocalCluster

    cluster = address or LocalCluster(
        n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    )
    with Client(cluster):
        table = dask.dataframe.read_parquet(items, columns=[column], split_row_groups=True)
        empty = score(pd.DataFrame({column: pd.Series([], dtype="str")}), load(model), column)
        table.map_partitions(lambda part: score(part, load(model), column), meta=empty).to_parquet(
            scores, write_index=False
        )
    if not address:
        cluster.close()


def with_ray(model, items, scores, column, n_workers, address):
    import ray
    import ray.data

    ray.init(address, **({} if address else {"num_cpus": n_workers + 1, "include_dashboard": False}))
    try:
        table = ray.data.read_parquet(items, columns=[column])
        scored = table.map_batches(
            Scorer,
            fn_constructor_args=(model, column),
            batch_format="pandas",
            batch_size=1024,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
        )
        scored.write_parquet(scores)
    finally:
        ray.shutdown()


def with_spark(model, items, scores, column, n_workers, address):
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DoubleType, StringType, StructField, StructType

    master = address or f"local[{n_workers},4]"  # a part may fail three times
    builder = SparkSession.builder.master(master).config("spark.sql.execution.arrow.maxRecordsPerBatch", 1024)
    if not address:
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        builder = builder.config("spark.ui.enabled", False)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    clf = load(model)
    numbers = [*(f"p({label})" for label in clf.classes_), *MEASURES]
    fields = [StructField(name, StringType()) for name in (column, "class")]
    schema = StructType([*fields, *(StructField(name, DoubleType()) for name in numbers)])

    def scored(frames):
        clf = load(model)
        for frame in frames:
            yield score(frame, clf, column).astype({"class": str})

    spark = builder.getOrCreate()
    try:
        table = spark.read.parquet(items).select(column)
        table.mapInPandas(scored, schema).write.mode("overwrite").parquet(scores)
    finally:
        spark.stop()


ENGINES = {"dask": with_dask, "ray": with_ray, "spark": with_spark}
PACKAGES = {"dask": "distributed", "ray": "ray", "spark": "pyspark"}


def check(engine, address):
    """Raise ImportError if an engine is not installed, and ConnectionError if nothing answers at its address."""
    if importlib.util.find_spec(PACKAGES[engine]) is None:
        raise ImportError(
            f"{engine} requires the package {PACKAGES[engine]}, which is not installed. "
            f"Run pip install 'skve[{engine}]'."
        )
    if address is None:
        return
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except (OSError, ValueError, TypeError) as error:
        raise ConnectionError(
            f"address must be that of a running {engine} cluster, as in 'tcp://host:8786', got {address!r}: {error}."
        ) from error


def run(engine, model, items, scores, column="text", n_workers=2, address=None):
    """Write the scores of a table with an engine, a folder of Parquet files, in place of older ones."""
    check(engine, address)
    model, items, scores = (str(pathlib.Path(path).absolute()) for path in (model, items, scores))
    load(model)
    shutil.rmtree(scores, ignore_errors=True)  # what a run that broke off has left
    ENGINES[engine](model, items, scores, column, n_workers, address)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", help="folder of a saved estimator")
    parser.add_argument("items", help="Parquet file, or folder of Parquet files")
    parser.add_argument("scores", help="folder for the Parquet files of the scores; an older one is replaced")
    parser.add_argument("--column", default="text", help="of the texts or paths")
    parser.add_argument("--workers", type=int, default=2, help="processes, where no address is given")
    parser.add_argument("--address", help="of a running cluster")
    parsed = parser.parse_args(arguments)
    run(parsed.engine, parsed.model, parsed.items, parsed.scores, parsed.column, parsed.workers, parsed.address)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one for each worker
    main()
