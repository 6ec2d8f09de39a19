"""A report of a model on one page, in one file for a colleague."""

from __future__ import annotations

import base64
import contextlib
import html
import importlib.util
import inspect
import io
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skve import metrics
from skve._fitted.saving import package_versions
from skve._inputs.labels import encode_labels
from skve._runtime.locks import cached_property
from skve._runtime.wording import shortened
from skve.diagnosis import Diagnosis, Rival, examine
from skve.metrics._inputs import check_known
from skve.plots._samples import names_of_samples, shown_samples
from skve.selective import choose_threshold
from skve.uncertainty import Uncertainty, predictive_entropy
from skve.uncertainty._prediction import Prediction, predict_all
from skve.uncertainty._wrappers import unwrap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report", "report"]

_MAX_SAMPLES = 10_000  # of more a random part is reported
_N_ITEMS = 12  # on each sheet
_N_CONFUSIONS = 15
_MAX_CLASSES = 25  # of which a confusion matrix is legible
_MAX_TEXT = 400  # characters of a text
_SIDE = 112  # pixels of an image's longer side
_N_RESAMPLES = 200
_FOREIGN = 0.95  # novelty above which a sample counts as foreign


def report(
    est: Any,
    X: Any,
    y: ArrayLike,
    *,
    X_train: Any = None,
    y_train: Any = None,
    X_ood: Any = None,
    reference: Any = None,
    path: str | os.PathLike[str] | None = None,
) -> Report:
    """Report on one page how good a fitted ensemble is, and how reliable its uncertainty.

    The page shows accuracy, NLL, Brier score and calibration error with 95 % intervals, a comparison with a
    reference, the reliability diagram, the risk-coverage curve with a recommended threshold, the detection of
    foreign inputs, a confusion matrix, the most confident errors, the most uncertain and the most foreign items, and
    what :func:`skve.diagnose` finds. It is a single HTML file with its pictures inside, which needs no network.

    Parameters
    ----------
    est : fitted ensemble
        Such as :class:`skve.SVEClassifier`, or a pipeline, search, frozen estimator or single calibration around one.
    X : array-like or list of length n_samples
        Samples the ensemble was not trained on; of more than 10,000 a random part of that size is reported.
    y : array-like of shape (n_samples,)
        Their classes.
    X_train, y_train : array-like or list of length n_train, and array-like of shape (n_train,), default=None
        What `est` was fitted on: the logistic regression to compare with then learns from the same samples, else by
        cross-validation from `X`.
    X_ood : array-like or list of length n_out, default=None
        Foreign samples, to see whether they are detected; of more than 10,000 a random part.
    reference : fitted classifier, default=None
        A model to compare with. None compares with what :func:`skve.diagnose` compares with: a logistic regression on
        features of the frozen backbone.
    path : str or path, default=None
        The HTML file to write. None writes nothing: see :meth:`Report.save`.

    Returns
    -------
    Report
        The report as an object: ``html``, ``to_dict()``, ``to_frame()`` and ``save(path)``. A notebook shows the
        page.

    Raises
    ------
    ValueError
        If `X` is empty, `y` has another length or a label that the model does not know, one of `X_train` and
        `y_train` is given without the other, or `est` contains several fitted models.
    TypeError
        If `est` is not an ensemble.
    OSError
        If `path` cannot be written. This is checked before anything is predicted.
    ImportError
        If matplotlib or Jinja2 is not installed: ``pip install ".[report]"`` in a clone of skve.
    sklearn.exceptions.NotFittedError
        If `est` is not fitted.

    Notes
    -----
    `X` and `X_ood` are read once each; a calibration around the ensemble, or a reference, reads `X` once more.

    The recommended threshold halves the error rate: of the thresholds on the entropy that do, it is the one
    at which most samples are answered. For a model with an accuracy of 90 % the answers then have 95 %. It is chosen
    on `X`, and so are the figures beside it.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import train_test_split
    >>> import skve
    >>> from skve.testing import ToyClassifier
    >>> X_train, X_test, y_train, y_test = train_test_split(*load_iris(return_X_y=True), random_state=0)
    >>> clf = ToyClassifier(n_members=2, max_steps=40, random_state=0).fit(X_train, y_train)
    >>> summary = skve.report(clf, X_test, y_test)  # path="report.html" writes the page
    >>> summary.to_dict()["data"]["n_samples"]
    38
    >>> len(summary.to_frame())
    38
    """
    _check_installed()
    path = None if path is None else _check_writable(path)
    unwrap(est, None, "predict_proba_members")
    n_samples = _num_samples(X)
    if n_samples == 0:
        raise ValueError("X must have at least one sample, got none.")
    labels = check_known(y, est.classes_, n_samples, classes_name="est.classes_")
    familiar = _Part.of(est, X)
    foreign = None if X_ood is None else _Part.of(est, X_ood)
    labels = labels[familiar.places]
    diagnosis, rival = examine(
        est,
        familiar.X,
        labels,
        X_train=X_train,
        y_train=y_train,
        X_ood=None if foreign is None else foreign.X,
        reference=reference,
        predicted=familiar.predicted,
        predicted_ood=None if foreign is None else foreign.predicted,
    )
    name = None if reference is None else type(reference).__name__
    made = Report(est, familiar, labels, foreign, diagnosis, rival, name, X_train is not None)
    if path is not None:
        made.save(path)
    return made


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples that are reported, of all that were given, with what the ensemble predicts."""

    X: Any
    places: np.ndarray  # among all
    n_given: int
    predicted: Prediction

    @classmethod
    def of(cls, est, X):
        n_given = _num_samples(X)
        places = np.arange(n_given)
        if n_given > _MAX_SAMPLES:
            places = np.sort(np.random.default_rng(0).permutation(n_given)[:_MAX_SAMPLES])
            X = _safe_indexing(X, places)
        return cls(X, places, n_given, predict_all(est, X))

    @property
    def uncertainty(self) -> Uncertainty:
        return self.predicted.uncertainty

    @property
    def entropy(self) -> np.ndarray:
        """Of the prediction, calibrated where that is: what `SelectiveClassifier` compares with its threshold."""
        return predictive_entropy(self.predicted.proba[None])


@dataclass(eq=False, repr=False)
class Report:
    """What :func:`report` returns: the page, and its content.

    Attributes
    ----------
    html : str
        The page.
    diagnosis : Diagnosis
        What :func:`skve.diagnose` found.
    """

    _est: Any
    _familiar: _Part
    _labels: np.ndarray
    _foreign: _Part | None
    diagnosis: Diagnosis
    _rival: Rival | None
    _reference: str | None  # its class, where one is given
    _has_training_data: bool
    _made: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the page: dicts, lists, strings, numbers; None for what is not defined.

        Returns
        -------
        dict
            With ``"model"``, ``"data"``, ``"metrics"`` (each with ``"estimate"``, ``"low"`` and ``"high"``),
            ``"selective"``, ``"foreign"`` (None without foreign samples), ``"confusions"``, ``"diagnosis"`` and
            ``"versions"``. It can be written as JSON.
        """
        return self._content

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each reported item.

        Returns
        -------
        pandas.DataFrame of shape (n_items, n_columns)
            The path or text as column ``"X"`` where samples are such, the true class ``"y"`` (None for foreign
            samples), ``"is_foreign"``, the prediction, its ``"entropy"``, which is compared with the recommended
            threshold, and every measure of :class:`skve.uncertainty.Uncertainty`. The index is the place among the
            samples that were given.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        tables = []
        for part, truth in ((self._familiar, self._labels), (self._foreign, None)):
            if part is None:
                continue
            table = part.uncertainty.to_frame(X=part.X, index=part.places)
            at = table.columns.get_loc("prediction")
            table.insert(at, "y", list(truth) if truth is not None else [None] * len(table))
            table.insert(at + 1, "is_foreign", truth is None)
            table.insert(table.columns.get_loc("confidence") + 1, "entropy", part.entropy)
            tables.append(table)
        import pandas as pd

        return pd.concat(tables) if len(tables) > 1 else tables[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page.

        Parameters
        ----------
        path : str or path
            The HTML file; one that exists is replaced.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        _check_writable(path).write_text(self.html, encoding="utf-8", errors="xmlcharrefreplace")

    @cached_property
    def html(self) -> str:
        """The page: HTML that needs no other file."""
        import jinja2

        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"figure": _figure, "share": _share}
        template = environment.from_string(files("skve").joinpath("report.html.j2").read_text(encoding="utf-8"))
        return template.render(
            self._content,
            pictures=self._pictures(),
            sheets=self._sheets(),
            matrix=self._matrix(),
            self_mean=self._content["mean member"],
            mean_confidence=float(self._familiar.predicted.proba.max(axis=1).mean()),
            training=self._training(),
            no_reference=self.diagnosis.skipped.get("worse than logistic regression"),
            made=self._made,
        )

    def _repr_html_(self):
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:40em;border:1px solid #999"></iframe>'

    def __repr__(self):
        values = {name: value["estimate"] for name, value in self._content["metrics"].items()}
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in values.items())
        n_samples = "1 sample" if len(self._labels) == 1 else f"{len(self._labels)} samples"
        return f"Report on {n_samples}: {figures}; {len(self.diagnosis)} findings"

    # ------------------------------------------------------------------------------------------ figures

    @cached_property
    def _content(self):
        familiar, foreign = self._familiar, self._foreign
        return {
            "model": self._model(),
            "data": {
                "n_samples": len(self._labels),
                "n_given": familiar.n_given,
                "n_classes_present": len(np.unique(self._labels)),
                "n_foreign": 0 if foreign is None else len(foreign.places),
                "n_foreign_given": 0 if foreign is None else foreign.n_given,
            },
            "metrics": self._metrics(familiar.predicted.proba),
            "mean member": self._mean_member(),
            "reference": self._compared(),
            "selective": self._selective(),
            "foreign": None if foreign is None else self._foreign_figures(),
            "confusions": self._confusions(),
            "diagnosis": {
                "findings": [vars(finding) for finding in self.diagnosis],
                "checked": list(self.diagnosis.checked),
                "skipped": dict(self.diagnosis.skipped),
                "measured": dict(self.diagnosis.measured),
            },
            "versions": {"Python": platform.python_version(), **package_versions()},
            "call": self._call(),
        }

    def _model(self):
        model, _, _ = unwrap(self._est, None, "predict_proba_members")
        params = model.get_params(deep=False) if hasattr(model, "get_params") else {}
        default = {name: one.default for name, one in inspect.signature(type(model)).parameters.items()}
        history = getattr(model, "history_", None) or {}
        loss = [float(value) for value in history.get("loss", [])]
        return {
            "class": type(model).__name__,
            "inside": None if model is self._est else type(self._est).__name__,
            "ensemble": params.get("ensemble"),
            "backbone": _one_line(params["backbone"]) if params.get("backbone") is not None else None,
            "n_members": len(self._familiar.predicted.members),
            "n_member_parameters": getattr(model, "n_member_parameters_", None),
            "classes": [str(label) for label in self._est.classes_],
            "parameters": {
                name: _one_line(value) for name, value in params.items() if repr(value) != repr(default.get(name))
            },
            "n_epochs": _defined(history.get("epoch", [None])[-1]),
            "training_loss": _defined(loss[-1]) if loss else None,
            "temperature": _defined(getattr(model, "temperature_", None)),
        }

    def _training(self):
        """What is known of the training, in words."""
        model = self._content["model"]
        known = {"{:.4g} epochs": model["n_epochs"], "last training loss {:.3f} nats": model["training_loss"]}
        known["temperature {:.2f}"] = model["temperature"]
        return [words.format(value) for words, value in known.items() if value is not None]

    def _metrics(self, proba):
        codes, classes = self._codes, self._est.classes_
        picked = proba[np.arange(len(codes)), codes]
        squared = (proba**2).sum(axis=1) - 2 * picked + 1
        per_sample = {
            "accuracy": proba.argmax(axis=1) == codes,
            "NLL": -np.log(np.maximum(picked, np.finfo(float).eps)),
            "Brier": squared / 2 if len(classes) == 2 else squared,
        }
        found = {name: self._interval(_mean_of_values, values) for name, values in per_sample.items()}
        # Resamples of right answers alone would all be right.
        n_right = int(per_sample["accuracy"].sum())
        share = binomtest(n_right, len(codes)).proportion_ci(method="wilson")
        found["accuracy"] |= {"low": float(share.low), "high": float(share.high)}
        found["ECE"] = self._interval(metrics.expected_calibration_error, proba, labels=classes)
        return found

    def _interval(self, metric: Callable[..., float], values, **options):
        options |= {"n_resamples": _N_RESAMPLES, "random_state": 0}
        result = metrics.bootstrap_interval(metric, self._labels, np.asarray(values, float), **options)
        return {name: _defined(getattr(result, name)) for name in ("estimate", "low", "high")}

    @cached_property
    def _codes(self):
        return encode_labels(self._labels, self._est.classes_)

    def _mean_member(self):
        members, codes = self._familiar.predicted.members, self._codes
        picked = members[:, np.arange(len(codes)), codes]
        return {
            "accuracy": float((members.argmax(axis=2) == codes).mean()),
            "NLL": float(-np.log(np.maximum(picked, np.finfo(float).eps)).mean()),
        }

    def _compared(self):
        if self._rival is None:
            return None
        return {
            "name": self._reference or self._rival.name,
            "metrics": self._metrics(self._rival.proba),
            "NLL difference": dict(
                zip(("estimate", "low", "high"), map(_defined, self._rival.difference), strict=True)
            ),
        }

    def _selective(self):
        right, scores = self._right, self._familiar.entropy
        proba, accuracy = self._familiar.predicted.proba, float(self._right.mean())
        found = {
            "AURC": _defined(metrics.aurc(self._labels, proba, uncertainty=scores, labels=self._est.classes_)),
            "AUROC of errors": None,
            "goal": None,
            "threshold": None,
            "coverage": 1.0,
            "accuracy": accuracy,
        }
        if right.all() or not right.any():
            return found
        found["AUROC of errors"] = _defined(metrics.ood_auroc(scores[right], scores[~right]))
        goal = 1 - (1 - accuracy) / 2
        with contextlib.suppress(ValueError):  # the most certain answers may be wrong: then nothing is recommended
            threshold, coverage, reached = choose_threshold(
                scores, right, np.ones(len(right)), coverage=1.0, accuracy=goal
            )
            found |= {"goal": goal, "threshold": threshold, "coverage": coverage, "accuracy": reached}
        return found

    @cached_property
    def _right(self):
        return self._familiar.predicted.proba.argmax(axis=1) == self._codes

    @property
    def _foreign_measure(self):
        """By what foreign samples are detected: models saved by skve 0.1 know no novelty."""
        parts = [part for part in (self._familiar, self._foreign) if part is not None]
        return "total" if any(np.isnan(part.uncertainty.novelty).any() for part in parts) else "novelty"

    def _foreign_figures(self):
        assert self._foreign is not None
        familiar, foreign = self._familiar.uncertainty, self._foreign.uncertainty
        names = ["total", "epistemic"] + (["novelty"] if self._foreign_measure == "novelty" else [])
        found = {
            name: {
                "AUROC": _defined(metrics.ood_auroc(getattr(familiar, name), getattr(foreign, name))),
                "FPR at 95 % TPR": _defined(metrics.ood_fpr_at_tpr(getattr(familiar, name), getattr(foreign, name))),
            }
            for name in names
        }
        above = None
        if "novelty" in names:
            above = {
                "X": float(np.mean(familiar.novelty > _FOREIGN)),
                "X_ood": float(np.mean(foreign.novelty > _FOREIGN)),
            }
        return {"by": found, "share with novelty above 0.95": above}

    def _confusions(self):
        """The most frequent errors: true class, predicted class, number of samples."""
        wrong, classes = ~self._right, self._est.classes_
        pairs = np.stack([self._codes[wrong], self._familiar.predicted.proba.argmax(axis=1)[wrong]], axis=1)
        found, counts = np.unique(pairs, axis=0, return_counts=True) if len(pairs) else (pairs, np.array([]))
        order = np.argsort(-counts, kind="stable")[:_N_CONFUSIONS]
        return [
            {"true": str(classes[found[i][0]]), "predicted": str(classes[found[i][1]]), "n_samples": int(counts[i])}
            for i in order
        ]

    def _call(self):
        options = ["est", "X", "y"]
        options += ["X_train=X_train", "y_train=y_train"] if self._has_training_data else []
        options += ["X_ood=X_ood"] if self._foreign is not None else []
        options += ["reference=reference"] if self._reference is not None else []
        return f"skve.report({', '.join(options)})"

    # ----------------------------------------------------------------------------------------- the page

    def _pictures(self):
        """Displays as PNG images, by name; the same as anybody draws of these predictions."""
        from skve import plots

        proba, options = self._familiar.predicted.proba, {"labels": self._est.classes_}
        made: dict[str, Callable] = {}
        if not self._right.all():  # without errors, little could be seen
            made["reliability"] = lambda ax: plots.ReliabilityDisplay.from_predictions(
                self._labels, proba, ax=ax, **options
            )
            if self._right.any():
                made["risk_coverage"] = self._draw_risk_coverage
        if self._foreign is not None:
            familiar, foreign, measure = self._familiar.uncertainty, self._foreign.uncertainty, self._foreign_measure
            made["foreign"] = lambda ax: plots.UncertaintyDisplay.from_predictions(
                familiar, foreign, uncertainty=measure, ax=ax
            )
        return {name: _drawn(draw) for name, draw in made.items()}

    def _draw_risk_coverage(self, ax):
        from skve.plots import RiskCoverageDisplay

        proba, labels = self._familiar.predicted.proba, self._est.classes_
        RiskCoverageDisplay.from_predictions(
            self._labels, proba, uncertainty=self._familiar.entropy, labels=labels, ax=ax
        )
        recommended = self._content["selective"]
        if recommended["threshold"] is not None:
            at = recommended["coverage"], 1 - recommended["accuracy"]
            ax.plot(*at, marker="o", color="black", linestyle="none")
            ax.annotate("recommended", at, xytext=(-6, 8), textcoords="offset points", ha="right", fontsize=9)

    def _matrix(self):
        """Rows of the confusion matrix, each with the true class and pairs of number and share; None if too large."""
        classes = [str(label) for label in self._est.classes_]
        if len(classes) > _MAX_CLASSES:
            return None
        predicted = self._familiar.predicted.proba.argmax(axis=1)
        counts = confusion_matrix(self._codes, predicted, labels=np.arange(len(classes)))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return [
            (label, list(zip(row.tolist(), share.tolist(), strict=True)))
            for label, row, share in zip(classes, counts, shares, strict=True)
        ]

    def _sheets(self):
        """Lists of items under a title each."""
        u = self._familiar.uncertainty
        wrong = np.flatnonzero(~self._right)
        sheets = [
            (
                "The most confident errors",
                "Wrong, but confident: look for wrong labels, overlapping classes or gaps in the training data.",
                self._items(self._familiar, wrong[np.argsort(-u.confidence[wrong], kind="stable")]),
            ),
            (
                "The most uncertain items",
                "The highest entropy: leave these to a person, and add their labels to the training data.",
                self._items(self._familiar, np.argsort(-self._familiar.entropy, kind="stable")),
            ),
        ]
        part = self._familiar if self._foreign is None else self._foreign
        scores = getattr(part.uncertainty, self._foreign_measure)
        sheets.append(
            (
                "The most foreign items" + ("" if self._foreign is None else " among the foreign samples"),
                "Least like the training data, by "
                + ("novelty." if self._foreign_measure == "novelty" else "total uncertainty: novelty is not known."),
                self._items(part, np.argsort(-scores, kind="stable")),
            )
        )
        if self._foreign is not None:
            sheets.append(
                (
                    "Foreign samples that pass as familiar",
                    "The foreign samples that are most like the training data.",
                    self._items(part, np.argsort(scores, kind="stable")),
                )
            )
        return [{"title": title, "about": about, "items": items} for title, about, items in sheets]

    def _items(self, part, order):
        order = order[:_N_ITEMS]
        if len(order) == 0:
            return []
        chosen = _safe_indexing(part.X, order)
        u, entropy = part.uncertainty[order], part.entropy[order]
        items = []
        names = names_of_samples(part.X, order, part.places)
        for place, (name, sample) in enumerate(zip(names, shown_samples(chosen), strict=True)):
            truth = str(self._labels[order[place]]) if part is self._familiar else None
            prediction = str(u.prediction[place])
            items.append(
                {
                    "name": name,
                    "image": _thumbnail(sample) if isinstance(sample, np.ndarray) else None,
                    "text": shortened(sample, _MAX_TEXT) if isinstance(sample, str) else None,
                    "prediction": prediction,
                    "truth": truth,
                    "is_wrong": truth is not None and truth != prediction,
                    "confidence": float(u.confidence[place]),
                    "entropy": float(entropy[place]),
                    "novelty": _defined(u.novelty[place]),
                }
            )
        return items


