"""What a fitted estimator predicts with, prepared once in a process."""

import contextlib
import copy
import dataclasses
import math

import torch

from skve._backbones import layer_selection
from skve._backbones.cache import cache_limit, keep_predictor, kept_predictor
from skve._backbones.network import Network
from skve._backbones.sources import spec_state
from skve._ensembles import BATCHES_PER_INSTALLATION, Ensemble
from skve._runtime.device import resolve_prediction_dtype, warn_if_emulated
from skve._runtime.locks import cached_property, new_lock

_building = new_lock()


def predictor_for(state, preprocess, load, devices, precision):
    """Return the predictor of a fitted state, prepared at the first call for devices and a precision.

    It is kept beside the backbones, see `skve.clear_cache`, while the state lives; a new fit has a new state, and
    pickles and saved models are without it.

    Parameters
    ----------
    state : FittedState
    preprocess : dict
        Plain values, of which a change is a reason to load the backbone again.
    load : callable
        `load()` returns the backbone.
    devices : tuple of torch.device
    precision : str
        See `resolve_prediction_dtype`.

    Returns
    -------
    Predictor
    """
    key = (str(devices), precision)
    source = (spec_state(state.spec), preprocess)
    predictor = kept_predictor(state, key)
    if predictor is None or predictor.source != source:
        with _building:  # not the lock of the cache: who finds what is kept does not wait
            predictor = kept_predictor(state, key)
            if predictor is None or predictor.source != source:
                backbone = load().on(*devices)
                state.check(backbone)
                predictor = Predictor(state, backbone, precision, copy.deepcopy(source))
                keep_predictor(state, key, predictor)
    return predictor


class Predictor:
    """What a fitted state predicts with on one device and in one arithmetic.

    Parameters
    ----------
    state : FittedState
    backbone : Backbone
        On the device; the one that the state was fitted on.
    precision : str
        See `resolve_prediction_dtype`.
    source : object
        What shows whether the backbone has changed since.

    Attributes
    ----------
    dtype : torch.dtype
        Arithmetic of the members' networks; that of the frozen backbone is always its own.
    nbytes : int
        Memory of the members, and of their weights where they are kept, in bytes.
    """

    def __init__(self, state, backbone, precision, source):
        self.backbone, self.source = backbone, source
        # Without what is large, and without the state itself, whose end the predictor has to see.
        self._plan = dataclasses.replace(state, arrays={}, training={}, spec=None)
        self._members = state.members(backbone)
        weights = [backbone.weight(site) for site in layer_selection.find_sites(backbone.module)[0]]
        self.dtype = resolve_prediction_dtype(precision, backbone.device, weights)
        warn_if_emulated("predict_precision", precision, backbone.device)
        changed = self._plan.rule_on(backbone).changed
        n_bodies = 1 if state.heads_only else len(self._members)
        in_place = n_in_place(backbone.module, changed, state.normalised, weights, n_bodies, self.dtype)
        self.nbytes = sum({id(t): t.nbytes for member in self._members for t in member.values()}.values())
        self._kept: dict | None = None
        if backbone.nbytes + self.nbytes + in_place <= cache_limit():
            self._kept = {}
            self.nbytes += in_place
        self._idle: list[_Networks] = []

    @contextlib.contextmanager
    def lend(self, pipeline):
        """Lend the networks that predict the samples of `pipeline` to one thread.

        With `ensemble`, an `Ensemble`, and `frozen`, the `Network` of the backbone as it is.
        """
        if self._kept is None:  # the cheapest forms of the layers depend on the number of samples
            plan = self._plan
            yield self._networks(min(len(pipeline), plan.batch_size * BATCHES_PER_INSTALLATION) * pipeline.mean_size)
            return
        try:
            networks = self._idle.pop()
        except IndexError:
            networks = self._networks(math.inf)
        yield networks
        self._idle.append(networks)  # not after an exception, which may leave anything in them

    def _networks(self, size):
        plan, backbone = self._plan, self.backbone
        ensemble = Ensemble(
            plan.rule_on(backbone),
            plan.head_on(backbone),
            self._members,
            plan.traced,
            size,
            training=False,
            dtype=self.dtype,
            kept=self._kept,
        )
        return _Networks(ensemble, plan.shareable if self.dtype == torch.float32 else ())


def n_in_place(module, changed, normalised, weights, n_bodies, dtype):
    """Return the bytes of what is put in place of a module's weights and kept.

    For each body it is the parameters `changed`; for all of them together the convolutions that are `normalised`, and
    in narrow arithmetic all `weights`.
    """
    parameters = dict(module.named_parameters())
    n_changed = sum(weight.numel() for name, weight in parameters.items() if name in set(changed))
    same = [name for layer in normalised.values() if (name := f"{layer}.weight") not in set(changed)]
    if dtype != torch.float32:
        n_same = sum(weight.numel() for weight in weights if isinstance(weight, torch.Tensor))
    else:
        n_same = sum(parameters[name].numel() for name in same if name in parameters)
    return dtype.itemsize * (n_changed * n_bodies + n_same)


class _Networks:
    def __init__(self, ensemble, shareable):
        self.ensemble, self._shareable = ensemble, shareable

    @cached_property
    def frozen(self):
        network = Network(self.ensemble.rule.backbone)
        network.share(self._shareable)
        return network
