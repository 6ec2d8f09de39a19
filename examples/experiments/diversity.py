r"""How much members differ, where, and what that is worth, for several kinds of ensembles.

    python examples/experiments/diversity.py run  --csv docs/data/diversity.csv --jobs 2 --models FOLDER
    python examples/experiments/diversity.py show --csv docs/data/diversity.csv --page docs/studies.md \
        --picture docs/pictures/diversity.png

The fits are the healthy ones of signatures.py, kept in FOLDER: 20 photographs of each kind of clothes at 48 pixels,
and 10 questions of each of a bank's intents, four members at the defaults. 300 test items and 300 foreign ones are
predicted. One more fit, of clothes, has 16 members. A row has, for the first 2, 3 ... members,

* `gain`: the mean NLL of the members less that of their mean;
* `disagreement` of two members about the class, and `error_correlation`;
* `cka_1` to `cka_4`: linear CKA of two members' features after each quarter of the blocks, averaged over positions;
* `border`: rank correlation of epistemic uncertainty with the closeness of the two likeliest classes, test items;
* `foreign`: AUROC of foreign against test items by epistemic uncertainty;
* `spread`: standard deviation of the log ratios over members, relative to their root mean square.
"""

import pathlib
import sys

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import spearmanr
from signatures import N_JUDGED, cells, fit, load, parser_of, start
from sklearn.metrics import log_loss

from skve._fitted.exporting import Graph
from skve.metrics import error_correlation, member_cka, ood_auroc, pairwise_disagreement
from skve.uncertainty import Uncertainty

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from _common import Table
from table import markdown

KEY = ("data", "ensemble", "seed", "members")
N_DEPTHS = 4
TITLES = {"nll": "NLL", "error_correlation": "error correlation"}
TITLES |= {f"cka_{quarter + 1}": f"CKA {quarter + 1}" for quarter in range(N_DEPTHS)}
GOES_WITH = ("disagreement", "error_correlation", f"cka_{N_DEPTHS}", "epistemic")
LARGE = {"sve": 16}  # members of one fit more, whose first four are those of the healthy fit of seed 0


def features_by_depth(clf, X):
    """Return the members' features after each quarter of the blocks, arrays (n_members, n_samples, n_features)."""
    state = clf._state
    backbone = clf._load_backbone(state.spec, clf.preprocess_).on(torch.device("cpu"))
    items = clf._check_inputs(X, reset=False)
    pipeline = clf._make_pipeline(items, backbone, torch.device("cpu"), training=False)
    batch = pipeline.prepare(pipeline.load(np.arange(len(X))), None)
    graph = Graph(state, backbone, None, 1.0).eval()
    found = [[] for _ in range(N_DEPTHS)]
    with torch.no_grad():
        for body in graph.bodies:
            blocks = max(
                (m for m in body.modules() if isinstance(m, torch.nn.ModuleList | torch.nn.Sequential)), key=len
            )
            marks = [round((quarter + 1) * len(blocks) / N_DEPTHS) - 1 for quarter in range(N_DEPTHS)]
            mask = batch.get("attention_mask") if isinstance(batch, dict) else None
            hooks = [blocks[mark].register_forward_hook(_keep(found[q], mask)) for q, mark in enumerate(marks)]
            graph.features(body, batch)
            for hook in hooks:
                hook.remove()
    return [np.stack(own) for own in found]


