"""What a study's file says, and the cells that follow from it."""

import copy
import dataclasses
import difflib
import hashlib
import itertools
import json
import pathlib
import re
import tomllib

from sklearn.model_selection import ParameterGrid

import skve
from skve import _ensembles

REQUIRED = object()
OWN = "own"  # the domain that a study trains on
SECTIONS = {
    "question": (str, REQUIRED),
    "data": (dict, REQUIRED),
    "common": (dict, {}),
    "tuning": (dict, {}),
    "test": (dict, {}),
    "factors": (dict, {}),
    "methods": (dict, REQUIRED),
}
DOMAIN = {
    "loader": (str, REQUIRED),
    "path": (str, REQUIRED),
    "train": (str, "train"),
    "test": (str, "test"),
    "n_test": (int, REQUIRED),
    "classes": (dict, {}),
    "n_classes": (int, None),
    "per_class": (int, None),
    "n_valid": (int, None),
}
SOURCE = {"loader": (str, REQUIRED), "path": (str, REQUIRED), "split": (str, REQUIRED), "n": (int, 500)}
DATA = {
    "name": (str, REQUIRED),
    "loader": (str, REQUIRED),
    "path": (str, REQUIRED),
    "train": (str, "train"),
    "valid": (str, None),
    "test": (str, "test"),
    "per_class": (int, None),
    "n_classes": (int, None),
    "near_classes": (int, 0),
    "strength": (int, 0),
    "domain": (str, OWN),
    "domains": (dict, {}),
    "n_valid": (int, REQUIRED),
    "n_test": (int, REQUIRED),
    "near": (dict, None),
    "far": (dict, None),
}
VIEW = ("strength", "domain", "domains")  # what the test items are: fits do not depend on it
TUNING = {"seed": (int, 100), "n_members": (int, 2), "trials": (int, None)}
TEST = {"seeds": (list, [0, 1, 2]), "on": (str, "test"), "against": (list, None)}
MAX_STRENGTH = 5
TEXT_LOADERS, IMAGE_LOADERS = ("jsonl",), ("jpegs", "arrays", "folders")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row to be: a method at one point of the factors, fitted with one seed.

    Attributes
    ----------
    study, method, stage : str
        The stage is "tune" or "test".
    factors : dict
        Swept settings; they are in `data` and `parameters` already.
    trial, seed : int
        A trial counts the settings of a method in tuning; in the test it is that which was chosen.
    trials : int
        Of every method of the study.
    data : dict
        The study's section on data.
    parameters : dict
        Of the estimator.
    judged_on : {"test", "valid"}
        Which items give the figures.
    """

    study: str
    method: str
    factors: dict
    stage: str
    trial: int
    seed: int
    trials: int
    data: dict
    parameters: dict
    judged_on: str

    @property
    def identity(self):
        """Return what the row is known by: the values of `KEY` as the CSV has them."""
        known = (self.study, self.method, show(self.factors), self.stage, self.seed, self.settings)
        return tuple(" ".join(str(value).split()) for value in known)

    @property
    def settings(self):
        """Return all that the result depends on besides the seed, as JSON: a row with other settings is stale."""
        # Rows that were made before test items could be corrupted, or of another domain, stay valid.
        view = {name: self.data[name] for name in VIEW if self.data[name] != DATA[name][1]}
        view["domains"] = {
            name: domain for name, domain in self.data["domains"].items() if name == self.data["domain"]
        }
        data = {name: value for name, value in self.data.items() if name not in VIEW}
        data |= {name: value for name, value in view.items() if value}
        known = {"data": data, "parameters": self.parameters, "judged_on": self.judged_on}
        return json.dumps(known, sort_keys=True, separators=(",", ":"))

    @property
    def digest(self):
        return digest_of(self.settings)

    @property
    def n_members(self):
        return 1 if self.parameters["ensemble"] == "single" else self.parameters.get("n_members", 4)

    @property
    def fit(self):
        """Return what the fit depends on: cells that agree in it are answered by the first members of one fit.

        Members do not depend on how many there are, but for snapshots, which share the epochs, and where a term of
        the loss or the end of the training couples them, or each leaves out a fold.
        """
        own = dict(self.parameters)
        options = own.get("ensemble_params", {})
        folds = options.get("folds", "auto" if self.data["loader"] in TEXT_LOADERS else None)
        coupled = own["ensemble"] == "snapshot" or options.get("diversity") or folds is not None
        if not coupled and not own.get("early_stopping"):
            own.pop("n_members", None)
        data = {name: value for name, value in self.data.items() if name not in VIEW}
        return json.dumps([self.stage, self.seed, data, own, self.judged_on], sort_keys=True)

    @property
    def cost(self):
        """Return a guess at the relative time of the fit."""
        trained = 1 if self.parameters["ensemble"] in ("dropout", "snapshot") else self.n_members
        return (1 + trained) * self.parameters.get("max_epochs", 10) * (self.data["per_class"] or 100)


KEY = ("study", "method", "factors", "stage", "seed", "settings")
COLUMNS = [
    *("study", "data", "method", "factors", "stage", "trial", "seed", "status", "ensemble", "n_members"),
    *("member_lr", "head_lr", "trials", "n_train", "n_valid", "n_test"),
    *("accuracy", "nll", "brier", "ece", "aurc", "nll_temperature", "ece_temperature", "temperature"),
    *("nll_mean_member", "nll_first", "nll_first_two"),
    *("near_total", "near_epistemic", "near_fpr95", "far_total", "far_epistemic", "far_fpr95"),
    *("near_novelty", "far_novelty"),
    *("extra_percent", "fit_seconds", "fit_cpu_seconds", "predict_seconds", "peak_mib"),
    *("threads", "jobs", "sitting", "defaults", "settings", "error"),
]


def digest_of(settings):
    """Return a short name of a cell's settings."""
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


