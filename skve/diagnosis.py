"""The known failures of an ensemble: each is found by its evidence and reported with a remedy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, train_test_split

from skve import metrics, uncertainty
from skve._inputs.labels import encode_labels
from skve._runtime.locks import cached_property
from skve._runtime.wording import listed
from skve.metrics._inputs import check_known
from skve.uncertainty._prediction import Prediction, predict_all
from skve.uncertainty._wrappers import unwrap

# Limits between healthy and ill; healthy figures in brackets are of SVEClassifier on Fashion-MNIST.
_COLLAPSED = 1e-3  # epistemic share of the total uncertainty [0.24]; distance of members' log ratios
_NO_GRADIENT = 1e-6  # largest gradient norm, as a share of the median layer's [0.5]
_HARDLY_MOVED = 1.2  # root mean square of the log ratios, in units of init_scale [28]
_RAN_AWAY = 1.0  # root mean square of a layer's log ratios [0.34]
_LARGE_INIT = 0.05  # init_scale [0.01]
_FEW_STEPS = 20  # of training [160]
_STILL_FALLING = 0.08  # share of the training loss's fall in the last quarter of the learning [0.20 with few samples]
_LEARNT = 0.05  # share of the first training loss that is left [0.01]
_SHORTFALL = 0.05  # accuracy that members may lack against the ensemble or the reference [0.03]
_TEMPERATURE = 1.2  # temperature that fits validation data best
_CHANCE = 0.6  # AUROC of detecting errors [0.88] or foreign samples [0.81]
_INVERTED = 0.45  # AUROC of detecting foreign samples by the epistemic part
_ECE_EXCESS = 0.01  # ECE above the reference's
_NLL_EXCESS = 0.05  # NLL above the reference's
_ACCURACY_LACK = 0.02  # accuracy below the reference's
_WORTH = 0.005  # NLL that several members must gain over the mean member to be worth their passes
_FEW = 10  # errors (and right answers) below which nothing is said about ranking them

_STRENGTHS = np.logspace(-3, 4, 8)  # candidates for C of the logistic regression
_N_FOLDS = 5
_TEMPERATURES = np.geomspace(1 / 8, 8, 97)  # candidates


@dataclass(frozen=True)
class Finding:
    """One failure of a model.

    Attributes
    ----------
    name : str
        Which of the known failures.
    evidence : str
        What was measured, and the limit.
    remedy : str
        What to change.
    """

    name: str
    evidence: str
    remedy: str

    def __str__(self):
        return f"{self.name}\n  evidence: {self.evidence}\n  remedy:   {self.remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; empty, and so false, for a healthy model.

    Attributes
    ----------
    findings : list of Finding
        The failures, in the order in which to address them.
    checked : list of str
        Names of the failures that were checked.
    skipped : dict of {str: str}
        Names of the failures that were not checked, and what was missing.
    measured : dict of {str: str}
        Figures that are reported for healthy models, too: the gain of the ensemble over its average member, the
        temperature that fits `X` best, the comparison with logistic regression or the reference, and how well
        foreign samples are detected.
    """

    findings: list[Finding]
    checked: list[str]
    skipped: dict[str, str]
    measured: dict[str, str] = field(default_factory=dict)

    def __len__(self):
        return len(self.findings)

    def __iter__(self):
        return iter(self.findings)

    def __contains__(self, name):
        return any(finding.name == name for finding in self.findings)

    def __str__(self):
        head = f"{len(self.findings)} of {len(self.checked)} known failures found."
        lines = [head, *(str(finding) for finding in self.findings)]
        found = " ".join(finding.evidence for finding in self.findings)
        lines += [f"measured: {name}: {text}" for name, text in self.measured.items() if text not in found]
        lines += [f"not looked for: {name} ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(
    est: Any,
    X: Any = None,
    y: ArrayLike | None = None,
    *,
    X_train: Any = None,
    y_train: ArrayLike | None = None,
    X_ood: Any = None,
    reference: Any = None,
) -> Diagnosis:
    """Look for the known failures of an ensemble, and suggest a remedy for each.

    Without data, training and singular values are checked; with samples, also the members' diversity; with
    classes, also accuracy, calibration and whether the uncertainty is higher for errors; with foreign samples, also
    whether they are detected.

    Parameters
    ----------
    est : fitted ensemble
        Such as :class:`skve.SVEClassifier`, or a pipeline, search, frozen estimator or single calibration
        around one.
    X : array-like or list of length n_samples, default=None
        Samples the ensemble was not trained on; a few hundred or more.
    y : array-like of shape (n_samples,), default=None
        Their classes.
    X_train : array-like or list of length n_train, default=None
        The samples the ensemble was trained on, which it does not keep. For comparison, a logistic regression on
        features of the frozen backbone is fitted on them. Without them it is cross-validated on `X`, with at most as
        many samples as the ensemble was trained on.
    y_train : array-like of shape (n_train,), default=None
        Their classes.
    X_ood : array-like or list of length n_out, default=None
        Foreign samples.
    reference : fitted classifier, default=None
        A model to compare with on ``X`` and ``y``, in place of the logistic regression; for instance a single
        fine-tuned one.

    Returns
    -------
    Diagnosis
        Contains a ``Finding`` (``name``, ``evidence``, ``remedy``) for each of these failures that it detects:

        - ``"layer without gradient"``: a layer never received a gradient.
        - ``"ratios ran away"``: singular values of a layer changed several-fold, not by some percent.
        - ``"ratios hardly moved"``: the singular values, or the factors of channels, stayed where they were drawn.
        - ``"init_scale too large"``: above 0.05, and the members are not accurate.
        - ``"training stopped too early"``: it took fewer than 20 steps, or the training loss was still falling, that
          is, by more than 8 % of its fall since the first entry of ``history_`` in the last quarter of the learning
          (the sum of learning rates over the steps), and more than 5 % of the first loss was left; with validation
          data, only if their NLL was lowest at the end.
        - ``"members collapsed"``: the members predict the same, so that there is no epistemic uncertainty.
        - ``"overconfident"``: the temperature that fits ``X`` best is above 1.2, and above 1 by more than chance
          (bootstrap, 95 %).
        - ``"worse than logistic regression"``, or ``"worse than the reference"``: the NLL is higher by 0.05 or more,
          or the accuracy lower by 0.02 or more, and by more than chance (paired, 95 %).
        - ``"calibration worse than the reference"``: the ECE is larger by 0.01 or more, and by more than
          chance (paired bootstrap, 95 %).
        - ``"uncertainty does not rise with error"``: the total uncertainty does not detect errors (AUROC below
          0.6).
        - ``"OOD score near one half"``: neither the uncertainties nor novelty distinguish ``X_ood`` from ``X``
          (AUROC below 0.6).
        - ``"epistemic uncertainty inverted"``: the epistemic uncertainty of ``X_ood`` is *lower* than that of ``X``
          (AUROC below 0.45, and below 0.5 by more than chance).

    Raises
    ------
    ValueError
        If ``y``, ``X_train``, ``X_ood`` or ``reference`` is given without the data that it requires, or ``est``
        contains several fitted models.
    TypeError
        If ``est`` is not an ensemble.
    sklearn.exceptions.NotFittedError
        If ``est`` is not fitted.

    Notes
    -----
    The limits are rules of thumb. A finding is a reason to look, not a proof, and the absence of findings is no
    guarantee.

    The regularisation of the logistic regression is chosen by cross-validation. It takes seconds for hundreds of
    samples, and one pass of the frozen backbone. A model that was saved by skve 0.1 does not know how many samples
    it was trained on, so that the comparison requires ``X_train``.

    The temperature is that of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The interval of the
    epistemic uncertainty's AUROC is that of the Mann-Whitney statistic of two equal distributions.

    Examples
    --------
    >>> import numpy as np
    >>> from skve import diagnose
    >>> class Collapsed:
    ...     def predict_proba_members(self, X):
    ...         return np.tile([0.7, 0.3], (4, len(X), 1))
    >>> print(diagnose(Collapsed(), ["a", "b"]).findings[0])
    members collapsed
      evidence: the members' mutual information is 0 of the total uncertainty on X (limit 0.001)
      remedy:   raise member_lr or max_steps, and see that init_scale is not 0
    """
    return examine(est, X, y, X_train=X_train, y_train=y_train, X_ood=X_ood, reference=reference)[0]


