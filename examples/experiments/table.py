r"""Show what the studies found: Markdown tables and one picture a study.

    python examples/experiments/table.py --csv docs/data/evidence.csv --verdict main=sve basis=singular \
        --page docs/evidence-0.1.md --pictures docs/pictures
    python examples/experiments/table.py --csv docs/data/evidence.csv --study main_sst2 basis_sst2

Mean ± standard deviation over seeds, the best mean in bold; times as medians of ratios to the deep ensemble of the
same seed and sitting. The last table of a study holds paired 95 % intervals, in bold where zero is outside.
"""

import argparse
import csv
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from _common import Table
from _study import COLUMNS, KEY, Study, digest_of, show

STUDIES = pathlib.Path(__file__).parent / "studies"
PAPER = STUDIES / "paper.csv"  # figures of the tables of arXiv 2601.22068, version 2
# Column of the CSV -> (title, factor, digits, direction: 1 higher is better, -1 lower, 0 neither)
SHOWN = {
    "accuracy": ("accuracy %", 100, 1, 1),
    "nll": ("NLL", 1, 3, -1),
    "brier": ("Brier", 1, 3, -1),
    "ece": ("ECE %", 100, 1, -1),
    "nll_temperature": ("NLL, temp.", 1, 3, -1),
    "ece_temperature": ("ECE %, temp.", 100, 1, -1),
    "aurc": ("AURC %", 100, 2, -1),
    "nll_mean_member": ("NLL, mean member", 1, 3, -1),
    "nll_first": ("NLL, first member", 1, 3, -1),
    "nll_first_two": ("NLL, first two", 1, 3, -1),
    "near_total": ("near, total", 1, 3, 1),
    "near_epistemic": ("near, epistemic", 1, 3, 1),
    "near_fpr95": ("near, FPR95", 1, 3, -1),
    "near_novelty": ("near, novelty", 1, 3, 1),
    "far_total": ("far, total", 1, 3, 1),
    "far_epistemic": ("far, epistemic", 1, 3, 1),
    "far_fpr95": ("far, FPR95", 1, 3, -1),
    "far_novelty": ("far, novelty", 1, 3, 1),
    "extra_percent": ("extra parameters %", 1, 2, 0),
    "fit_cpu_seconds": ("fit, processor s", 1, 0, 0),
    "peak_mib": ("peak memory MiB", 1, 0, 0),
}
# The columns of a study's first table; the others and times make up the second
QUALITY = ("accuracy", "nll", "brier", "ece", "nll_temperature", "ece_temperature", "aurc")
TIMES = {"fit_seconds": "fit / deep", "predict_seconds": "predict / deep"}
VERDICT = ("nll", "near_total", "far_total")
PANELS = ("accuracy", "nll", "ece", "near_total", "far_total")


def read(path, studies=STUDIES):
    """Return the finished test rows of a CSV, one for each seed: the last with the settings that the study has now.

    Where there is none, the last with others. Where the study's file is gone, those with the settings of the last row
    of the method.
    """
    table = Table(path, KEY)
    if table.columns is not None and table.columns != COLUMNS:
        raise ValueError(f"{path} is no table of run.py")
    rows = [row for row in table.rows if (row["status"], row["stage"]) == ("ok", "test")]
    known = {name: study_of(name, studies) for name in {row["study"] for row in rows}}
    settings = {name: {cell.settings for cell in study.possible_tests()} for name, study in known.items() if study}
    last = {(row["study"], row["method"], row["factors"]): row["settings"] for row in rows if not known[row["study"]]}
    latest = {}
    for row in rows:
        method = (row["study"], row["method"], row["factors"])
        cell, present = (*method, row["seed"]), settings.get(row["study"])
        if method in last:
            if row["settings"] == last[method]:
                latest[cell] = row
        elif row["settings"] in present or latest.get(cell, row)["settings"] not in present:
            latest[cell] = row
    return list(latest.values())


def read_intervals(path, rows):
    """Return the paired differences between rows that are shown, over all their seeds, and how many others."""
    shown, seeds = {}, {}
    for row in rows:
        cell = (row["study"], row["factors"], row["method"])
        shown[cell] = digest_of(row["settings"])
        seeds.setdefault(cell, set()).add(row["seed"])
    with open(path, newline="") as stream:
        found = list(csv.DictReader(stream))
    paired = []
    for row in found:
        pair = [(row["study"], row["factors"], row[name]) for name in ("method", "against")]
        if row["settings"] != " ".join(shown.get(cell, "") for cell in pair):
            continue
        if int(row["n_seeds"]) == len(seeds[pair[0]] & seeds[pair[1]]):
            paired.append(row)
    return paired, len(found) - len(paired)


def study_of(name, studies=STUDIES):
    """Return the study of a name, or None."""
    file = studies / f"{name}.toml"
    return Study(file) if file.is_file() else None