def _check_installed():
    missing = []
    for module, package in (("jinja2", "Jinja2"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            missing.append(package)
    if missing:
        raise ImportError(
            f"report requires {' and '.join(missing)}, not installed here. In a clone of skve, install it: "
            f'pip install ".[report]".'
        )


def _check_writable(path):
    """Return a path as such; OSError for one that cannot become a file, before any work is done for it."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file, got the folder {str(path)!r}. Add a name: 'report.html'.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must lie in a folder that exists, got {str(path)!r}. Make the folder first.")
    target = path if path.exists() else path.parent
    if not os.access(target, os.W_OK):
        raise PermissionError(f"path must be writable, got {str(path)!r}. Choose another folder.")
    return path


def _drawn(draw):
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        stream = io.BytesIO()
        figure.savefig(stream, dpi=130)
    return _inlined(stream, "png")


def _thumbnail(pixels):
    from PIL import Image

    if pixels.dtype.kind == "f":
        pixels = pixels / (1 if pixels.max(initial=0) <= 1 else 255)
        pixels = np.rint(255 * np.clip(pixels, 0, 1))
    elif pixels.dtype.kind == "b":
        pixels = 255 * pixels.astype(np.uint8)
    elif pixels.dtype.itemsize == 2:
        pixels = pixels // 257
    image = Image.fromarray(np.squeeze(pixels).astype(np.uint8)).convert("RGB")
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return _inlined(stream, "jpeg")


def _inlined(stream, kind):
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _one_line(value):
    return shortened(" ".join(repr(value).split()), 200)


def _defined(value):
    """Return a float, or None for what is not defined or not finite: JSON has no NaN."""
    return float(value) if value is not None and np.isfinite(value) else None


def _mean_of_values(y_true, values):
    return float(np.mean(values))


def _figure(value, digits=3):
    return "not defined" if value is None else f"{value:.{digits}f}"


def _share(value):
    return "not defined" if value is None else f"{100 * value:.1f}\u00a0%"
