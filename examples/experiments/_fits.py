"""One fit and the rows of the CSV that it gives."""

import dataclasses
import functools
import pathlib
import re
import time
import warnings

import numpy as np
import torch
from _common import forget_peak, keep_predictions, measures, memory
from _corrupt import corrupt
from _data import load, load_domain
from _study import COLUMNS, KEY, OWN, TEXT_LOADERS, show
from joblib.externals.loky import ProcessPoolExecutor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skve
from skve._backbones import from_timm, from_transformers, sources
from skve._ensembles import HEAD, WEIGHTS, Likelihood
from skve._ensembles.base import MASKS
from skve._fitted.temperature import fit_temperature
from skve.metrics import ood_auroc
from skve.uncertainty import mutual_information

DEFAULTS = "0.2"  # the version of skve whose defaults a new row has


def run_fit(cells, options):
    """Fit once and return the rows of all cells that the fit answers; a failure is a row too.

    Parameters
    ----------
    cells : list of Cell
        They agree in `Cell.fit`.
    options : dict
        "data_dir" and "weights", folders; "predictions", a folder or None; "threads", "jobs" and "sitting", which
        are noted in the rows; "memory", whether the fit of a test runs in a fresh process, which shows its peak.
    """
    try:
        if options["memory"] and cells[0].stage == "test":
            with ProcessPoolExecutor(1) as fresh:  # of joblib: its workers cannot start those of multiprocessing
                found = fresh.submit(_fit, cells, options).result()
        else:
            found = _fit(cells, {**options, "memory": False})
        status = {"status": "ok", "error": ""}
    except Exception as error:  # whatever fails, a process that is killed too, the other cells go on
        found = [{} for _ in cells]
        message = f"{type(error).__name__}: {error}"
        for name in ("weights", "data_dir"):  # paths of one machine tell others nothing
            message = message.replace(str(options[name]), f"{{{name}}}")
        status = {"status": "failed", "error": message}
    return [row_of(cell, {**status, **values}, options) for cell, values in zip(cells, found, strict=True)]


def row_of(cell, values, options):
    """Return the row of a cell: what it is, and the values that were found."""
    known = dict(zip(KEY, cell.identity, strict=True))
    known["trial"] = cell.trial if cell.stage == "tune" else ""
    known |= {"data": cell.data["name"], "ensemble": cell.parameters["ensemble"], "n_members": cell.n_members}
    known |= rates_of(cell, options)
    known |= {"trials": cell.trials, **values}
    known |= {name: options[name] for name in ("threads", "jobs", "sitting")} | {"defaults": DEFAULTS}
    known = {name: "" if isinstance(v, float) and np.isnan(v) else v for name, v in known.items()}
    return {name: known.get(name, "") for name in COLUMNS}


def rates_of(cell, options):
    """Return the learning rates of a cell, those of the estimator where the study names none."""
    clf = make_classifier(cell, options)
    rates, defaults = {}, clf._defaults()
    for name in ("member_lr", "head_lr"):
        given = getattr(clf, name)
        rates[name] = getattr(defaults, name) if given is None else given
    return {**rates, "member_lr": ""} if clf.ensemble == "head" else rates  # heads own nothing else


def _fit(cells, options):
    """Return the measures of each cell; with "memory" the peak of the process too."""
    torch.set_num_threads(options["threads"])
    leader = max(cells, key=lambda cell: cell.n_members)
    parts = load(leader.data, options["data_dir"], leader.seed, leader.judged_on)
    clf = make_classifier(leader, options)
    clf._load_backbone(clf.backbone, classes=np.unique(parts.y_train))  # not timed: the fit finds it in the cache
    before = None
    if options["memory"]:
        before = memory("VmRSS")
        forget_peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    clf.fit(parts.X_train, parts.y_train)
    timed = {"fit_seconds": time.perf_counter() - start, "fit_cpu_seconds": time.process_time() - start_cpu}
    if before is not None:
        timed["peak_mib"] = memory("VmHWM") - before
    start = time.perf_counter()
    members = {"test": clf.predict_proba_members(parts.X_test)}
    timed["predict_seconds"] = time.perf_counter() - start
    members["valid"] = members["test"]
    if leader.judged_on == "test":
        members["valid"] = clf.predict_proba_members(parts.X_valid)
    if leader.stage == "test":
        members |= {name: clf.predict_proba_members(items) for name, items in parts.shifts.items()}
    foreign = {}
    if leader.stage == "test":
        foreign = {name: clf.score_samples(items) for name, items in parts.shifts.items()}
    views = {}
    found = []
    for cell in cells:
        key = (cell.data["strength"], cell.data["domain"])
        if key not in views:
            views[key] = view_of(cell, clf, parts, members, foreign, options["data_dir"])
        view = views[key]
        own = {name: proba[: cell.n_members] for name, proba in view.members.items()}
        values = view.measures | judge(own, view.truth, view.classes, cell.judged_on == "test", view.temperature)
        values["extra_percent"] = extra_percent(clf, cell.n_members)
        if cell.n_members == leader.n_members:
            values |= timed
        if options["predictions"] is not None and cell.stage == "test":
            file = predictions_of(options["predictions"], cell)
            keep_predictions(file, own, view.truth, view.classes, view.temperature)
        found.append(values)
    return found