def examine(
    est: Any,
    X: Any,
    y: Any,
    *,
    X_train: Any = None,
    y_train: Any = None,
    X_ood: Any = None,
    reference: Any = None,
    predicted: Prediction | None = None,
    predicted_ood: Prediction | None = None,
) -> tuple[Diagnosis, Rival | None]:
    """Return the `Diagnosis`, and what the ensemble was compared with; `predict_all` of the samples may be known."""
    for name, given, needed, value in (
        ("y", y, "X", X),
        ("X_ood", X_ood, "X", X),
        ("reference", reference, "y", y),
        ("X_train", X_train, "y_train", y_train),
        ("y_train", y_train, "X_train", X_train),
        ("X_train", X_train, "y", y),
    ):
        if given is not None and value is None:
            raise ValueError(f"{needed} must be given where {name} is, got None.")
    model, _, calibrated = unwrap(est, None, "predict_proba_members")
    case = _Case(est, model, X, y, X_train, y_train, X_ood, reference)
    if predicted_ood is not None:
        case.predicted_ood = predicted_ood
    if X is not None:
        case.predicted = predict_all(est, X) if predicted is None else predicted
        case.members = case.predicted.members
        if case.members.shape[1] == 0:
            raise ValueError("X must have at least one sample, got none.")
        if y is not None:
            case.y = check_known(y, model.classes_, case.members.shape[1], classes_name="est.classes_")
            # The prediction of a foreign ensemble need not be the mean of its members.
            pooled = calibrated or hasattr(model, "_predict_all")
            case.proba = case.predicted.proba if pooled else np.asarray(est.predict_proba(X))
            case.right = case.is_right(case.proba)
            case.member_accuracy = float(np.mean([case.is_right(proba).mean() for proba in case.members]))
            _measure_gain(case)
    findings, checked, skipped = [], [], {}
    for name, check in _CHECKS.items():
        result = check(case)
        if isinstance(result, _Lacking):
            skipped[name] = result.what
            continue
        checked.append(name)
        if result is not None:
            findings.append(Finding(name, *result))
    return Diagnosis(findings, checked, skipped, case.measured), case.rival


