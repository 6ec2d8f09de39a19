"""Predict for a table of texts or paths, or a folder of images, on Dask, Ray or Spark; the scores are Parquet.

    python examples/score_engines.py dask model texts.parquet scores/ --column text
    python examples/score_engines.py ray model photos/ scores/ --workers 4
    python examples/score_engines.py spark model texts.parquet scores/ --address spark://host:7077

`model` is a folder that `save` wrote; the items are a Parquet file, a folder of such files, or a folder of images.
All workers must be able to read them. Each part of the items, or each actor of Ray, loads the model; a process reads
the backbone once. Each item gets its class, the probability of every class, total and epistemic uncertainty, and
novelty. A part whose worker dies is computed again, and the scores have each item once. Without an address, the
engine starts on this machine with two workers. `score.py` needs no engine.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import pathlib
import shutil
import socket
import sys
import time
import urllib.parse

import numpy as np
import pandas as pd
from score import image_files
from sklearn.utils import gen_batches

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
        uncertainty, proba = clf.predict_uncertainty(items, return_proba=True)
        numbers = np.column_stack([proba, *(getattr(uncertainty, name) for name in MEASURES)])
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


def paths_in(folder, column):
    """Return a table of the images in a folder; None for a folder, or file, of Parquet."""
    folder = pathlib.Path(folder)
    if not folder.is_dir() or any(folder.rglob("*.parquet")):
        return None
    files = image_files(folder)
    if files.empty:
        raise FileNotFoundError(f"items must be Parquet or a folder with images, got {str(folder)!r} without any.")
    return files.to_frame(column)


def with_dask(model, items, scores, column, n_workers, address, n_rows):
    import dask.dataframe
    from dask.distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    started = contextlib.nullcontext(address) if address else LocalCluster(n_workers=n_workers, **options)
    with started as cluster, Client(cluster):
        paths = paths_in(items, column)
        if paths is None:
            table = dask.dataframe.read_parquet(items, columns=[column], split_row_groups=True)
        else:
            table = dask.dataframe.from_pandas(paths, chunksize=n_rows)
        empty = score(pd.DataFrame({column: pd.Series([], dtype="str")}), load(model), column)
        table.map_partitions(lambda part: score(part, load(model), column), meta=empty).to_parquet(
            scores, write_index=False
        )


def with_ray(model, items, scores, column, n_workers, address, n_rows):
    import ray
    import ray.data

    ray.init(address, **({} if address else {"num_cpus": n_workers + 1, "include_dashboard": False}))
    try:
        paths = paths_in(items, column)
        if paths is None:
            table = ray.data.read_parquet(items, columns=[column])
        else:
            table = ray.data.from_pandas([paths.iloc[rows] for rows in gen_batches(len(paths), n_rows)])
        scored = table.map_batches(
            Scorer,
            fn_constructor_args=(model, column),
            batch_format="pandas",
            batch_size=n_rows,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
        )
        scored.write_parquet(scores)
    finally:
        ray.shutdown()


def with_spark(model, items, scores, column, n_workers, address, n_rows):
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DoubleType, StringType, StructField, StructType

    master = address or f"local[{n_workers},4]"  # a part may fail three times
    builder = SparkSession.builder.master(master).config("spark.sql.execution.arrow.maxRecordsPerBatch", n_rows)
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
        paths = paths_in(items, column)
        table = spark.read.parquet(items).select(column) if paths is None else spark.createDataFrame(paths)
        table = table.repartition(max(1, math.ceil(table.count() / n_rows)))  # a file of texts is one part for Spark
        table.mapInPandas(scored, schema).write.mode("overwrite").parquet(scores)
    finally:
        spark.stop()


ENGINES = {"dask": with_dask, "ray": with_ray, "spark": with_spark}
PACKAGES = {"dask": "distributed", "ray": "ray", "spark": "pyspark"}


def check(engine, address):
    """Raise ImportError or FileNotFoundError if an engine, or Java for it, is not installed.

    Raise ConnectionError if nothing answers at its address.
    """
    if importlib.util.find_spec(PACKAGES[engine]) is None:
        raise ImportError(
            f"{engine} requires the package {PACKAGES[engine]}, which is not installed. "
            f"Run pip install '.[{engine}]' in a clone of skve."
        )
    if engine == "spark" and not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        raise FileNotFoundError("spark requires Java 17 or newer, got none on the PATH or in JAVA_HOME. Install it.")
    if address is None:
        return
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except (OSError, ValueError, TypeError) as error:
        raise ConnectionError(
            f"address must be that of a running {engine} cluster, as in 'tcp://host:8786', got {address!r}: {error}."
        ) from error


def run(engine, model, items, scores, column="text", n_workers=2, address=None, n_rows=1024):
    """Write the scores of the items with an engine, a folder of Parquet files, in place of older ones."""
    check(engine, address)
    model, items, scores = (str(pathlib.Path(path).absolute()) for path in (model, items, scores))
    load(model)
    for name, path in (("model", model), ("items", items)):
        if pathlib.Path(path).is_relative_to(scores):
            raise ValueError(
                f"scores must be a folder of its own, which replaces an older one, got {scores!r}, which holds the "
                f"{name}."
            )
    shutil.rmtree(scores, ignore_errors=True)  # what a run that broke off has left
    ENGINES[engine](model, items, scores, column, n_workers, address, n_rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", help="folder of a saved estimator")
    parser.add_argument("items", help="Parquet file, folder of Parquet files, or folder of images")
    parser.add_argument("scores", help="folder for the Parquet files of the scores; an older one is replaced")
    parser.add_argument("--column", default="text", help="of the texts or paths; the scores have it, too")
    parser.add_argument("--rows", type=int, default=1024, help="items that are scored at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes, where no address is given")
    parser.add_argument("--address", help="of a running cluster")
    parsed = parser.parse_args(arguments)
    places, start = (parsed.model, parsed.items, parsed.scores), time.perf_counter()
    run(parsed.engine, *places, parsed.column, parsed.workers, parsed.address, parsed.rows)
    print(f"{parsed.engine}: {time.perf_counter() - start:.1f} s, the engine's start included")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one for each worker
    main()
