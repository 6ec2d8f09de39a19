"""The known failures of a singular value ensemble: found by their evidence, told with a remedy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skve import metrics, uncertainty
from skve.metrics._inputs import check_known
from skve.uncertainty._wrappers import unwrap

# Limits between healthy and ill; healthy figures in brackets are of SVEClassifier on Fashion-MNIST.
_COLLAPSED = 1e-3  # epistemic share of the total uncertainty [0.24]; distance of members' log ratios
_NO_GRADIENT = 1e-6  # largest gradient norm, as a share of the median layer's [0.5]
_HARDLY_MOVED = 1.2  # root mean square of the log ratios, in units of init_scale [28]
_RAN_AWAY = 1.0  # root mean square of a layer's log ratios [0.34]
_LARGE_INIT = 0.05  # init_scale [0.01]
_SHORTFALL = 0.05  # accuracy that members may lack against the ensemble or the reference [0.03]
_CHANCE = 0.6  # AUROC of telling errors [0.88] or foreign samples [0.81]
_ECE_EXCESS = 0.01  # ECE above the reference's
_FEW = 10  # errors (and right answers) below which nothing is said about ranking them


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
        The failures, in the order in which to mend them.
    checked : list of str
        Names of the failures that were looked for.
    skipped : dict of {str: str}
        Names of those that were not, and what was lacking.
    """

    findings: list[Finding]
    checked: list[str]
    skipped: dict[str, str]

    def __len__(self):
        return len(self.findings)

    def __iter__(self):
        return iter(self.findings)

    def __contains__(self, name):
        return any(finding.name == name for finding in self.findings)

    def __str__(self):
        head = f"{len(self.findings)} of {len(self.checked)} known failures found."
        lines = [head, *(str(finding) for finding in self.findings)]
        lines += [f"not looked for: {name} ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(
    est: Any, X: Any = None, y: ArrayLike | None = None, *, X_ood: Any = None, reference: Any = None
) -> Diagnosis:
    """Look for the known failures of an ensemble, and say what to do about each.

    Without data, training and singular values are looked at; with samples, the members' diversity; with
    classes, accuracy and whether the uncertainty rises with error; with foreign samples or a reference model,
    more.

    Parameters
    ----------
    est : fitted ensemble
        Such as :class:`skve.SVEClassifier`, or a pipeline, search, frozen estimator or single calibration
        around one.
    X : array-like or list of length n_samples, default=None
        Samples the ensemble was not trained on; a few hundred or more.
    y : array-like of shape (n_samples,), default=None
        Their classes.
    X_ood : array-like or list of length n_out, default=None
        Foreign samples.
    reference : fitted classifier, default=None
        A model to compare with on ``X`` and ``y``, for instance a single fine-tuned one.

    Returns
    -------
    Diagnosis
        Holds a ``Finding`` (``name``, ``evidence``, ``remedy``) for each of these that is the case:

        - ``"layer without gradient"``: a layer never received a gradient.
        - ``"ratios hardly moved"``: the singular values, or the factors of channels, stayed where they were drawn.
        - ``"ratios ran away"``: those of a layer changed by a factor, not by a share.
        - ``"init_scale too large"``: above 0.05, and the members are not accurate.
        - ``"members collapsed"``: the members say the same, so there is no epistemic uncertainty.
        - ``"calibration worse than the reference"``: the ECE is larger by 0.01 or more, and by more than
          chance (paired bootstrap, 95 %).
        - ``"uncertainty does not rise with error"``: the total uncertainty does not tell errors (AUROC below
          0.6).
        - ``"OOD score near one half"``: neither total nor epistemic uncertainty tells ``X_ood`` from ``X``
          (AUROC below 0.6).

    Raises
    ------
    ValueError
        If ``y``, ``X_ood`` or ``reference`` is given without the data that it needs, or ``est`` holds several
        fitted models.
    TypeError
        If ``est`` is no ensemble.
    sklearn.exceptions.NotFittedError
        If ``est`` is not fitted.

    Notes
    -----
    The limits are rules of thumb. A finding is a reason to look, no proof; no finding is no warranty.

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
      remedy:   raise member_lr or max_epochs, and see that init_scale is not 0
    """
    if y is not None and X is None:
        raise ValueError("y is given without X: pass the samples too.")
    if X_ood is not None and X is None:
        raise ValueError("X_ood is given without X: pass samples of the training kind to compare with.")
    if reference is not None and y is None:
        raise ValueError("reference is given without y: pass X and y to compare on.")
    model, model_X, _ = unwrap(est, X, "predict_proba_members")
    case = _Case(est, model, X, y, X_ood, reference)
    if X is not None:
        case.members = np.asarray(model.predict_proba_members(model_X))
        if case.members.shape[1] == 0:
            raise ValueError("X has no samples: at least one is wanted.")
        if y is not None:
            case.y = check_known(y, model.classes_, case.members.shape[1], classes_name="est.classes_")
            case.proba = np.asarray(est.predict_proba(X))
            case.right = case.is_right(case.proba)
            case.member_accuracy = float(np.mean([case.is_right(proba).mean() for proba in case.members]))
    findings, checked, skipped = [], [], {}
    for name, check in _CHECKS.items():
        result = check(case)
        if isinstance(result, _Lacking):
            skipped[name] = result.what
            continue
        checked.append(name)
        if result is not None:
            findings.append(Finding(name, *result))
    return Diagnosis(findings, checked, skipped)


