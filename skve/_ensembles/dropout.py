"""Monte Carlo dropout: one fine-tuned network whose members are passes with fixed masks."""

import numbers

import torch
from sklearn.utils._param_validation import Interval

from skve._ensembles import forms
from skve._ensembles.base import MASKS, WEIGHTS, n_inputs
from skve._ensembles.fine_tuning import FullFineTuning

_RATES = {"convolution": 0.01}  # by kind of layer, where no rate is given; 0.1 for the others
_COLOURS = 4  # layers with as few input channels read the image itself, of which nothing is dropped


class Dropout(FullFineTuning):
    """Monte Carlo dropout (arXiv 1506.02142): one full fine-tune, `n_members` passes.

    Input channels of the selected layers are dropped, and the rest is scaled by 1 / (1 - rate). In training each step
    draws anew for each row of the input's first axis: mostly a sample with all its positions, a window in windowed
    attention, a token where tokens are flattened (layers that are not plainly called draw once for all). A member is
    one draw, `W diag(mask) / (1 - rate)` with a mask of its own that stays: predictions repeat themselves, and
    depend neither on the batch nor on the number of members. The backbone's own dropout stays off.

    By default the rate is 0.1 for linear layers and 0.01 for convolutions: whole channels of all layers at 0.1 leave
    nothing of the features of EfficientNet-Lite0 behind its 33 layers.
    """

    set_apart = "raise the rate in ensemble_params"
    takes = {"rate": (None, [Interval(numbers.Real, 0, 1, closed="neither"), None])}
    selects_layers = True

    def __init__(self, backbone, sites, **settings):
        super().__init__(backbone, sites, **settings)
        self._training = False
        self._droppers: dict[str, _Dropper] = {}

    @classmethod
    def trained(cls, n_members):
        return range(1)

    def shares(self, key):
        return not key.startswith(MASKS)

    def new_member(self, generator):
        return self.new_copy(super().new_member(generator), generator)

    def shapes(self):
        weights = super().shapes()
        masks = {}
        for site in self.sites:
            axis = 0 if site.kind == "transposed" else 1
            masks[MASKS + site.layer] = (weights[WEIGHTS + site.parameter][axis],)
        return {**weights, **masks}

    def new_copy(self, member, generator):
        masks = {}
        for site in self.sites:
            weight = member[WEIGHTS + site.parameter]
            kept = self._draw((n_inputs(weight, site.kind),), site.kind, generator)
            masks[MASKS + site.layer] = kept.to(weight.device)
        return {**member, **masks}

    @classmethod
    def average(cls, arrays, options):
        """Return the network without masks, which the masked ones are unbiased draws of."""
        return super().average({key: value for key, value in arrays.items() if not key.startswith(MASKS)}, {})

    def _rate(self, kind, n_channels):
        if n_channels <= _COLOURS:
            return 0.0
        return self.options["rate"] or _RATES.get(kind, 0.1)

    def _draw(self, shape, kind, generator):
        """Draw which channels, the last axis of `shape`, are kept."""
        return torch.rand(shape, generator=generator, dtype=torch.float32) >= self._rate(kind, shape[-1])

    def prepare(self, network, traced, size, *, training):
        super().prepare(network, traced, size, training=training)
        for site in self.sites if training else ():
            plain = site.kind == "convolution" or network.calls_plainly(site.layer)
            if site.layer in traced.positions and plain:
                dropper = _Dropper(self, network.forward_of(site.layer), site.kind)
                network.set_forward(site.layer, dropper)
                self._droppers[site.layer] = dropper

    def install(self, network, member):
        super().install(network, member)
        for site in self.sites:
            weight = member[WEIGHTS + site.parameter]
            if self._training and site.layer in self._droppers:
                self._droppers[site.layer].factors = None
                continue
            mask = member[MASKS + site.layer]
            if self._training:
                mask = self._draw(mask.shape, site.kind, self.noise).to(mask.device)
            factors = mask / (1 - self._rate(site.kind, len(mask)))
            network.set_tensor(site.parameter, forms.scale_channels(weight, site.kind, inputs=factors))

    def set_training(self, network, mode):
        super().set_training(network, mode)
        self._training = mode

    def drop(self, inputs, kind, factors):
        """Return a layer's inputs with channels dropped while the network trains, and the factors that did it.

        The factors (length of the first axis, n_channels) are drawn where there are none; a checkpointed block asks
        twice.
        """
        if not self._training:
            return inputs, factors
        axis = 1 if kind == "convolution" else -1
        n, channels = inputs.shape[0], inputs.shape[axis]
        if factors is None or len(factors) != n:
            kept = self._draw((n, channels), kind, self.noise).to(inputs.device)
            factors = kept / (1 - self._rate(kind, channels))
        shape = [1] * inputs.dim()
        shape[0], shape[axis] = n, channels
        return inputs * factors.reshape(shape).to(inputs.dtype), factors


class _Dropper:
    """The forward of a layer in front of which channels are dropped, the same ones until the next installation."""

    def __init__(self, rule, forward, kind):
        self.rule, self.forward, self.kind, self.factors = rule, forward, kind, None

    def __call__(self, inputs):
        inputs, self.factors = self.rule.drop(inputs, self.kind, self.factors)
        return self.forward(inputs)
