"""From a backbone and an estimator's parameters to the ensemble that is to be trained."""

import numpy as np
import torch

from skve._backbones import layer_selection
from skve._backbones.trace import trace
from skve._ensembles import RULES, Ensemble, Head, is_trained, make_rule
from skve._fitted.state import READING, FittedState
from skve._runtime.device import resolve_training_dtype
from skve._runtime.memory import is_out_of_memory, shape_of
from skve._runtime.warnings import warn


def new_ensemble(
    backbone,
    pipeline,
    n_classes,
    seeds,
    start,
    *,
    ensemble,
    ensemble_params,
    n_members,
    layers,
    init_scale,
    train_bias,
    batch_size,
    precision,
    early_stopping=False,
    checkpointing=False,
):
    """Build the ensemble that is to be trained.

    Parameters
    ----------
    backbone : Backbone
        On the device of the fit.
    pipeline : object
        Supplies a few inputs for the trace, and sizes.
    n_classes : int
    seeds : Seeds
    start : FittedState or None
        Members to go on from.
    n_members : int
        As the estimator has it; some ensembles have one member always.

    Returns
    -------
    ensemble : Ensemble
    plan : FittedState
        The state to be, without arrays.
    """
    candidates, skipped = layer_selection.find_sites(backbone.module)
    selects = RULES[ensemble].selects_layers
    sites = layer_selection.select_sites(backbone.module, candidates, layers) if selects else []
    few = np.arange(min(2, len(pipeline)))
    example, size = pipeline.prepare(pipeline.load(few), None), pipeline.size(few)

    def rule_for(sites):
        return make_rule(
            ensemble,
            backbone,
            sites,
            init_scale=init_scale,
            train_bias=train_bias,
            ensemble_params=ensemble_params,
        )

    rule = rule_for(sites)
    n_members = rule.n_members(n_members)
    rule.check(n_members, early_stopping)
    try:
        traced = trace(backbone, rule.changed, example, size, rule.added)
    except (RuntimeError, AssertionError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the backbone {backbone.description['name']!r} cannot compute features of a batch "
            f"({shape_of(example)}): {error}; it must take such a batch and return features"
        ) from error
    if selects:
        unused = [site.layer for site in sites if rule.main_parameter(site) not in traced.used]
        if unused:
            skipped |= dict.fromkeys(unused, "the features do not depend on it")
            sites = [site for site in sites if site.layer not in unused]
            if not sites:
                raise ValueError(f"layers={layers!r}: the backbone's features depend on none of {unused}")
            rule = rule_for(sites)
            traced = trace(backbone, rule.changed, example, size, rule.added)
        if skipped and (layers == "all" or unused):
            reasons = "; ".join(
                f"{', '.join(name for name in skipped if skipped[name] == reason)} ({reason})"
                for reason in dict.fromkeys(skipped.values())
            )
            warn(f"these layers are left as they are: {reasons}")
    head = Head(traced.n_features, n_classes, backbone.preprocess.get("softcap"))
    device = backbone.device
    linear = {site.layer for site in candidates if site.kind != "convolution"}
    sizes = [(site.layer in linear, backbone.module.get_parameter(site.parameter).numel()) for site in candidates]
    linear_share = sum(size for is_linear, size in sizes if is_linear) / max(1, sum(size for _, size in sizes))
    plan = FittedState(
        arrays={},
        layers=tuple(site.layer for site in sites),
        fingerprints=rule.fingerprints(),
        ensemble=ensemble,
        ensemble_params=dict(ensemble_params or {}),
        train_bias=train_bias,
        batch_size=batch_size,
        n_features=traced.n_features,
        n_classes=n_classes,
        positions=traced.positions,
        shareable=tuple(traced.shareable),
        backbone=dict(backbone.description),
        split_seed=seeds.generator("split").initial_seed(),
        reading={name: backbone.preprocess.get(name) for name in READING},
        n_epochs=0 if start is None else start.n_epochs,
    )
    rule.noise = seeds.generator("noise")
    if start is None:
        members = _new_members(rule, head, n_members, seeds, device, backbone.head_start)
        _warn_of_equal_members(rule, n_members, len(pipeline), batch_size)
    else:
        members = _go_on(start, plan, rule, n_members, device)
    dtype = resolve_training_dtype(precision, device, linear_share)
    if dtype == torch.float16 and device.type == "cpu":
        warn("precision='float16' is many times slower than 'float32' on CPUs; set precision='auto'")
    size = min(batch_size, len(pipeline)) * pipeline.mean_size
    checkpoints = layer_selection.blocks(backbone.module, candidates) if checkpointing else ()
    if checkpointing and not checkpoints:
        warn(
            f"activation_checkpointing=True changes nothing: the backbone {backbone.description['name']!r} has no "
            f"numbered blocks (modules in a ModuleList or Sequential with two weights or more)"
        )
    network = Ensemble(rule, head, members, traced, size, training=True, dtype=dtype, checkpoints=checkpoints)
    return network, plan


def _new_members(rule, head, n_members, seeds, device, head_start):
    generators = [seeds.generator("member", index) for index in range(n_members)]
    members: list = [None] * n_members
    for index, generator in zip(rule.trained(n_members), generators, strict=False):
        start = head.new_member(generator, device, head_start)
        members[index] = {**start, **rule.new_member(generator)}
    for index, member in enumerate(members):
        if member is None:
            members[index] = rule.new_copy(members[rule.trained(n_members)[0]], generators[index])
    return members


def _warn_of_equal_members(rule, n_members, n_samples, batch_size):
    """Warn where neither the members' start nor their batches set them apart."""
    if len(rule.trained(n_members)) == 1 or not rule.starts_alike or rule.options["bootstrap"]:
        return
    remedies = []
    if rule.order == "shared":
        remedies.append("order='own' (and no diversity) in ensemble_params")
    if n_samples <= batch_size:
        remedies.append(f"a batch_size below the {n_samples} samples, which are one batch")
    if remedies:
        warn(
            f"all {n_members} members start alike and see the same batches: they will be one and the same, without "
            f"epistemic uncertainty; set {' and '.join(remedies)}, or bootstrap=True"
        )


def _go_on(start, plan, rule, n_members, device):
    """Return the members of an earlier fit, if the estimator still describes them."""
    for name in ("ensemble", "ensemble_params", "layers", "train_bias", "n_features", "n_classes"):
        if getattr(start, name) != getattr(plan, name):
            raise ValueError(
                f"the fit cannot go on from the last one: {name} was {getattr(start, name)!r} "
                f"and is {getattr(plan, name)!r} now; set warm_start=False or use a clone"
            )
    if start.n_members != n_members:
        raise ValueError(
            f"the fit cannot go on from the last one: it had {start.n_members} members, n_members={n_members} now"
        )
    if start.backbone["sha256"] != plan.backbone["sha256"]:
        raise ValueError("the fit cannot go on from the last one: the backbone's weights are others")
    for name, value in plan.reading.items():
        if start.reading.get(name) != value:
            raise ValueError(
                f"the fit cannot go on from the last one: its {name} was {start.reading.get(name)!r} and is "
                f"{value!r} now; set warm_start=False or use a clone"
            )
    members = start.members(device)
    trained = rule.trained(n_members)
    shared = {key: tensor for key, tensor in members[trained[0]].items() if is_trained(key)}
    return [member if index in trained else {**member, **shared} for index, member in enumerate(members)]