@dataclass(frozen=True)
class Rival:
    """What an ensemble is compared with.

    Attributes
    ----------
    name : str
    proba : ndarray of shape (n_samples, n_classes)
        Its probabilities, with columns in the order of the ensemble's classes.
    difference : tuple of float
        The NLL of the ensemble minus its own, and the ends of the 95 % interval, paired by sample.
    """

    name: str
    proba: np.ndarray
    difference: tuple[float, float, float]


@dataclass
class _Case:
    """What is known about the model, computed once."""

    est: Any
    model: Any
    X: Any
    y: Any
    X_train: Any
    y_train: Any
    X_ood: Any
    reference: Any
    predicted: Any = None  # a Prediction, where there are samples
    rival: Rival | None = None
    members: Any = None  # arrays, where there are samples
    proba: Any = None
    right: Any = None
    member_accuracy: float = float("nan")
    logs: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)

    def __post_init__(self):
        from skve._ensembles import RULES  # torch, which metrics and plots do without

        ratios = getattr(self.model, "ratios_", None) or {}
        with np.errstate(invalid="ignore", divide="ignore"):  # a ratio that ran away may be 0 or NaN
            self.logs = {layer: np.log(np.asarray(values, float)) for layer, values in ratios.items()}
        self.params: dict = self.model.get_params() if hasattr(self.model, "get_params") else {}
        self.rule = RULES.get(self.params.get("ensemble", "sve"), RULES["sve"])
        self.init_scale = self.params.get("init_scale") if self.rule.has_ratios else None
        self.history = getattr(self.model, "history_", None) or {}
        self.gradient_norm = self.history.get("gradient_norm") or {}
        self.state = getattr(self.model, "_state", None)

    def is_right(self, proba):
        return self.model.classes_[proba.argmax(axis=1)] == self.y

    @cached_property
    def codes(self):
        return encode_labels(self.y, self.model.classes_)

    @cached_property
    def features(self):
        """Of the frozen backbone for `X` (n_samples, n_features)."""
        if self.predicted.features is not None:
            return self.predicted.features
        return self.frozen_features(unwrap(self.est, self.X, "predict_proba_members")[1])

    def frozen_features(self, inputs):
        frozen = copy.copy(self.model).set_params(features="backbone")  # whatever `transform` returns for the user
        return np.asarray(frozen.transform(inputs))

    @cached_property
    def novelty(self):
        """What is known of the training samples' features, or None."""
        return getattr(self.state, "novelty", None)

    @cached_property
    def predicted_ood(self):
        return predict_all(self.est, self.X_ood)

    @property
    def members_ood(self):
        return self.predicted_ood.members

    @cached_property
    def ood_auroc(self):
        """AUROC of detecting `X_ood`, by measure."""
        auroc = {
            name: metrics.ood_auroc(measure(self.members), measure(self.members_ood))
            for name, measure in (
                ("total uncertainty", uncertainty.predictive_entropy),
                ("epistemic uncertainty", uncertainty.mutual_information),
            )
        }
        if self.novelty is not None:
            auroc["novelty"] = metrics.ood_auroc(
                self.predicted.uncertainty.novelty, self.predicted_ood.uncertainty.novelty
            )
        return auroc

    @cached_property
    def temperature(self):
        return _best_temperature(self.proba, self.codes)

    def losses(self, proba):
        """Negative log-likelihood of each sample of `X`."""
        return -np.log(np.maximum(proba[np.arange(len(self.codes)), self.codes], 1e-12))


