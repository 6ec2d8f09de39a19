"""Predict for more items than memory holds, in parts: start it again after a crash, and it goes on.

    python examples/score.py model photos/ scores/
    python examples/score.py model texts.csv scores/ --column text --rows 10000

`model` is a folder that `save` wrote. The items are the photographs in a folder, or a column of a CSV or Parquet file
of texts or paths. Each part becomes a file of its own in the last folder, with the class and the uncertainty of each
item. It gets its name once it is whole: what is there is not computed again, and nothing is there twice. Go on
with the same options; others stop with an error. Several machines may share the work: `--share 0/4` takes every
fourth part.
"""

import argparse
import itertools
import json
import os
import pathlib

import pandas as pd
from sklearn.utils import gen_batches

import skve

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(folder):
    """Return a Series of the paths of the images below a folder."""
    return pd.Series(sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES), dtype="str")


def parts(source, column, n_rows):
    """Yield Series of at most n_rows items."""
    if source.is_dir():
        files = image_files(source)
        yield from (files.iloc[rows] for rows in gen_batches(len(files), n_rows))
    elif source.suffix == ".parquet":
        import pyarrow.parquet

        start = 0
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(n_rows, columns=[column]):
            items = batch.to_pandas()[column]
            yield items.set_axis(range(start, start + len(items)))
            start += len(items)
    else:
        with pd.read_csv(source, usecols=[column], dtype=str, keep_default_na=False, chunksize=n_rows) as reader:
            yield from (chunk[column] for chunk in reader)


def table(clf, items, probabilities):
    """Return one row for each item: its class, and the measures of uncertainty."""
    uncertainty, proba = clf.predict_uncertainty(items, return_proba=True)
    scores = uncertainty.to_frame(X=items, index=items.index)
    if probabilities:
        columns = [f"p({label})" for label in clf.classes_]
        scores = pd.concat([scores, pd.DataFrame(proba, columns=columns, index=items.index)], axis=1)
    return scores


def write(scores, path):
    """Write a table under its name once it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scores.to_parquet(partial) if path.suffix == ".parquet" else scores.to_csv(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_settings(parser, parsed):
    """Make the folder of scores, or stop if its parts were made with other settings."""
    settings = {name: getattr(parsed, name) for name in ("column", "rows", "probabilities", "format")}
    path = parsed.scores / "settings.json"
    parsed.scores.mkdir(parents=True, exist_ok=True)
    if path.exists():
        known = json.loads(path.read_text("utf-8"))
        for name, value in settings.items():
            if known.get(name) != value:
                parser.error(f"the parts in {parsed.scores} were made with --{name} {known.get(name)}, got {value}")
    else:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(settings), "utf-8")
        os.replace(partial, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="folder of a saved estimator")
    parser.add_argument("items", type=pathlib.Path, help="folder of photographs, or a .csv or .parquet file")
    parser.add_argument("scores", type=pathlib.Path, help="folder for the parts")
    parser.add_argument("--column", default="text", help="of the file")
    parser.add_argument("--rows", type=int, default=10_000, help="items in a part")
    parser.add_argument("--share", default="0/1", help="number of this worker / number of workers")
    parser.add_argument("--probabilities", action="store_true", help="of every class, too")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv", help="Parquet requires pyarrow")
    parsed = parser.parse_args(arguments)
    own, n_workers = map(int, parsed.share.split("/"))
    if not 0 <= own < n_workers:
        parser.error(f"--share must be from 0/{n_workers} to {n_workers - 1}/{n_workers}, got {parsed.share}")
    check_settings(parser, parsed)
    clf = skve.load(parsed.model)
    for number, items in enumerate(
        itertools.islice(parts(parsed.items, parsed.column, parsed.rows), own, None, n_workers)
    ):
        path = parsed.scores / f"part-{own + number * n_workers:06d}.{parsed.format}"
        if not path.exists():
            write(table(clf, items, parsed.probabilities), path)
            print(f"{path}: {len(items)} items", flush=True)


if __name__ == "__main__":
    main()