def point(factors):
    """Return swept settings as a dict of strings."""
    return dict(part.partition("=")[::2] for part in factors.split())


def in_order(rows, study):
    """Return rows in the order of a study's factors and methods; of a study that is None by what factors are."""
    points = [show(factors) for factors in study.points()] if study else []
    methods = list(study.methods) if study else []

    def place(row):
        found = [(0, float(v), "") if _is_number(v) else (1, 0.0, v) for v in point(row["factors"]).values()]
        known = [points.index(row["factors"])] if row["factors"] in points else [len(points)]
        return known, found, methods.index(row["method"]) if row["method"] in methods else len(methods)

    return sorted(rows, key=place)


def _is_number(text):
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def group(rows):
    """Return {(factors, method): rows over seeds}."""
    groups = {}
    for row in rows:
        groups.setdefault((row["factors"], row["method"]), []).append(row)
    return groups


def values(rows, column):
    """Return a column's figures over seeds; empty where a seed has none."""
    found = [row[column] for row in rows]
    return np.array([] if "" in found else found, float)


def main_tables(rows):
    """Return the lines of a study's tables: how right and how sure predictions are; foreign items, size and times."""
    groups = group(rows)
    timed = {column: found for column in TIMES if (found := ratios(rows, column))}
    swept = len({factors for factors, _ in groups}) > 1
    tables = []
    for quality in (True, False):
        shown = [name for name in SHOWN if (name in QUALITY) == quality]
        shown = [name for name in shown if any(len(values(own, name)) for own in groups.values())]
        header = [*(["factors"] if swept else []), "method", *(SHOWN[name][0] for name in shown)]
        header += ["seeds", "member / head rate"] if quality else [TIMES[column] for column in timed]
        lines = []
        for (factors, method), own in groups.items():
            cells = [factors, method] if swept else [method]
            for name in shown:
                rivals = [values(r, name) for (f, _), r in groups.items() if f == factors]
                cells.append(_figure(values(own, name), rivals, *SHOWN[name][1:]))
            if quality:
                rates = sorted({f"{row['member_lr'] or '-'} / {row['head_lr'] or '-'}" for row in own})
                cells += [str(len(own)), ", ".join(rates)]
            else:
                found = [known.get((factors, method), []) for known in timed.values()]
                cells += [f"{np.median(times):.2f}" if times else "" for times in found]
            lines.append(cells)
        if shown or (timed and not quality):
            tables.append(markdown(header, lines))
    return tables


def paper_table(rows):
    """Return the lines of a table of a study's figures and of those that the paper gives; none if it gives none."""
    with open(PAPER, newline="") as stream:
        given = [row for row in csv.DictReader(stream) if row["study"] == rows[0]["study"]]
    names = [name for name in ("accuracy", "ece", "near_epistemic") if any(row[name] for row in given)]
    if not names:
        return []
    groups = group(rows)
    swept = len({factors for factors, _ in groups}) > 1
    lines = []
    for (factors, method), own in groups.items():
        figures = ("".join(_mean_and_spread(values(own, name), *SHOWN[name][1:3])) for name in names)
        lines.append(["here", *([factors] if swept else []), method, *figures])
    for row in given:
        figures = ("".join(_mean_and_spread(values([row], name), *SHOWN[name][1:3])) for name in names)
        lines.append(["paper", *([""] if swept else []), row["method"], *figures])
    return markdown(["", *(["factors"] if swept else []), "method", *(SHOWN[name][0] for name in names)], lines)


def _mean_and_spread(own, factor, digits):
    """Return "mean" and " ± sd" of several seeds; both empty where a seed has no figure."""
    if not len(own):
        return "", ""
    return f"{factor * own.mean():.{digits}f}", f" ± {factor * own.std(ddof=1):.{digits}f}" if len(own) > 1 else ""


def _figure(own, rivals, factor, digits, direction):
    """Return "mean ± sd", in bold if no rival's mean, as it is shown, is better."""
    mean, spread = _mean_and_spread(own, factor, digits)
    if not mean or not direction:
        return mean
    means = [float(f"{factor * r.mean():.{digits}f}") for r in rivals if len(r)]
    best = len(means) > 1 and direction * float(mean) >= max(direction * m for m in means)
    return f"**{mean}**{spread}" if best else f"{mean}{spread}"


def ratios(rows, column):
    """Return {(factors, method): times relative to "deep"}, of the same factors, seed, sitting and threads only."""
    same = ("factors", "seed", "sitting", "threads", "jobs")
    deep = {tuple(r[k] for k in same): float(r[column]) for r in rows if r["method"] == "deep" and r[column]}
    found = {}
    for row in rows:
        reference = deep.get(tuple(row[k] for k in same))
        if row[column] and reference:
            found.setdefault((row["factors"], row["method"]), []).append(float(row[column]) / reference)
    return found


