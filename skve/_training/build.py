"""From a backbone and an estimator's parameters to the ensemble that is to be trained, and its state to be."""

import dataclasses
from typing import Any

import numpy as np

from skve._backbones import layer_selection
from skve._backbones.backbone import Backbone
from skve._backbones.trace import Trace, trace
from skve._ensembles import RULES, Ensemble, Head, MemberRule, is_trained, make_rule
from skve._fitted.state import READING, FittedState
from skve._inputs.pipeline import Pipeline
from skve._runtime.device import resolve_training_dtype, warn_if_emulated
from skve._runtime.memory import is_out_of_memory, shape_of
from skve._runtime.warnings import warn


@dataclasses.dataclass(frozen=True)
class Design:
    """What an estimator's parameters say about the ensemble; their meaning is documented there."""

    ensemble: str
    ensemble_params: dict[str, Any] | None
    n_members: int
    layers: Any
    init_scale: float
    train_bias: bool
    batch_size: int
    precision: str
    early_stopping: bool
    activation_checkpointing: bool


@dataclasses.dataclass(frozen=True)
class Selection:
    """Layers of a backbone that members change.

    Attributes
    ----------
    candidates : list of Site
        All that could be selected.
    sites : list of Site
        Those that are.
    skipped : dict of str to str
        Names of layers that cannot be selected, with the reason.
    """

    candidates: list
    sites: list
    skipped: dict


def new_ensemble(design, backbone, pipeline, n_classes, seeds, start=None, members=None):
    """Build the ensemble that is to be trained.

    Parameters
    ----------
    design : Design
    backbone : Backbone
        On the device of the fit.
    pipeline : Pipeline
        Of the training samples.
    n_classes : int
    seeds : Seeds
    start : FittedState, default=None
        Members to go on from.
    members : range, default=None
        Those that are built, where others train the rest; None for all.

    Returns
    -------
    ensemble : Ensemble
    plan : FittedState
        The state to be, without arrays.
    """
    selection = select_layers(design, backbone)
    rule, traced, selection = trace_layers(design, backbone, pipeline, selection)
    rule.noise = seeds.generator("noise")
    head = Head.on(backbone, traced.n_features, n_classes)
    plan = plan_state(design, rule, traced, head, seeds, start)
    built = make_members(design, rule, head, plan, seeds, start, n_samples=len(pipeline), only=members)
    return assemble(design, rule, head, built, traced, selection, pipeline), plan


def select_layers(design: Design, backbone: Backbone) -> Selection:
    """Choose the layers of which members own something, by their names."""
    candidates, skipped = layer_selection.find_sites(backbone.module)
    sites = []
    if RULES[design.ensemble].selects_layers:
        sites = layer_selection.select_sites(backbone.module, candidates, design.layers)
    return Selection(candidates, sites, skipped)


def trace_layers(
    design: Design, backbone: Backbone, pipeline: Pipeline, selection: Selection
) -> tuple[MemberRule, Trace, Selection]:
    """Pass two samples through the backbone; leave out the selected layers whose adaptation would have no effect."""
    few = np.arange(min(2, len(pipeline)))
    example, size = pipeline.prepare(pipeline.load(few), None), pipeline.size(few)

    def made_and_traced(sites):
        rule = make_rule(
            design.ensemble,
            backbone,
            sites,
            init_scale=design.init_scale,
            train_bias=design.train_bias,
            ensemble_params=design.ensemble_params,
        )
        rule.check(rule.n_members(design.n_members), design.early_stopping)
        return rule, _trace(backbone, rule, example, size)

    sites, skipped = selection.sites, dict(selection.skipped)
    rule, traced = made_and_traced(sites)
    unused = {site.layer: reason for site in sites if (reason := rule.reason_to_skip(site, traced))}
    if unused:
        skipped |= unused
        sites = [site for site in sites if site.layer not in unused]
        if not sites:
            raise ValueError(
                f"layers must select a layer that the backbone's features depend on, got {design.layers!r}, which "
                f"selects {list(unused)} ({'; '.join(dict.fromkeys(unused.values()))}). Choose others."
            )
        rule, traced = made_and_traced(sites)
    if sites and skipped and (design.layers == "all" or unused):
        reasons = "; ".join(
            f"{', '.join(name for name in skipped if skipped[name] == reason)} ({reason})"
            for reason in dict.fromkeys(skipped.values())
        )
        warn(f"These layers are not adapted: {reasons}.")
    return rule, traced, dataclasses.replace(selection, sites=sites, skipped=skipped)