@dataclass
class _Case:
    """What is known about the model, computed once."""

    est: Any
    model: Any
    X: Any
    y: Any
    X_ood: Any
    reference: Any
    members: np.ndarray | None = None
    proba: np.ndarray | None = None
    right: np.ndarray | None = None
    member_accuracy: float = float("nan")
    logs: dict = field(default_factory=dict)

    def __post_init__(self):
        from skve._ensembles import RULES  # torch, which metrics and plots do without

        ratios = getattr(self.model, "ratios_", None) or {}
        with np.errstate(invalid="ignore", divide="ignore"):  # a ratio that ran away may be 0 or NaN
            self.logs = {layer: np.log(np.asarray(values, float)) for layer, values in ratios.items()}
        params: dict = self.model.get_params() if hasattr(self.model, "get_params") else {}
        self.rule = RULES.get(params.get("ensemble", "sve"), RULES["sve"])
        self.init_scale = params.get("init_scale") if self.rule.has_ratios else None
        self.gradient_norm = (getattr(self.model, "history_", None) or {}).get("gradient_norm") or {}

    def is_right(self, proba):
        return self.model.classes_[proba.argmax(axis=1)] == self.y


@dataclass(frozen=True)
class _Lacking:
    what: str


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
        f"the gradient was zero or not finite throughout for {_some(dead)} ({len(dead)} of {len(largest)} layers)",
        "leave these layers out with layers=, or see why the backbone does not use their weights",
    )


def _ratios_hardly_moved(case):
    if not case.logs or not case.init_scale:
        return _Lacking("no ratios_ or no init_scale")
    moved = _rms(np.concatenate([values.ravel() for values in case.logs.values()]))
    # Ratios drawn too far from 1 are a failure of their own, and cannot be told from ratios that moved.
    if case.init_scale > _LARGE_INIT or not moved < _HARDLY_MOVED * case.init_scale:
        return None
    return (
        f"the log ratios are {moved:.2g} (root mean square), and were drawn with "
        f"init_scale={case.init_scale:g} (limit {_HARDLY_MOVED:g} times that)",
        "raise member_lr (1e-2 to 5e-2 is usual) or max_epochs",
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
        f"the log ratios of {_some(gone)} have a root mean square above {_RAN_AWAY:g}; {worst} has "
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
        "calibrate the temperature on validation data, raise learning rates or max_epochs if the training loss "
        "is still high, or use more members",
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
        f"the total uncertainty tells errors from right answers with an AUROC of {auroc:.3f} "
        f"(limit {_CHANCE:g}; 0.5 is chance)",
        "see that y belongs to X and labels are right; train longer, or with a smaller head_lr if the "
        "training loss is near 0",
    )


def _ood_near_half(case):
    if case.X_ood is None:
        return _Lacking("no X_ood")
    _, model_X_ood, _ = unwrap(case.est, case.X_ood, "predict_proba_members")
    foreign = np.asarray(case.model.predict_proba_members(model_X_ood))
    auroc = {
        name: metrics.ood_auroc(measure(case.members), measure(foreign))
        for name, measure in (
            ("total", uncertainty.predictive_entropy),
            ("epistemic", uncertainty.mutual_information),
        )
    }
    if max(auroc.values()) >= _CHANCE:
        return None
    return (
        f"foreign samples are told with an AUROC of {auroc['total']:.3f} by the total and "
        f"{auroc['epistemic']:.3f} by the epistemic uncertainty (limit {_CHANCE:g}; 0.5 is chance)",
        "use more members, or train longer; if X_ood is much like X, no uncertainty can tell it",
    )


# In the order in which to mend: what went wrong in training explains what is wrong in prediction.
_CHECKS: dict[str, Callable] = {
    "layer without gradient": _layer_without_gradient,
    "ratios ran away": _ratios_ran_away,
    "ratios hardly moved": _ratios_hardly_moved,
    "init_scale too large": _init_scale_too_large,
    "members collapsed": _members_collapsed,
    "calibration worse than the reference": _calibration_worse,
    "uncertainty does not rise with error": _uncertainty_does_not_rise,
    "OOD score near one half": _ood_near_half,
}


def _in_order_of(classes, reference, X):
    """Probabilities of a model, with columns in the order of the classes."""
    classes, theirs = np.asarray(classes), np.asarray(reference.classes_)
    if set(classes.tolist()) != set(theirs.tolist()):
        raise ValueError(f"reference must know the classes of est, {classes.tolist()}, got {theirs.tolist()}.")
    order = [int(np.flatnonzero(theirs == label)[0]) for label in classes]
    return np.asarray(reference.predict_proba(X))[:, order]


def _rms(values):
    return float(np.sqrt(np.mean(values**2)))


def _some(layers, n=3):
    return ", ".join(layers[:n]) + (f" and {len(layers) - n} more" if len(layers) > n else "")