@dataclass(frozen=True)
class _Lacking:
    what: str


def _measure_gain(case):
    if len(case.members) == 1:
        return
    losses = case.losses(case.members.mean(axis=0))
    gain, low, high = _interval(np.mean([case.losses(proba) for proba in case.members], axis=0) - losses)
    text = (
        f"the NLL of the members' mean, {losses.mean():.3f}, is {gain:.3f} ({low:.3f} to {high:.3f}) below that of "
        f"the mean member"
    )
    if low < _WORTH:
        text += f"; that may not be worth {len(case.members)} passes: use fewer members, or n_members=1"
        if "folds" in case.rule.takes:
            text += ", or let members learn from different samples by folds in ensemble_params"
    case.measured["gain of the ensemble"] = text


def _layer_without_gradient(case):
    if not case.gradient_norm:
        return _Lacking("no gradient norms in history_")
    # A norm that is not finite is no gradient to learn from either.
    largest = {layer: np.max(np.nan_to_num(v, posinf=0), initial=0) for layer, v in case.gradient_norm.items()}
    limit = _NO_GRADIENT * np.median(list(largest.values()))
    dead = [layer for layer, norm in largest.items() if norm <= limit]
    if not dead:
        return None
    return (
        f"the gradient was zero or not finite throughout for {listed(dead, 3)} ({len(dead)} of {len(largest)} "
        f"layers)",
        "leave these layers out with layers=, or see why the backbone does not use their weights",
    )


def _ratios_hardly_moved(case):
    if not case.logs or not case.init_scale:
        return _Lacking("no ratios_ or no init_scale")
    moved = _rms(np.concatenate([values.ravel() for values in case.logs.values()]))
    # Ratios drawn too far from 1 are a failure of their own, and cannot be distinguished from ratios that moved.
    if case.init_scale > _LARGE_INIT or not moved < _HARDLY_MOVED * case.init_scale:
        return None
    return (
        f"the log ratios are {moved:.2g} (root mean square), and were drawn with "
        f"init_scale={case.init_scale:g} (limit {_HARDLY_MOVED:g} times that)",
        "raise member_lr (1e-2 to 5e-2 is usual) or max_steps",
    )


def _ratios_ran_away(case):
    if not case.logs:
        return _Lacking("no ratios_")
    size = {layer: _rms(values) for layer, values in case.logs.items()}
    gone = [layer for layer, value in size.items() if not value <= _RAN_AWAY]
    if not gone:
        return None
    worst = max(gone, key=lambda layer: np.nan_to_num(size[layer], nan=np.inf))
    return (
        f"the log ratios of {listed(gone, 3)} have a root mean square above {_RAN_AWAY:g}; {worst} has "
        f"{size[worst]:.2g}, a factor of {np.exp(size[worst]):.2g}",
        "lower member_lr, or raise weight_decay, which pulls the ratios back to 1",
    )