def show(factors):
    """Return swept settings as the CSV has them: "name=value name=value"."""
    return " ".join(f"{name}={value}" for name, value in factors.items())


class Study:
    """A study's file, checked.

    Parameters
    ----------
    path : path
        Of a TOML file; README.md describes what it may hold.
    changes : list of str, default=()
        "section.key=value" with a value as in TOML, or else a string.

    Raises
    ------
    ValueError
        If the file is missing or no TOML, a key is unknown or missing, a value has the wrong type, an estimator
        refuses its parameters, or methods have different numbers of trials.
    """

    def __init__(self, path, changes=()):
        self.path = pathlib.Path(path)
        self.name = self.path.stem
        if not self.path.is_file():
            near = difflib.get_close_matches(self.path.name, [f.name for f in self.path.parent.glob("*.toml")], n=1)
            raise ValueError(f"study: there is no file {path}{f'; did you mean {near[0]}?' if near else ''}")
        self.text = self.path.read_text(encoding="utf-8")
        try:
            raw = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is no TOML: {error}") from error
        for change in changes:
            _change(raw, change)
        self._read(raw)

    def _read(self, raw):
        raw = self._section(raw, SECTIONS, "")
        self.question, self.common, self.factors = raw["question"], raw["common"], raw["factors"]
        self.data = self._section(raw["data"], DATA, "data")
        for name in ("near", "far"):
            if self.data[name] is not None:
                self.data[name] = self._section(self.data[name], SOURCE, f"data.{name}")
        for name, domain in self.data["domains"].items():
            if name == OWN or not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(
                    f"{self.name}: the name of a domain must have letters, digits, '_', '.', '+' and '-' only, and "
                    f"not be {OWN!r}, got {name!r}."
                )
            self.data["domains"][name] = self._domain(domain, f"data.domains.{name}")
        self._one_of(self.data["domain"], [OWN, *self.data["domains"]], "data.domain")
        self.tuning = self._section(raw["tuning"], TUNING, "tuning")
        self.test = self._section(raw["test"], TEST, "test")
        self._one_of(self.test["on"], ("test", "valid"), "test.on")
        if not self.test["seeds"] or not all(type(seed) is int and seed >= 0 for seed in self.test["seeds"]):
            raise ValueError(
                f"{self.name}: test.seeds must be a list of integers, at least 0, got {self.test['seeds']}."
            )
        self._one_of(self.data["loader"], TEXT_LOADERS + IMAGE_LOADERS, "data.loader")
        text = self.data["loader"] in TEXT_LOADERS
        self.estimator = skve.SVETextClassifier if text else skve.SVEClassifier
        others = {name: self.data[name] for name in ("near", "far") if self.data[name] is not None}
        others |= {f"domains.{name}": domain for name, domain in self.data["domains"].items()}
        for name, other in others.items():
            self._one_of(other["loader"], TEXT_LOADERS if text else IMAGE_LOADERS, f"data.{name}.loader")
        self._known = self.estimator().get_params()
        self._check_names(self.common, self._known, "common")
        self._read_factors()
        self._read_methods(raw["methods"])
        if self.test["against"] is None:
            self.test["against"] = [name for name in ("deep", "single") if name in self.methods]
        for name in self.test["against"]:
            self._one_of(name, list(self.methods), "test.against")

    def _domain(self, found, where):
        """Return the section on another domain, whose classes are either those of the data or read out anew."""
        domain = self._section(found, DOMAIN, where)
        if (domain["per_class"] is None) != bool(domain["classes"]):
            raise ValueError(
                f"{self.name}: {where} must have either classes, names there = names here, or per_class, the labels "
                f"of each class for a readout."
            )
        if domain["per_class"] is None:
            beside = [name for name in ("n_classes", "n_valid") if domain[name] is not None]
            if beside:
                raise ValueError(f"{self.name}: {where} must not have {beside[0]} beside classes.")
            if not all(isinstance(name, str) for name in domain["classes"].values()):
                raise ValueError(f"{self.name}: {where}.classes must be names there = names here.")
        elif domain["n_valid"] is None:
            raise ValueError(f"{self.name}: {where}.n_valid is missing")
        elif domain["per_class"] < 2:
            raise ValueError(f"{self.name}: {where}.per_class must be at least 2, so that folds choose the penalty.")
        return domain

    def _read_factors(self):
        for name, values in self.factors.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{self.name}: factors.{name} must be a list of values, got {values!r}.")
            of_data = [key for key, (kind, _) in DATA.items() if kind is int or key == "domain"]
            options = [part for part in _names(name) if part.startswith("ensemble_params.")]
            self._check_names(_names(name), [*of_data, *self._known, *options], "factors")
            together = len(_names(name))
            if together > 1 and any(not isinstance(v, list) or len(v) != together for v in values):
                raise ValueError(f"{self.name}: factors.{name!r} must be lists of {together} values, got {values!r}.")
        for point in self.points():
            for name in point.keys() & DATA.keys():
                self._check_value(point[name], DATA[name][0], name, "factors")
            if "domain" in point:
                self._one_of(point["domain"], [OWN, *self.data["domains"]], "factors.domain")

    def _read_methods(self, methods):
        if not methods:
            raise ValueError(f"{self.name}: methods must have one table for each method, got none.")
        self.methods, self.trials, self.of_common, self.of_factors = {}, {}, {}, {}
        swept = [part for factor in self.factors for part in _names(factor)]
        for name, own in methods.items():
            if not isinstance(own, dict):
                raise ValueError(f"{self.name}: methods.{name} must be a table, got {own!r}.")
            self._check_names(own, [*self._known, "trials", "of_common", "of_factors"], f"methods.{name}")
            own = dict(own)
            taken = self._taken(own, name, "of_common", list(self.common))
            self.of_common[name] = {key: value for key, value in self.common.items() if key in taken}
            self.of_factors[name] = self._taken(own, name, "of_factors", swept)
            judged = [part for part in swept if part in DATA and part not in (*self.of_factors[name], "per_class")]
            if judged:
                raise ValueError(
                    f"{self.name}: methods.{name}.of_factors must have {judged[0]}: methods are compared on the same "
                    f"items."
                )
            grid = own.pop("trials", {})
            try:
                trials = list(ParameterGrid(grid))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.name}: methods.{name}.trials={grid!r}: {error}") from error
            for trial in trials:
                options = [part for part in trial if part.startswith("ensemble_params.")]
                self._check_names(trial, [*self._known, *options], f"methods.{name}.trials")
            twice = sorted({*self.of_factors[name]} & {*own, *grid}) if isinstance(grid, dict) else []
            if twice:
                raise ValueError(f"{self.name}: methods.{name} must not set {twice[0]}, which factors sweep.")
            self.methods[name], self.trials[name] = own, trials[: self.tuning["trials"]]
        counts = {name: len(trials) for name, trials in self.trials.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{self.name}: every method must have the same number of trials, got {counts}.")
        self.n_trials = next(iter(counts.values()))
        for cell in self.cells("tune") + self.cells("test"):
            self._check_parameters(cell)

    def _taken(self, own, method, key, known):
        """Return which names a method takes of what all methods share, by default all of them."""
        taken = own.pop(key, known)
        if not isinstance(taken, list) or not all(isinstance(name, str) for name in taken):
            raise ValueError(f"{self.name}: methods.{method}.{key} must be a list of names, got {taken!r}.")
        self._check_names(taken, known, f"methods.{method}.{key}")
        return taken

    def _section(self, found, expected, where):
        """Return a section with its defaults; every key that is unknown, missing or of the wrong type is an error."""
        if not isinstance(found, dict):
            raise ValueError(f"{self.name}: {where} must be a table, got {found!r}.")
        self._check_names(found, expected, where)
        section = {}
        for key, (kind, default) in expected.items():
            if key not in found and default is REQUIRED:
                raise ValueError(f"{self.name}: {f'{where}.{key}'.lstrip('.')} is missing")
            value = found.get(key, copy.copy(default))
            if key in found:
                self._check_value(value, kind, key, where)
            section[key] = value
        return section

    def _check_value(self, value, kind, key, where):
        full = f"{where}.{key}".lstrip(".")
        if type(value) is not kind:
            raise ValueError(f"{self.name}: {full} must be of type {kind.__name__}, got {value!r}.")
        least = 0 if key in ("near_classes", "seed", "strength") else 1
        if kind is int and value < least:
            raise ValueError(f"{self.name}: {full} must be at least {least}, got {value}.")
        if key == "strength" and value > MAX_STRENGTH:
            raise ValueError(f"{self.name}: {full} must be at most {MAX_STRENGTH}, got {value}.")

    def _check_names(self, found, known, where):
        for name in found:
            if name not in known:
                near = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.0)
                full = f"{where}.{name}".lstrip(".")
                nearest = f"; the nearest known one is {near[0]}" if near else "; there are none"
                raise ValueError(f"{self.name}: unknown key {full}{nearest}")

    def _one_of(self, value, known, where):
        if value not in known:
            near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)
            raise ValueError(
                f"{self.name}: {where} must be one of {list(known)}, got {value!r}. The nearest is {near[0]!r}."
            )

    def _check_parameters(self, cell):
        where = f"{self.name}: methods.{cell.method}"
        try:
            self.estimator(**cell.parameters)._validate_params()
            _ensembles.check_options(cell.parameters["ensemble"], cell.parameters.get("ensemble_params"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error

    def points(self):
        """Return the combinations of the swept settings as dicts, one empty dict without any."""
        swept = []
        for key, values in self.factors.items():
            names = _names(key)
            swept.append([dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in values])
        return [{k: v for one in several for k, v in one.items()} for several in itertools.product(*swept)]

    def source(self, section):
        """Return what the comment above a section says: where data come from, or the command that makes weights."""
        found = re.search(rf"((?:^#.*\n)+)\[{section}\]", self.text, re.MULTILINE)
        return " ".join(line.lstrip("# ") for line in found[1].splitlines()) if found else ""

    def weights(self):
        """Return the paths of weights, below "{weights}", that cells load."""
        known = [cell.parameters.get("backbone") for cell in self.cells("test")]
        paths = [backbone.partition("{weights}/")[2] for backbone in known if isinstance(backbone, str)]
        return sorted(set(paths) - {""})

    def data_of_cells(self):
        """Return the different (section on data, what the cells are judged on) of all cells."""
        tuning = self.cells("tune") if self.n_trials > 1 else []
        different = {}
        for cell in tuning + self.cells("test"):
            different[json.dumps([cell.data, cell.judged_on])] = cell.data, cell.judged_on
        return list(different.values())

    def possible_tests(self):
        """Return the cells that tests may have, whichever trial was chosen."""
        found = []
        for trial in range(self.n_trials):
            chosen = {(method, show(point)): trial for method in self.methods for point in self.points()}
            found += self.cells("test", chosen)
        return found

    def cells(self, stage, chosen=None):
        """Return the cells of a stage.

        Parameters
        ----------
        stage : {"tune", "test"}
        chosen : dict, default=None
            For the test: (method, factors as `show` has them) -> index of the chosen trial, or None where no trial
            succeeded, which has no test. Methods that are not in it take their first.
        """
        chosen = chosen or {}
        cells = []
        for point, (method, own) in itertools.product(self.points(), self.methods.items()):
            if stage == "tune":
                runs = [(trial, self.tuning["seed"]) for trial in range(self.n_trials)]
            else:
                trial = chosen.get((method, show(point)), 0)
                runs = [(trial, seed) for seed in self.test["seeds"]] if trial is not None else []
            for trial, seed in runs:
                data = copy.deepcopy(self.data)
                parameters = {"ensemble": "sve", **self.of_common[method], **copy.deepcopy(own)}
                swept = {name: value for name, value in point.items() if name in self.of_factors[method]}
                for name, value in [*swept.items(), *self.trials[method][trial].items()]:
                    options = parameters.get("ensemble_params", {})
                    if name in DATA:
                        data[name] = value
                    elif name.startswith("ensemble_params."):
                        parameters["ensemble_params"] = {**options, name.partition(".")[2]: value}
                    elif name == "ensemble_params":
                        parameters[name] = {**options, **value}
                    else:
                        parameters[name] = value
                if stage == "tune":
                    parameters["n_members"] = self.tuning["n_members"]
                    data |= {"strength": 0, "domain": OWN}  # what is tuned knows the data alone
                judged_on = "valid" if stage == "tune" else self.test["on"]
                where = (self.name, method, point, stage, trial, seed, self.n_trials)
                cells.append(Cell(*where, data, parameters, judged_on))
        return cells


def _names(factor):
    """Return the settings that a factor sweeps together: "per_class, max_epochs" are two."""
    return [name.strip() for name in factor.split(",")]


def _change(raw, change):
    """Set "section.key=value" in what the file holds."""
    name, equals, value = change.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set must be section.key=value, got {change!r}.")
    try:
        value = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        value = value.strip()
    *sections, key = name.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ValueError(f"--set {change}: {section} is a value, no section")
    raw[key] = value
