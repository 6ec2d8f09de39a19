"""From an ensemble to a student: heads on the average of the members' bodies, which predict what the members do."""

import dataclasses

import numpy as np

from skve._ensembles import HEAD, RULES
from skve._training.solve import soft_heads


def average(state):
    """Return the state of a student that has learned nothing yet: the members' heads on the average of their bodies.

    Parameters
    ----------
    state : FittedState
        Of the ensemble.

    Returns
    -------
    FittedState

    Raises
    ------
    ValueError
        If the members pass through one network already, or there is nothing in the middle of them.
    """
    rule = RULES[state.ensemble]
    if state.heads_only or state.n_members == 1:
        what = f"{state.n_members} heads on one network" if state.heads_only else "one member"
        raise ValueError(
            f"distill requires an ensemble of several networks, got {what} (ensemble={state.ensemble!r}), which "
            f"predict in one pass already. Use the estimator as it is."
        )
    own = {key: value for key, value in state.arrays.items() if not key.startswith(HEAD)}
    body, options = rule.average(own, state.ensemble_params)
    heads = {
        key: np.repeat(value, state.n_members // len(value), axis=0)
        for key, value in state.arrays.items()
        if key.startswith(HEAD)
    }
    ensemble = rule.student or state.ensemble
    of_layers: dict = {} if RULES[ensemble].selects_layers else {"layers": (), "fingerprints": {}}
    return dataclasses.replace(
        state, arrays={**body, **heads}, ensemble=ensemble, ensemble_params=options, **of_layers
    )


def learn(student, backbone, features, members, regression, impossible, fold_seed):
    """Return the state of a student whose heads predict what the members do, and its regression what theirs does.

    The body stays the average, and heads on its features are solved, drawn towards the members' own: on the data sets
    of docs/benchmarks.md this is nearer to the ensemble than training body and heads by steps, and takes seconds.

    Parameters
    ----------
    student : FittedState
        From `average`.
    backbone : Backbone
    features : ndarray of shape (n_samples, n_features)
        Of the student's body.
    members : ndarray of shape (n_members, n_samples, n_classes)
        Probabilities by the members.
    regression : ndarray of shape (n_samples, n_classes), or None
        Those by the regression that predictions are blended with.
    impossible : ndarray of bool, shape (n_samples, n_classes), or None
        See `Pipeline`.
    fold_seed : int
        Decides on the folds of the cross-validation.
    """
    likelihood = student.head_on(backbone).likelihood

    def solved(targets, starts):
        heads = soft_heads(likelihood, features, targets, starts, impossible, fold_seed)
        return dict(zip(("weight", "bias"), map(np.stack, zip(*heads, strict=True)), strict=True))

    own = [tuple(student.arrays[HEAD + name][m] for name in ("weight", "bias")) for m in range(student.n_members)]
    arrays = {**student.arrays, **{HEAD + name: values for name, values in solved(members, own).items()}}
    blended = {}
    if regression is not None:  # that on the frozen backbone's features would be no start for others
        start = backbone.head_start or (np.zeros_like(own[0][0]), np.zeros_like(own[0][1]))
        blended = {name: values[0] for name, values in solved(regression[None], [start]).items()}
    return dataclasses.replace(
        student, arrays=arrays, regression={**student.regression, **blended}, own_features=True
    )