def interval_table(rows):
    """Return the lines of the table of paired differences of a study."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells = {}
    for row in rows:
        _, factor, digits, _ = SHOWN[row["metric"]]
        estimate, low, high = (factor * float(row[name]) for name in ("estimate", "low", "high"))
        text = f"{estimate:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
        key = (row["factors"], row["method"], row["against"])
        cells.setdefault(key, {})[row["metric"]] = f"**{text}**" if low > 0 or high < 0 else text
    swept = len({factors for factors, _, _ in cells}) > 1
    lines = []
    for (factors, method, against), found in cells.items():
        lines.append(
            [*([factors] if swept else []), f"{method} less {against}", *(found.get(m, "") for m in metrics)]
        )
    return markdown([*(["factors"] if swept else []), "difference", *(SHOWN[m][0] for m in metrics)], lines)


def verdict(rows, method, kind):
    """Return the lines of a table of paired differences of one method from every other, study by study.

    "better" and "worse" stand where the 95 % interval leaves zero out.
    """
    lines = []
    rows = [row for row in rows if method in (row["method"], row["against"])]
    columns = list(dict.fromkeys((row["study"], row["factors"]) for row in rows))
    for metric in VERDICT:
        cells = {}
        for row in rows:
            pair = (row["method"], row["against"])
            if row["metric"] != metric:
                continue
            sign = 1 if pair[0] == method else -1
            other = pair[1] if sign == 1 else pair[0]
            low, high = sorted(sign * float(row[name]) for name in ("low", "high"))
            better = SHOWN[metric][3] * low > 0 and SHOWN[metric][3] * high > 0
            word = "**better**" if better else "*worse*" if low > 0 or high < 0 else "level"
            shown = f"{word} {sign * float(row['estimate']):+.3f}"
            cells.setdefault(other, {})[row["study"], row["factors"]] = shown
        title = SHOWN[metric][0]
        for other, found in cells.items():
            lines.append([title, other, *(found.get(column, "") for column in columns)])
    names = (f"{study.removeprefix(f'{kind}_')} {factors}".strip() for study, factors in columns)
    return markdown(["", f"{method} less", *names], lines)


def fill(page, name, text):
    """Return a page with a text between its lines <!-- name --> and <!-- end of name -->."""
    before, begin, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not begin or not end:
        raise ValueError(f"The page must have the lines <!-- {name} --> and <!-- end of {name} -->.")
    return f"{before}{begin}\n{text}\n{end}{after}"


def markdown(header, lines):
    """Return the lines of a table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(line)} |" for line in lines)]


def plot(rows, path):
    """Draw the main figures of a study: over the swept number if there is one, else method by method."""
    from matplotlib.figure import Figure

    groups = group(rows)
    panels = [name for name in PANELS if any(len(values(own, name)) for own in groups.values())]
    figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    points = {factors: point(factors) for factors, _ in groups}
    swept = [name for name, n in _numeric(points).items() if n > 1]
    colours = {}  # of a label, the same in all panels
    for axis, name in zip(axes, panels, strict=True):
        axis.set_title(SHOWN[name][0])
        curves = {}
        for (factors, method), own in groups.items():
            found = SHOWN[name][1] * values(own, name)
            if not len(found):
                continue
            if swept:
                x = float(points[factors][swept[0]])
                own_point = points[factors].items()
                others = " ".join(f"{k}={v}" for k, v in own_point if not _follows(points, k, swept[0]))
            else:
                x, others = method, factors
            curves.setdefault(f"{method} {others}".strip() if swept else others, []).append((x, found))
        for label, line in curves.items():
            x, means = [x for x, _ in line], [found.mean() for _, found in line]
            spread = [found.std(ddof=1) if len(found) > 1 else 0.0 for _, found in line]
            colour = colours.setdefault(label, f"C{len(colours)}")
            style = {"marker": "o", "capsize": 2, "label": label, "color": colour}
            if swept:
                axis.errorbar(x, means, spread, markersize=3, linewidth=1, **style)
                axis.set_xlabel(swept[0])
            else:
                axis.errorbar(means, x, xerr=spread, linestyle="none", **style)
        if not swept:
            axis.margins(y=0.1 + 0.4 / max(1, len(axis.get_yticks())))  # few methods stand apart from the frame
            axis.invert_yaxis()
            axis.tick_params(labelleft=axis is axes[0])
        else:
            ticks = sorted({float(p[swept[0]]) for p in points.values()})
            axis.set_xscale("log" if ticks[0] > 0 else "linear")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    figure.supxlabel("mean and standard deviation over seeds", fontsize="small")
    if swept or len(points) > 1:
        known = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known, loc="outside upper center", ncols=min(4, len(known)), fontsize="small")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _numeric(points):
    """Return {factor that is a number everywhere: how many values it has}."""
    names = next(iter(points.values()), {})
    numbers = [name for name in names if all(_is_number(point[name]) for point in points.values())]
    return {name: len({float(point[name]) for point in points.values()}) for name in numbers}


