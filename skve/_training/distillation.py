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


def learn(student, likelihood, features, targets, impossible, fold_seed):
    """Return the state of a student whose heads predict what the members do, and its regression what theirs does.

    The body stays the average, and heads on its features are solved, drawn towards the members' own: on the data sets
    of docs/benchmarks.md this is nearer to the ensemble than training body and heads by steps, and takes seconds.

    Parameters
    ----------
    student : FittedState
        From `average`.
    likelihood : Likelihood
    features : ndarray of shape (n_samples, n_features)
        Of its body.
    targets : ndarray of shape (n_members, n_samples, n_classes), or (n_members + 1, ...)
        Probabilities by the members and, where predictions are blended with it, the regression.
    impossible : ndarray of bool, shape (n_samples, n_classes), or None
        See `Pipeline`.
    fold_seed : int
        Decides on the folds of the cross-validation.
    """
    own = [(student.arrays[HEAD + "weight"][m], student.arrays[HEAD + "bias"][m]) for m in range(student.n_members)]
    if student.regression:
        own.append((student.regression["weight"], student.regression["bias"]))
    heads = soft_heads(likelihood, features, targets, own, impossible, fold_seed)
    weights, biases = (np.stack(parts) for parts in zip(*heads, strict=True))
    n_members, regression = student.n_members, {}
    if student.regression:
        regression = {**student.regression, "weight": weights[n_members], "bias": biases[n_members]}
    arrays = {**student.arrays, HEAD + "weight": weights[:n_members], HEAD + "bias": biases[:n_members]}
    return dataclasses.replace(student, arrays=arrays, regression=regression, own_features=True)