def _init_scale_too_large(case):
    if case.init_scale is None or case.y is None:
        return _Lacking("no init_scale, or no X and y")
    if case.init_scale <= _LARGE_INIT:
        return None
    chance = np.unique(case.y, return_counts=True)[1].max() / len(case.y)
    limits = {
        "halfway from the most frequent class to 1": (1 + chance) / 2,
        "the ensemble's": case.right.mean() - _SHORTFALL,
    }
    if case.reference is not None:
        limits["the reference's"] = np.mean(case.reference.predict(case.X) == case.y) - _SHORTFALL
    missed = {what: limit for what, limit in limits.items() if case.member_accuracy < limit}
    if not missed:
        return None
    what, limit = max(missed.items(), key=lambda item: item[1])
    return (
        f"init_scale={case.init_scale:g} (limit {_LARGE_INIT:g}), and the members' mean accuracy is "
        f"{case.member_accuracy:.3f} (limit {limit:.3f}, from {what})",
        "lower init_scale to 0.01: the members start too far from the pretrained weights",
    )


def _stopped_too_early(case):
    losses = np.asarray(case.history.get("loss", []), float)
    if case.rule.is_solved or not len(losses):
        return _Lacking("no training in steps in history_")
    if case.state is not None and case.state.n_epochs > len(losses):
        return _Lacking("history_ is that of the last call only")
    n_steps = case.history.get("step", [_FEW_STEPS])[-1]
    remedy = f"raise max_steps, to {2 * max(n_steps, _FEW_STEPS)} for instance"
    if case.params.get("max_steps") is not None or case.params.get("max_epochs") is not None:
        remedy = f"leave max_steps and max_epochs at None, which takes 160 steps or more; or {remedy}"
    if n_steps < _FEW_STEPS:
        return f"the training took {n_steps} steps (limit {_FEW_STEPS})", remedy
    if len(losses) == 1 or case.params.get("ensemble") == "snapshot":
        return _Lacking("no course of the loss at one rate in history_")
    validation = np.asarray(case.history.get("valid_nll", [np.nan]), float)
    if np.isfinite(validation).all() and validation[-1] > validation.min():
        return None  # longer would not be better
    if losses[-1] < _LEARNT * losses[0]:
        return None  # nothing is left to learn, however late it was learnt: few samples are soon known by heart
    late, total = _late_fall(case, losses)
    if late < max(_STILL_FALLING * total, 1e-3):
        return None
    return (
        f"the training loss was still falling: in the last quarter of the learning by {late:.3f} nats, which is "
        f"{late / total:.0%} of its fall in all (limit {_STILL_FALLING:.0%})",
        remedy,
    )


def _late_fall(case, losses):
    """By how much the loss fell in the last quarter of the learning, and in all, from the mean losses of rounds.

    Learning is measured by the sum of learning rates, since a schedule that ends at zero flattens any curve.
    """
    from skve._training.schedule import learning_rate_factor

    factor = learning_rate_factor(case.params.get("schedule", "cosine"), case.params.get("warmup", 0.1), 1000)
    learned = np.cumsum([0, *map(factor, range(1000))])
    ends = np.concatenate([[0], case.history["epoch"]]) / case.history["epoch"][-1]
    at = np.interp((ends[1:] + ends[:-1]) / 2, np.linspace(0, 1, 1001), learned)
    if len(losses) == 2:  # two points make no curve; heads start with equal probabilities
        at = np.concatenate([[0], at])
        losses = np.concatenate([[max(losses[0], np.log(len(case.model.classes_)))], losses])
    quarter = np.interp(0.25 * at[0] + 0.75 * at[-1], at, losses)
    return quarter - losses[-1], losses[0] - losses[-1]


