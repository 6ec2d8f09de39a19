r"""Run a study: tune every method on validation data, test it with several seeds, keep each cell as a row of a CSV.

    python examples/experiments/run.py examples/experiments/studies/main_sst2.toml --data-dir DATA \
        --csv docs/data/evidence.csv --predictions PREDICTIONS

Goes on where it was stopped, and tries failed cells again. README.md describes study files and columns.
"""

import argparse
import os
import pathlib
import sys
import time

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from _common import Table
from _data import load, load_domain
from _fits import COLUMNS, predictions_of, run_fit
from _intervals import write_intervals
from _study import KEY, OWN, Study, show


class Record:
    """The rows of a CSV by cell; of several rows of one cell the last counts.

    Parameters
    ----------
    path : path
        Of the CSV.
    predictions : path or None
        Folder in which finished tests have a file.
    """

    def __init__(self, path, predictions=None):
        self.table, self.predictions = Table(path, KEY), predictions
        self.table.check(COLUMNS)
        self.rows = {tuple(row[name] for name in KEY): row for row in self.table.rows}

    def finished(self, cell):
        """Return the row of a cell that is finished, or None."""
        row = self.rows.get(cell.identity)
        if row is None or row["status"] != "ok":
            return None
        keeps = self.predictions is not None and cell.stage == "test"
        return row if not keeps or predictions_of(self.predictions, cell).is_file() else None

    def add(self, row):
        self.table.add(row)
        self.rows[tuple(self.table.rows[-1][name] for name in KEY)] = self.table.rows[-1]


def main(arguments=None):
    """Run a study; return 1 if a cell failed, else 0."""
    arguments, study = _parse(arguments)
    try:
        record = Record(arguments.csv, arguments.predictions)
    except ValueError as error:
        sys.exit(f"run.py: error: {error}")
    options = {
        "data_dir": arguments.data_dir,
        "weights": arguments.weights or arguments.data_dir,
        "predictions": arguments.predictions,
        "memory": arguments.memory,
        "threads": arguments.threads,
        "jobs": arguments.jobs,
        "sitting": f"{time.strftime('%Y-%m-%dT%H:%M:%S')}-{os.getpid()}",
    }
    tuning = study.cells("tune") if study.n_trials > 1 else []
    left = _run(study, _of(tuning, arguments.methods), record, options, arguments.limit)
    if left is not None and left <= 0:
        return _report(tuning, record)
    cells = study.cells("test", choose(study, tuning, record))
    _run(study, _of(cells, arguments.methods), record, options, left)
    if arguments.predictions is not None:
        path = pathlib.Path(arguments.csv)
        done = [cell for cell in cells if record.finished(cell)]
        write_intervals(path.with_name(f"{path.stem}_intervals.csv"), study, done, arguments.predictions)
    return _report(tuning + cells, record)


def _of(cells, methods):
    """Return the cells of some methods, of all where none is named."""
    return [cell for cell in cells if not methods or cell.method in methods]


def choose(study, tuning, record):
    """Return the trial with the lowest negative log-likelihood of each method and point, None if all failed."""
    chosen = {}
    for cell in tuning:
        key, row = (cell.method, show(cell.factors)), record.finished(cell)
        chosen.setdefault(key, []).append(float(row["nll"]) if row else float("inf"))
    best = {key: min(range(study.n_trials), key=found.__getitem__) for key, found in chosen.items()}
    return {key: trial if chosen[key][trial] < float("inf") else None for key, trial in best.items()}


def _run(study, cells, record, options, limit):
    """Fit what is not finished, at most `limit` fits, and record each at once; return what is left of the limit."""
    fits = {}
    for cell in cells:
        if not record.finished(cell):
            fits.setdefault(cell.fit, []).append(cell)
    todo = list(fits.values())[:limit]
    costs = [max(cell.cost for cell in group) for group in todo]
    shape = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=sum(costs), bar_format=shape, disable=not todo) as bar:
        bar.set_description(f"{study.name}, {len(todo)} fits to {cells[0].stage}" if todo else "")
        parallel = Parallel(options["jobs"], return_as="generator_unordered", batch_size=1)
        with parallel_config("loky", inner_max_num_threads=options["threads"]):
            for index, rows in parallel(delayed(_numbered)(i, group, options) for i, group in enumerate(todo)):
                for row in rows:
                    record.add(row)
                    if row["error"]:
                        bar.write(f"failed: {row['method']} {row['factors']} seed {row['seed']}: {row['error']}")
                bar.update(costs[index])
    return None if limit is None else limit - len(todo)


def _numbered(index, cells, options):
    return index, run_fit(cells, options)


def _report(cells, record):
    """Print how many cells are finished; return 1 if one failed."""
    finished = sum(record.finished(cell) is not None for cell in cells)
    failed = sum(record.rows.get(cell.identity, {}).get("status") == "failed" for cell in cells)
    print(f"{finished} cells finished, {failed} failed, {len(cells) - finished - failed} to do", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments):
    """Return the options and the study; what is wrong with either, or with the data, ends the run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a TOML file")
    parser.add_argument("--data-dir", required=True, help="folder that the paths of data start from")
    parser.add_argument("--weights", help='folder that "{weights}" in a backbone stands for; default: --data-dir')
    parser.add_argument("--csv", required=True, help="table of cells; several studies may share it")
    parser.add_argument("--predictions", help="folder to keep members' probabilities in, for paired intervals")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument(
        "--threads", type=int, default=1, help="of each fit; their number times --jobs is at most the cores"
    )
    parser.add_argument("--memory", action="store_true", help="fit in fresh processes and note their peak memory")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the study")
    parser.add_argument("--methods", nargs="+", default=[], help="fit these of the study only; default: all")
    parser.add_argument("--limit", type=int, help="fits of this run at most")
    parsed = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    if parsed.limit is not None and parsed.limit < 0:
        parser.error(f"--limit must be at least 0, got {parsed.limit}.")
    if parsed.jobs < 1 or parsed.threads < 1 or parsed.jobs * parsed.threads > cores:
        parser.error(
            f"--jobs times --threads must be from 1 to {cores}, the number of cores, got {parsed.jobs} times "
            f"{parsed.threads}."
        )
    if not pathlib.Path(parsed.data_dir).is_dir():
        parser.error(f"--data-dir {parsed.data_dir}: there is no such folder")
    try:
        study = Study(parsed.study, parsed.set)
    except ValueError as error:
        parser.error(str(error))
    try:
        for data, judged_on in study.data_of_cells():
            load(data, parsed.data_dir, study.tuning["seed"], judged_on)
            if data["domain"] != OWN:
                load_domain(data, parsed.data_dir, study.tuning["seed"], judged_on)
    except ValueError as error:
        parser.error(f"{error}\n{study.source('data')}")
    for name in study.weights():
        path = pathlib.Path(parsed.weights or parsed.data_dir) / name
        if not path.exists():
            parser.error(f"--weights: there is no {path}\n{study.source('common')}")
    unknown = [name for name in parsed.methods if name not in study.methods]
    if unknown:
        parser.error(f"--methods must be among {list(study.methods)}, got {unknown[0]!r}")
    return parsed, study


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the cells that are not finished", file=sys.stderr)
        sys.exit(130)  # as shells have it