def _keep(features, mask):
    """Return a hook that keeps what a block returns, averaged over its positions without padding."""

    def hook(module, inputs, output):
        output = (output[0] if isinstance(output, tuple) else output).float()
        if mask is None:
            features.append(output.mean((2, 3) if output.dim() == 4 else 1).numpy())
        else:
            features.append(((output * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy())

    return hook


def measure(cell, parameters, models):
    """Return the rows of a fit, for the first two members and more."""
    torch.set_num_threads(1)
    X, y, X_test, y_test, foreign = load(cell["data"], cell["seed"])
    X_test, y_test = X_test[:N_JUDGED], y_test[:N_JUDGED]
    clf = fit(cell, parameters, X, y, models)
    members, outside = clf.predict_proba_members(X_test), clf.predict_proba_members(foreign)
    depths = [member_cka(own) for own in features_by_depth(clf, X_test[:200])]
    ratios = {name: np.log(values) for name, values in getattr(clf, "ratios_", {}).items()}
    rows = []
    for k in range(2, len(members) + 1):
        u, v = (Uncertainty.from_members(proba[:k]) for proba in (members, outside))
        each = [log_loss(y_test, proba, labels=clf.classes_) for proba in members[:k]]
        pairs = np.triu_indices(k, 1)
        size = np.sqrt(np.mean([np.mean(own[:k] ** 2) for own in ratios.values()])) if ratios else np.nan
        apart = np.sqrt(np.mean([np.mean(own[:k].var(axis=0)) for own in ratios.values()])) if ratios else np.nan
        rows.append(
            {
                **{name: cell[name] for name in ("data", "ensemble", "seed")},
                "members": k,
                "nll": log_loss(y_test, members[:k].mean(axis=0), labels=clf.classes_),
                "gain": np.mean(each) - log_loss(y_test, members[:k].mean(axis=0), labels=clf.classes_),
                "disagreement": pairwise_disagreement(members[:k]),
                "error_correlation": error_correlation(y_test, members[:k], labels=clf.classes_),
                **{f"cka_{q + 1}": own[pairs].mean() for q, own in enumerate(depths)},
                "epistemic": u.epistemic.mean(),
                "border": spearmanr(u.epistemic, -u.margin)[0],
                "foreign": ood_auroc(u.epistemic, v.epistemic),
                "spread": apart / size,
            }
        )
    return rows


def run(options):
    table = Table(options.csv, KEY)
    healthy = [one for data in ("fashion", "intents") for one in cells(data) if one[0]["setting"] == "healthy"]
    todo = [one for one in healthy if {**one[0], "members": 4} not in table]
    for cell, parameters in healthy:
        n = LARGE.get(cell["ensemble"])
        if n and (cell["data"], cell["seed"]) == ("fashion", 0) and {**cell, "members": n} not in table:
            todo.append(({**cell, "setting": f"healthy, {n} members"}, {**parameters, "n_members": n}))
    for rows in Parallel(options.jobs, return_as="generator_unordered")(
        delayed(measure)(*one, options.models) for one in todo
    ):
        for row in rows:
            if row not in table:  # a fit of 16 members has rows that one of four has added
                table.add(row)
        print(*rows[-1].values(), sep=" | ", flush=True)


def show(options):
    """Return tables: means over seeds of four members, what goes with the gain, and seed 0 by members; draw them."""
    rows = sorted(Table(options.csv, KEY).rows, key=lambda row: (row["data"], row["ensemble"], int(row["members"])))
    names = [name for name in rows[0] if name not in KEY] if rows else []
    means, first, correlations = [], [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        fits = [row for row in rows if (row["data"], row["members"]) == (data, "4")]
        if len(fits) < 3:
            continue
        found = {name: [float(row[name]) for row in fits] for name in (*GOES_WITH, "gain")}
        cells = (f"{spearmanr(found[name], found['gain'])[0]:+.2f}" for name in GOES_WITH)
        correlations.append([data, str(len(fits)), *cells])
    for data, ensemble in dict.fromkeys((row["data"], row["ensemble"]) for row in rows):
        every = [row for row in rows if (row["data"], row["ensemble"]) == (data, ensemble)]
        own = [row for row in every if row["members"] == "4"]
        means.append([data, ensemble, str(len(own)), *(_figure([row[name] for row in own]) for name in names)])
        powers = [row for row in every if row["seed"] == "0" and row["members"] in ("2", "4", "8", "16")]
        first += [[data, ensemble, row["members"], *(_figure([row[name]]) for name in names)] for row in powers]
    if options.picture:
        draw(rows, options.picture)
    titles = [TITLES.get(name, name) for name in names]
    return [
        *markdown(["data", "ensemble", "seeds", *titles], means),
        "",
        "Rank correlation of the gain of four members, over fits of all ensembles, with",
        "",
        *markdown(["data", "fits", *(TITLES.get(name, name) for name in GOES_WITH)], correlations),
        "",
        *markdown(["data", "ensemble", "members, seed 0", *titles], first),
    ]


def _figure(found):
    """Return the mean of figures of a CSV, empty where they have none."""
    mean = np.mean([float(value) for value in found])
    return "" if np.isnan(mean) else f"{mean:.3f}"


def draw(rows, path):
    """Draw what the ensemble gains over the members' disagreement, CKA by depth, and the gain of more members."""
    from matplotlib.figure import Figure

    known = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(12, 3.5 * len(known)), layout="constrained")
    axes = figure.subplots(len(known), 3, squeeze=False)
    for (left, right, last), data in zip(axes, known, strict=True):
        for ensemble in dict.fromkeys(row["ensemble"] for row in rows):
            every = [row for row in rows if (row["data"], row["ensemble"]) == (data, ensemble)]
            own = [row for row in every if row["members"] == "4"]
            first = [row for row in every if row["seed"] == "0"]
            left.plot(*([float(r[name]) for r in own] for name in ("disagreement", "gain")), "o", label=ensemble)
            depths = [np.mean([float(r[f"cka_{q + 1}"]) for r in own]) for q in range(N_DEPTHS)]
            right.plot([(q + 1) / N_DEPTHS for q in range(N_DEPTHS)], depths, marker="o", label=ensemble)
            numbers = [int(row["members"]) for row in first]
            last.plot(numbers, [float(row["gain"]) for row in first], marker="o", markersize=3, label=ensemble)
        last.set(title=f"{data}, one seed", xlabel="members", ylabel="gain in NLL")
        left.set(title=data, xlabel="disagreement of two members", ylabel="gain in NLL")
        right.set(title=data, xlabel="share of the blocks", ylabel="CKA of two members' features")
        for axis in (left, last):
            axis.locator_params("x", nbins=5, integer=axis is last)
    axes[0][1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments=None):
    parser = parser_of(__doc__)
    parser.add_argument("--picture", type=pathlib.Path, help="to draw, for show")
    start(parser, arguments, "diversity", run, show)


if __name__ == "__main__":
    main()