def _trace(backbone, rule, example, size):
    try:
        return trace(backbone, rule.changed, example, size, rule.added)
    except (RuntimeError, AssertionError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"The backbone {backbone.description['name']!r} must take a batch of {shape_of(example)} and return "
            f"features, got the error: {error}."
        ) from error


def plan_state(design, rule, traced, head, seeds, start):
    """Return the state that the training will fill with arrays."""
    backbone = rule.backbone
    return FittedState(
        arrays={},
        layers=tuple(site.layer for site in rule.sites),
        fingerprints=rule.fingerprints(),
        ensemble=design.ensemble,
        ensemble_params=dict(design.ensemble_params or {}),
        train_bias=design.train_bias,
        batch_size=design.batch_size,
        n_features=head.n_features,
        n_classes=head.likelihood.n_classes,
        positions=traced.positions,
        shareable=tuple(traced.shareable),
        normalised=traced.normalised,
        backbone=dict(backbone.description),
        split_seed=seeds.generator("split").initial_seed(),
        reading={name: backbone.preprocess.get(name) for name in READING},
        n_epochs=0 if start is None else start.n_epochs,
    )


def make_members(design, rule, head, plan, seeds, start, *, n_samples, only=None):
    """Return the members as they start, or as an earlier fit has left them: dicts of tensors.

    `only` is the range of the members to train, of a rule that trains each of them; None is all.
    """
    n_members = rule.n_members(design.n_members)
    if start is not None:
        earlier = _earlier_members(start, plan, rule, n_members)
        return earlier if only is None else [earlier[index] for index in only]
    _warn_of_equal_members(rule, n_members, n_samples, design.batch_size)
    generators = [seeds.generator("member", index) for index in range(n_members)]
    if only is not None:
        return [_new_member(rule, head, generators[index]) for index in only]
    members: list = [None] * n_members
    for index, generator in zip(rule.trained(n_members), generators, strict=False):
        members[index] = _new_member(rule, head, generator)
    for index, member in enumerate(members):
        if member is None:
            members[index] = rule.new_copy(members[rule.trained(n_members)[0]], generators[index])
    return members


def _new_member(rule, head, generator):
    new_head = head.new_member(generator, rule.backbone.device, rule.backbone.head_start)
    return {**new_head, **rule.new_member(generator)}


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
            f"All {n_members} members start alike and see the same batches: they will be identical, without "
            f"epistemic uncertainty. Set {' and '.join(remedies)}, or bootstrap=True."
        )


def _earlier_members(start, plan, rule, n_members):
    """Return the members of an earlier fit, if the estimator still describes them."""
    same = ("ensemble", "ensemble_params", "layers", "train_bias", "n_features", "n_classes")
    compared = [(name, getattr(start, name), getattr(plan, name)) for name in same]
    compared.append(("n_members", start.n_members, n_members))
    compared += [(name, start.reading.get(name), value) for name, value in plan.reading.items()]
    for name, before, now in compared:
        if before != now:
            raise ValueError(
                f"{name} must stay {before!r} if a fit continues the previous one, got {now!r}. Set "
                f"warm_start=False or use a clone."
            )
    if start.backbone["sha256"] != plan.backbone["sha256"]:
        raise ValueError(
            "The backbone must have the same weights if a fit continues the previous one, got other ones. Set "
            "warm_start=False or use a clone."
        )
    members = start.members(rule.backbone)
    trained = rule.trained(n_members)
    shared = {key: tensor for key, tensor in members[trained[0]].items() if is_trained(key)}
    return [member if index in trained else {**member, **shared} for index, member in enumerate(members)]


def assemble(design, rule, head, members, traced, selection, pipeline):
    """Return the ensemble, in the arithmetic of the training."""
    backbone, candidates = rule.backbone, selection.candidates
    dtype = resolve_training_dtype(design.precision, backbone.device, linear_share(backbone, candidates))
    warn_if_emulated("precision", design.precision, backbone.device)
    checkpoints = layer_selection.blocks(backbone.module, candidates) if design.activation_checkpointing else ()
    if design.activation_checkpointing and not checkpoints:
        warn(
            f"activation_checkpointing=True has no effect: the backbone {backbone.description['name']!r} has no "
            f"numbered blocks (modules in a ModuleList or Sequential with two weights or more)."
        )
    size = min(design.batch_size, len(pipeline)) * pipeline.mean_size
    return Ensemble(rule, head, members, traced, size, training=True, dtype=dtype, checkpoints=checkpoints)


def linear_share(backbone, candidates):
    """Return the share of linear layers in the candidates' weights."""
    sizes = {site.layer: backbone.weight(site).numel() for site in candidates}
    linear = sum(sizes[site.layer] for site in candidates if site.kind != "convolution")
    return linear / max(1, sum(sizes.values()))