def _follows(points, name, leader):
    """Say whether a factor has one value for each value of `leader`."""
    pairs = {(point[leader], point[name]) for point in points.values()}
    return len(pairs) == len({first for first, _ in pairs})


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", required=True, type=pathlib.Path)
    parser.add_argument("--intervals", type=pathlib.Path, help="default: the name of --csv with _intervals")
    parser.add_argument("--study", nargs="+", help="default: all that the CSV holds")
    parser.add_argument("--studies", type=pathlib.Path, default=STUDIES, help="folder of the study files")
    parser.add_argument(
        "--page",
        type=pathlib.Path,
        help="put the tables between <!-- STUDY --> and <!-- end of STUDY --> in this file",
    )
    parser.add_argument(
        "--verdict",
        nargs="+",
        default=[],
        metavar="KIND=METHOD",
        help='compare a method with all others over studies of a kind: "main=sve" over all main_*; on a page between '
        "<!-- verdict of KIND --> and its end",
    )
    parser.add_argument("--pictures", type=pathlib.Path, help="folder to draw STUDY.png in")
    parsed = parser.parse_args(arguments)
    if not parsed.csv.is_file():
        parser.error(f"--csv {parsed.csv}: there is no such file")
    if parsed.page and not parsed.page.is_file():
        parser.error(f"--page {parsed.page}: there is no such file")
    if not parsed.studies.is_dir():
        parser.error(f"--studies {parsed.studies}: there is no such folder")
    try:
        rows = read(parsed.csv, parsed.studies)
    except ValueError as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"--csv {parsed.csv} has no finished tests")
    intervals = parsed.intervals or parsed.csv.with_name(f"{parsed.csv.stem}_intervals.csv")
    paired, other = read_intervals(intervals, rows) if intervals.is_file() else ([], 0)
    if other:
        print(
            f"table.py: {other} differences of other settings or seeds than the rows have are left out; "
            f"run.py --predictions makes new ones",
            file=sys.stderr,
        )
    studies = list(dict.fromkeys(row["study"] for row in rows))
    unknown = sorted(set(parsed.study or []) - set(studies))
    if unknown:
        parser.error(f"--study {' '.join(unknown)}: the CSV has tests of {studies}")
    page = parsed.page.read_text(encoding="utf-8") if parsed.page else None

    def put(name, text):
        """Print a part, or put it where the page has its place."""
        nonlocal page
        if page is None:
            print(f"\n## {name}\n\n{text}")
            return
        try:
            page = fill(page, name, text)
        except ValueError as error:
            parser.error(f"--page {parsed.page}: {error}")

    for chosen in parsed.verdict:
        kind, _, method = chosen.partition("=")
        shown = [study for study in parsed.study or studies if study.startswith(f"{kind}_")]
        own = [row for row in paired if row["study"] in shown]
        known = sorted({row[name] for row in own for name in ("method", "against")})
        if method not in known:
            parser.error(
                f"--verdict must be KIND=METHOD, got {chosen!r}. The methods of the intervals of {kind}_*: {known}."
            )
        put(f"verdict of {kind}", "\n".join(verdict(own, method, kind)))
    for study in parsed.study or studies:
        known = study_of(study, parsed.studies)
        own, differences = (in_order([r for r in some if r["study"] == study], known) for some in (rows, paired))
        text = report(known, own, differences)
        if parsed.pictures is not None:
            plot(own, parsed.pictures / f"{study}.png")
        put(study, text)
    if parsed.page:
        parsed.page.write_text(page, encoding="utf-8")


def report(study, rows, differences):
    """Return the text on a study, None if its file is gone: its question and its tables."""
    parts = [study.question] if study else []
    possible = study.possible_tests() if study else []
    settings = {cell.settings for cell in possible} if study else {row["settings"] for row in rows}
    other = sum(row["settings"] not in settings for row in rows)
    if other:
        parts.append(f"{other} of {len(rows)} rows were made with other settings than {study.path.name} has now.")
    where = sorted({(row["threads"], row["jobs"]) for row in rows})
    parts.append(f"Threads a fit × fits at a time: {', '.join(f'{t} × {j}' for t, j in where)}.")
    tables = main_tables(rows) + ([interval_table(differences)] if differences else [])
    if beside := paper_table(rows):
        tables.append(["Compared with the figures of arXiv 2601.22068:"])
        tables.append(beside)
    return "\n\n".join(parts + ["\n".join(lines) for lines in tables])


if __name__ == "__main__":
    main()