@dataclasses.dataclass(frozen=True)
class View:
    """The members' probabilities for the items that a cell is judged on, the truth, and measures beside these."""

    members: dict
    truth: dict
    classes: np.ndarray
    temperature: float
    measures: dict


def view_of(cell, clf, parts, members, foreign, data_dir):
    """Return the view of a cell, from what is known of the study's own items.

    Parameters
    ----------
    cell : Cell
    clf : fitted estimator
    parts : Parts
    members : dict of str to ndarray of shape (n_members, n_samples, n_classes)
        Of the test and validation items and the groups of no known class.
    foreign : dict of str to ndarray of shape (n_samples,)
        `score_samples` of these groups.
    data_dir : path
    """
    elsewhere = cell.data["domain"] != OWN
    judged = load_domain(cell.data, data_dir, cell.seed, cell.judged_on) if elsewhere else parts
    items = corrupt(judged.X_test, cell.data["strength"], texts=cell.data["loader"] in TEXT_LOADERS)
    if elsewhere and cell.data["domains"][cell.data["domain"]]["per_class"] is not None:
        sizes = {"n_train": len(judged.y_train), "n_valid": len(judged.y_valid), "n_test": len(judged.y_test)}
        truth = {"test": judged.y_test, "valid": judged.y_valid}
        return View(read_out(clf, judged, items), truth, np.unique(judged.y_train), 1.0, sizes)
    if items is not parts.X_test:
        members = {**members, "test": clf.predict_proba_members(items)}
    sizes = {"n_train": len(parts.y_train), "n_valid": len(parts.y_valid), "n_test": len(judged.y_test)}
    normal = clf.score_samples(items) if foreign else None
    novelty = {f"{name}_novelty": ood_auroc(-normal, -scores) for name, scores in foreign.items()}
    truth = {"test": judged.y_test, "valid": parts.y_valid}
    return View(members, truth, clf.classes_, clf.temperature_, {**sizes, **novelty})


def read_out(clf, judged, items):
    """Return members' probabilities in another domain: of logistic regressions on the features of each member.

    Neither members nor backbone see its labels. The penalty is the best of five folds, by log-likelihood. Sets the
    estimator's parameter `features`.
    """
    clf.set_params(features="members")

    def features(X):
        return np.split(clf.transform(X), clf._state.n_members, axis=1)

    labels = judged.y_train
    folds = StratifiedKFold(min(5, np.unique(labels, return_counts=True)[1].min()))
    # Features are centred and keep their relative scales: rare ones would be blown up.
    regression = make_pipeline(StandardScaler(with_std=False), LogisticRegression(max_iter=1000))
    fitted = []
    for own in features(judged.X_train):
        penalties = {"logisticregression__C": np.logspace(-3, 1, 7) / own.var()}
        search = GridSearchCV(regression, penalties, scoring="neg_log_loss", cv=folds)
        fitted.append(search.fit(own, labels))
    groups = {"test": items, "valid": judged.X_valid}
    return {
        name: np.stack([one.predict_proba(own) for one, own in zip(fitted, features(X), strict=True)])
        for name, X in groups.items()
    }