def _members_collapsed(case):
    if case.members is not None:
        if len(case.members) == 1:
            return _Lacking("one member only")
        total = uncertainty.predictive_entropy(case.members).mean()
        share = uncertainty.mutual_information(case.members).mean() / max(total, 1e-300)
        evidence = f"the members' mutual information is {share:.2g} of the total uncertainty on X"
    else:
        several = [values for values in case.logs.values() if len(values) > 1]
        if not several:
            return _Lacking("no X, and no ratios_ of several members")
        with np.errstate(invalid="ignore"):  # ratios that ran away to 0 or infinity
            share = _rms(np.concatenate([(values - values.mean(axis=0)).ravel() for values in several]))
        evidence = f"the members' log ratios differ by {share:.2g} (root mean square)"
    if not share < _COLLAPSED:
        return None
    return (
        f"{evidence} (limit {_COLLAPSED:g})",
        case.rule.set_apart,
    )


def _overconfident(case):
    if case.y is None:
        return _Lacking("no X and y")
    best, low, high = case.temperature
    confidence, accuracy = case.proba.max(axis=1).mean(), case.right.mean()
    fitting = f"the temperature that fits X best is {_in_range(best)} ({_in_range(low)} to {_in_range(high)})"
    if case.right.all():
        fitting = "no temperature fits X best, since all answers are right"
    text = f"{fitting}, the mean confidence {confidence:.3f}, the accuracy {accuracy:.3f}"
    case.measured["calibration"] = text
    if best < _TEMPERATURE or low <= 1:
        return None
    return f"{text} (95 % interval, limit {_TEMPERATURE:g})", _calibrate(case)


def _calibrate(case):
    prefit = "CalibratedClassifierCV(FrozenEstimator(est), method='temperature') on validation data"
    if case.params.get("calibrate") is None or getattr(case.model, "temperature_", 1.0) != 1.0:
        return f"calibrate with scikit-learn's {prefit}"
    without_loss = "; folds in ensemble_params lose no sample to it" if "folds" in case.rule.takes else ""
    return f"fit again with calibrate='temperature'{without_loss}, or wrap in {prefit}"


def _best_temperature(proba, codes):
    """Return the temperature of the least NLL, and the ends of its bootstrap interval (95 %)."""
    log_proba = np.log(np.maximum(proba, 1e-12))
    samples = np.arange(len(codes))
    losses = np.stack([-log_softmax(log_proba / each, axis=1)[samples, codes] for each in _TEMPERATURES], axis=1)
    counts = np.random.default_rng(0).multinomial(len(codes), np.full(len(codes), 1 / len(codes)), size=400)
    drawn = _TEMPERATURES[(counts @ losses).argmin(axis=1)]
    return _TEMPERATURES[losses.mean(axis=0).argmin()], *np.quantile(drawn, [0.025, 0.975])


def _in_range(temperature):
    """Return a temperature in words that do not take an end of the candidates for an estimate."""
    first, last = _TEMPERATURES[[0, -1]]
    return (
        f"{first:g} or less"
        if temperature <= first
        else f"{last:g} or more"
        if temperature >= last
        else (f"{temperature:.2f}")
    )


def _worse_than_regression(case):
    if case.reference is not None:
        return _Lacking("a reference is given")
    if case.y is None:
        return _Lacking("no X and y")
    if not hasattr(case.model, "transform"):
        return _Lacking("est has no transform")
    if case.X_train is None:
        result, n_train = _regression_on_x(case)
        source = f"cross-validated on X, each time on {n_train} samples"
    else:
        result = _regression_on_training_data(case)
        source = "on X_train"
    if isinstance(result, _Lacking):
        return result
    underconfident = case.temperature[2] < 1
    return _worse(
        case,
        f"logistic regression on the frozen features, {source}",
        result,
        f"{'lower head_weight_decay, or ' + _calibrate(case) + '; ' if underconfident else ''}train longer or with a "
        f"larger head_lr, if the training loss is high; ensemble='head' is this regression as an ensemble, fitted in "
        f"seconds; the guide to ensembles blends the two",
    )


