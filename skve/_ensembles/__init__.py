"""The member rules, one a file: which parameters members have, how they start, and how they enter the network."""

from sklearn.utils._param_validation import validate_parameter_constraints

from skve._backbones.quantized import BITS
from skve._ensembles.base import BIASES, FACTORS, HEAD, MASKS, WEIGHTS, Defaults, MemberRule, is_trained, place
from skve._ensembles.dropout import Dropout
from skve._ensembles.ensemble import BATCHES_PER_INSTALLATION, Ensemble, Head
from skve._ensembles.fine_tuning import FullFineTuning, SingleFineTuning
from skve._ensembles.hybrid import SingularValuesAndPairs
from skve._ensembles.laplace import Laplace
from skve._ensembles.likelihood import Likelihood
from skve._ensembles.linear_heads import LinearHeads
from skve._ensembles.low_rank import LowRank
from skve._ensembles.scaling import BatchEnsemble, Biases, ChannelScales
from skve._ensembles.singular_values import SingularValues
from skve._ensembles.snapshots import Snapshots

__all__ = [
    "BATCHES_PER_INSTALLATION",
    "BIASES",
    "FACTORS",
    "HEAD",
    "MASKS",
    "RULES",
    "WEIGHTS",
    "BatchEnsemble",
    "Biases",
    "ChannelScales",
    "Defaults",
    "Dropout",
    "Ensemble",
    "FullFineTuning",
    "Head",
    "Laplace",
    "Likelihood",
    "LinearHeads",
    "LowRank",
    "MemberRule",
    "SingleFineTuning",
    "SingularValues",
    "SingularValuesAndPairs",
    "Snapshots",
    "check_dtype",
    "check_options",
    "is_trained",
    "make_rule",
    "place",
]

RULES: dict[str, type[MemberRule]] = {
    "sve": SingularValues,
    "sve+lora": SingularValuesAndPairs,
    "scale": ChannelScales,
    "bias": Biases,
    "lora": LowRank,
    "batch": BatchEnsemble,
    "dropout": Dropout,
    "snapshot": Snapshots,
    "single": SingleFineTuning,
    "deep": FullFineTuning,
    "head": LinearHeads,
    "laplace": Laplace,
}


def check_options(ensemble, ensemble_params):
    """Return the options of an ensemble as a dict.

    Raises
    ------
    ValueError
        If `ensemble_params` has an option that the rule does not take, or a value that the option does not.
    """
    takes = RULES[ensemble].takes
    options = dict(ensemble_params or {})
    unknown = sorted(set(options) - set(takes), key=str)
    if unknown:
        known = f"must be among {sorted(takes)}" if takes else "must be empty"
        raise ValueError(f"The options in ensemble_params of ensemble={ensemble!r} {known}, got {unknown}.")
    constraints = {name: allowed for name, (_, allowed) in takes.items()}
    validate_parameter_constraints(constraints, options, f"ensemble_params of ensemble={ensemble!r}")
    return options


def check_dtype(ensemble, backbone_dtype):
    """Raise ValueError if members of an ensemble own the backbone's weights, and these would be kept in few bits."""
    if RULES[ensemble].owns_weights and backbone_dtype in BITS:
        others = [name for name, rule in RULES.items() if not rule.owns_weights]
        raise ValueError(
            f"backbone_dtype must be a float type for ensemble={ensemble!r}, whose members train all weights of the "
            f"backbone, got {backbone_dtype!r}. Quantised weights stay as they are: use one of {others}."
        )


def make_rule(ensemble, backbone, sites, *, init_scale, train_bias, ensemble_params):
    """Make the member rule that `ensemble` names; raises as `check_options`."""
    options = check_options(ensemble, ensemble_params)
    return RULES[ensemble](backbone, sites, init_scale=init_scale, train_bias=train_bias, **options)