def predictions_of(folder, cell):
    """Return the file of a cell's predictions; other settings have another one."""
    name = f"{cell.data['name']} {show(cell.factors)}".strip()
    name = re.sub(r"[^\w.=+-]+", "-", name)
    return pathlib.Path(folder) / cell.study / f"{name}_{cell.method}_{cell.seed}_{cell.digest}.npz"


def make_classifier(cell, options):
    """Return the estimator of a cell; "{weights}" in the backbone's name is filled in, "random:NAME" is untrained."""
    text = cell.data["loader"] in TEXT_LOADERS
    parameters = {**cell.parameters, "random_state": cell.seed}
    backbone = parameters.get("backbone")
    if isinstance(backbone, str):
        backbone = backbone.replace("{weights}", str(options["weights"]))
        if backbone.startswith("random:"):
            make = _random_text_model if text else _random_image_model
            backbone = functools.partial(make, backbone.removeprefix("random:"))
        parameters["backbone"] = backbone
    return (skve.SVETextClassifier if text else skve.SVEClassifier)(**parameters)


def _random_image_model(name):
    import timm

    architecture = from_timm.BUNDLED[name.removeprefix("bundled:")][-1] if "bundled:" in name else name
    return timm.create_model(architecture, pretrained=False, num_classes=0)


def _random_text_model(name):
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = name
    if name.startswith("bundled:"):
        folder = sources.bundled_file(name, from_transformers.BUNDLED)[0].parent
    return AutoModel.from_config(AutoConfig.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)


def judge(members, truth, classes, calibrated, temperature=1.0):
    """Return the measures of members' probabilities, with `calibrated` after a temperature of validation samples too.

    Uncertainty is that of the members as they are, as skve has it; all else is of the pooled prediction.

    Parameters
    ----------
    members : dict of str to ndarray of shape (n_members, n_samples, n_classes)
        Of "test", "valid" and the groups of no known class.
    truth : dict of str to ndarray of shape (n_samples,)
        Of "test" and "valid".
    classes : ndarray of shape (n_classes,)
    calibrated : bool
        Whether the validation samples are others than those that judge.
    temperature : float, default=1.0
        Of the pooled prediction, as the fit found it.
    """
    temper = Likelihood(len(classes)).temper

    def measured(proba):
        found = measures({"test": proba}, {}, truth["test"], classes)
        return {name: found[name] for name in ("accuracy", "nll", "ece", "aurc")}

    pooled = {name: proba.mean(axis=0) for name, proba in members.items()}
    judged = {name: proba for name, proba in pooled.items() if name != "valid"}
    several = len(members["test"]) > 1
    epistemic = {name: mutual_information(members[name]) for name in judged} if several else {}
    values = measures(judged, epistemic, truth["test"], classes)
    tempered = {name: temper(pooled[name], temperature) for name in ("test", "valid")}
    values |= measured(tempered["test"])
    values["brier"] = brier_score_loss(truth["test"], tempered["test"], labels=classes, scale_by_half=False)
    if several:
        own = [measured(temper(proba, temperature))["nll"] for proba in members["test"]]
        two = measured(temper(members["test"][:2].mean(axis=0), temperature))["nll"]
        values |= {"nll_mean_member": np.mean(own), "nll_first": own[0], "nll_first_two": two}
    if calibrated:
        more = temperature_of(tempered["valid"], truth["valid"], classes)
        after = measured(temper(tempered["test"], more))
        values |= {"temperature": more, "nll_temperature": after["nll"], "ece_temperature": after["ece"]}
    return values


def temperature_of(proba, truth, classes):
    """Return the temperature that validation samples ask for; where they do not tell it, it stays 1."""
    codes = np.searchsorted(classes, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_temperature(proba, codes, np.ones(len(codes)))


def extra_percent(clf, n_members):
    """Return the numbers that `n_members` members keep beyond one network with one head, in % of the backbone."""
    arrays = {key: value for key, value in clf._state.arrays.items() if not key.startswith(MASKS)}
    own = sum(value[0].size * min(n_members, len(value)) for value in arrays.values())
    head = sum(value[0].size for key, value in arrays.items() if key.startswith(HEAD))
    backbone = clf._load_backbone(clf._state.spec, clf.preprocess_).module
    size = sum(parameter.numel() for parameter in backbone.parameters())
    shared = 0 if any(key.startswith(WEIGHTS) for key in arrays) else size
    return 100 * (own + shared - head - size) / size