def _regression_on_training_data(case):
    model, inputs, _ = unwrap(case.est, case.X_train, "predict_proba_members")
    features = case.frozen_features(inputs)
    y = check_known(case.y_train, model.classes_, len(features), name="y_train", classes_name="est.classes_")
    codes = encode_labels(y, model.classes_)
    n_folds = min(_N_FOLDS, np.unique(codes, return_counts=True)[1].min())
    if n_folds < 2:
        return _Lacking("fewer than two samples of a class in X_train")
    strengths, scale = {"C": _STRENGTHS}, features.std()
    search = GridSearchCV(_regression(), strengths, scoring="neg_log_loss", cv=int(n_folds))
    with warnings.catch_warnings(action="ignore"):  # of convergence, and of classes that a part lacks
        search.fit(features / scale, codes)
        proba = search.predict_proba(case.features / scale)
    return _in_columns(proba, search.classes_, len(model.classes_))


def _regression_on_x(case):
    """Probabilities of each sample by a regression that learned from other samples of `X`, and from how many.

    From at most as many as are known of the training data: more would not be the ensemble's fault.
    """
    if case.novelty is None:
        return _Lacking("no X_train, and est does not know its size"), 0
    largest = len(case.novelty.distances)
    present, counts = np.unique(case.codes, return_counts=True)
    n_folds = min(_N_FOLDS, counts.min())
    if n_folds < 2:
        return _Lacking("no X_train, and fewer than two samples of a class in X"), 0
    parts = []
    for train, test in StratifiedKFold(int(n_folds), shuffle=True, random_state=0).split(case.codes, case.codes):
        if len(present) <= largest <= len(train) - len(present):
            train, _ = train_test_split(train, train_size=largest, stratify=case.codes[train], random_state=0)
        parts.append((train, test))
    features = case.features / case.features.std()
    with warnings.catch_warnings(action="ignore"):  # of convergence, and of classes that a part lacks
        candidates = [
            cross_val_predict(_regression(C=c), features, case.codes, cv=parts, method="predict_proba")
            for c in _STRENGTHS
        ]
    candidates = [_in_columns(proba, present, len(case.model.classes_)) for proba in candidates]
    return min(candidates, key=lambda proba: case.losses(proba).mean()), max(len(train) for train, _ in parts)


def _regression(**params):
    return LogisticRegression(max_iter=300, tol=1e-3, **params)  # roughly is enough for a comparison


def _in_columns(proba, codes, n_classes):
    """Spread columns of some classes over those of all; the others have probability 0."""
    result = np.zeros((len(proba), n_classes))
    result[:, codes] = proba
    return result


def _worse_than_reference(case):
    if case.reference is None:
        return _Lacking("no reference")
    theirs = _in_order_of(case.est.classes_, case.reference, case.X)
    remedy = "use the reference, or raise learning rates and max_steps if the training loss is high"
    return _worse(case, "the reference", theirs, remedy)


def _worse(case, rival, theirs, remedy):
    own_losses, their_losses = case.losses(case.proba), case.losses(theirs)
    nll, nll_low, nll_high = _interval(own_losses - their_losses)
    right = case.is_right(theirs)
    loss, loss_low, loss_high = _interval(right.astype(float) - case.right)
    text = (
        f"NLL {own_losses.mean():.3f} against {their_losses.mean():.3f} of {rival}, difference {nll:.3f} "
        f"({nll_low:.3f} to {nll_high:.3f}); accuracy {case.right.mean():.3f} against {right.mean():.3f}, difference "
        f"{-loss:.3f} ({-loss_high:.3f} to {-loss_low:.3f})"
    )
    case.measured["comparison"] = text
    case.rival = Rival(rival.rstrip(","), theirs, (nll, nll_low, nll_high))
    if (nll_low > 0 and nll >= _NLL_EXCESS) or (loss_low > 0 and loss >= _ACCURACY_LACK):
        return f"{text}; 95 % intervals, limits {_NLL_EXCESS:g} and {-_ACCURACY_LACK:g}", remedy
    return None


def _interval(values):
    """Mean of one value per sample, and the ends of its interval (95 %)."""
    mean, half = np.mean(values), 1.96 * np.std(values) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def _calibration_worse(case):
    if case.reference is None:
        return _Lacking("no reference")
    theirs = _in_order_of(case.est.classes_, case.reference, case.X)
    result = metrics.paired_bootstrap(
        metrics.expected_calibration_error,
        case.y,
        case.proba,
        theirs,
        labels=case.model.classes_,
        n_resamples=200,
        random_state=0,
    )
    if result.low <= 0 or result.estimate < _ECE_EXCESS:
        return None
    return (
        f"the ECE is larger than the reference's by {result.estimate:.3f} "
        f"(95 % interval {result.low:.3f} to {result.high:.3f})",
        f"{_calibrate(case)}; use more members",
    )


def _uncertainty_does_not_rise(case):
    if case.y is None:
        return _Lacking("no X and y")
    if min(case.right.sum(), (~case.right).sum()) < _FEW:
        return _Lacking(f"fewer than {_FEW} errors or right answers on X")
    total = uncertainty.predictive_entropy(case.members)
    auroc = metrics.ood_auroc(total[case.right], total[~case.right])
    if auroc >= _CHANCE:
        return None
    return (
        f"the total uncertainty distinguishes errors from right answers with an AUROC of {auroc:.3f} "
        f"(limit {_CHANCE:g}; 0.5 is chance)",
        "see that y belongs to X and labels are right; train with a smaller head_lr if the training loss is near 0, "
        "else longer",
    )


def _ood_near_half(case):
    if case.X_ood is None:
        return _Lacking("no X_ood")
    auroc = case.ood_auroc
    case.measured["foreign samples"] = "AUROC " + ", ".join(f"{value:.3f} by {name}" for name, value in auroc.items())
    if max(auroc.values()) >= _CHANCE:
        return None
    detected = ", ".join(f"{value:.3f} by the {name}" for name, value in auroc.items())
    return (
        f"foreign samples are detected with an AUROC of {detected} (limit {_CHANCE:g}; 0.5 is chance)",
        "see that X_ood is foreign: if it is much like X, nothing can distinguish them; else try another backbone",
    )


def _epistemic_inverted(case):
    if case.X_ood is None:
        return _Lacking("no X_ood")
    if len(case.members) == 1:
        return _Lacking("one member only")
    n_in, n_out = case.members.shape[1], case.members_ood.shape[1]
    auroc = case.ood_auroc["epistemic uncertainty"]
    # Standard deviation of the Mann-Whitney statistic of two equal distributions.
    limit = min(_INVERTED, 0.5 - 1.96 * np.sqrt((n_in + n_out + 1) / (12 * n_in * n_out)))
    if auroc >= limit:
        return None
    return (
        f"the epistemic uncertainty of foreign samples is lower than that of X, with an AUROC of {auroc:.3f} (limit "
        f"{limit:.3f})",
        "detect foreign samples by u.novelty, of SelectiveClassifier by max_novelty=0.95",
    )


# In the order in which to mend: what went wrong in training explains what is wrong in prediction.
_CHECKS: dict[str, Callable] = {
    "layer without gradient": _layer_without_gradient,
    "ratios ran away": _ratios_ran_away,
    "ratios hardly moved": _ratios_hardly_moved,
    "init_scale too large": _init_scale_too_large,
    "training stopped too early": _stopped_too_early,
    "members collapsed": _members_collapsed,
    "overconfident": _overconfident,
    "worse than logistic regression": _worse_than_regression,
    "worse than the reference": _worse_than_reference,
    "calibration worse than the reference": _calibration_worse,
    "uncertainty does not rise with error": _uncertainty_does_not_rise,
    "OOD score near one half": _ood_near_half,
    "epistemic uncertainty inverted": _epistemic_inverted,
}


def _in_order_of(classes, reference, X):
    """Probabilities of a model, with columns in the order of the classes."""
    classes, theirs = np.asarray(classes), np.asarray(reference.classes_)
    ours, others = set(classes.tolist()), set(theirs.tolist())
    if ours != others:
        parts = [("lacks", ours - others), ("adds", others - ours)]
        differs = " and ".join(f"{verb} {listed(sorted(map(repr, some)))}" for verb, some in parts if some)
        raise ValueError(f"reference must know the same classes as est, got one that {differs}.")
    order = [int(np.flatnonzero(theirs == label)[0]) for label in classes]
    return np.asarray(reference.predict_proba(X))[:, order]


def _rms(values):
    return float(np.sqrt(np.mean(values**2)))
