"""Members that scale the channels of the adapted layers: one factor an input, or one an input and one an output."""

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import StrOptions

from skve._ensembles import forms
from skve._ensembles.base import (
    DIFFERENCES,
    INPUT_OFFSETS,
    OUTPUT_OFFSETS,
    SAME_START,
    SCALES,
    Defaults,
    LayerRule,
    draw,
    n_inputs,
)


class ChannelScales(LayerRule):
    """Log scales of each layer's input channels, `W diag(exp(delta))`: log ratios along the axes of the inputs.

    There are d_in of them, for convolutions one for each channel, at all positions of the kernel alike.
    """

    defaults = {"image": Defaults(5e-2, 1e-2, 30.0), "text": Defaults(1e-2, 1e-2, 3.0, folds=4)}
    has_ratios = True
    prefixes = (SCALES,)

    def new_layer(self, site, weight, generator):
        return {SCALES: draw(n_inputs(weight, site.kind), generator, self.init_scale)}

    def fold(self, site, weight, own):
        return forms.scale_channels(weight, site.kind, inputs=torch.exp(own[SCALES]))

    def calls(self, shape, n_positions, training):
        return training  # the frozen weight needs no gradient

    def call(self, site, inputs, weight, own, bias):
        return F.linear(inputs * torch.exp(own[SCALES]).to(inputs.dtype), weight, bias)


class BatchEnsemble(LayerRule):
    """BatchEnsemble (arXiv 2002.06715): a vector r of the inputs and s of the outputs, `(W (x * r)) * s`.

    They are kept as offsets from 1, so that weight decay pulls toward the pretrained weights. `init="normal"` draws
    them from N(1, init_scale^2), `init="signs"` from {-1, 1}, as the paper does for networks that start untrained.
    Unlike the paper's, W stays as it was pretrained, and every member sees the whole batch instead of its own part.
    """

    defaults = {"image": Defaults(1e-2, 1e-2, 30.0), "text": Defaults(3e-3, 1e-2, 3.0, folds=4)}
    prefixes = (INPUT_OFFSETS, OUTPUT_OFFSETS)
    takes = {**DIFFERENCES, "init": ("normal", [StrOptions({"normal", "signs"})])}

    @property
    def draws_start(self):
        return self.options["init"] == "signs" or super().draws_start

    def new_layer(self, site, weight, generator):
        d_in = n_inputs(weight, site.kind)
        d_out = weight.numel() // weight.shape[0] if site.kind == "transposed" else weight.shape[0]
        return {INPUT_OFFSETS: self._offsets(d_in, generator), OUTPUT_OFFSETS: self._offsets(d_out, generator)}

    @classmethod
    def average(cls, arrays, options):
        if options.get("init") == "signs":
            raise ValueError(
                "init in ensemble_params must be 'normal' for distill, got 'signs', with which members are far from "
                "one another and nothing lies in the middle. Fit with init='normal'."
            )
        return super().average(arrays, options)

    def _offsets(self, n, generator):
        if self.options["init"] == "normal":
            return draw(n, generator, self.init_scale)
        return -2.0 * torch.randint(2, (n,), generator=generator).float()

    def fold(self, site, weight, own):
        inputs, outputs = 1 + own[INPUT_OFFSETS], 1 + own[OUTPUT_OFFSETS]
        return forms.scale_channels(weight, site.kind, inputs=inputs, outputs=outputs)

    def calls(self, shape, n_positions, training):
        return training

    def call(self, site, inputs, weight, own, bias):
        scaled = F.linear(inputs * (1 + own[INPUT_OFFSETS]).to(inputs.dtype), weight)
        scaled = scaled * (1 + own[OUTPUT_OFFSETS]).to(scaled.dtype)
        return scaled if bias is None else scaled + bias.to(scaled.dtype)


class Biases(LayerRule):
    """Biases of the adapted layers alone; a layer that has none gets one, which starts at zero."""

    defaults = {"image": Defaults(3e-2, 1e-2, 30.0), "text": Defaults(3e-3, 1e-2, 3.0, folds=4)}
    set_apart = SAME_START

    def bias_name(self, site):
        return site.bias or site.parameter.removesuffix("weight").removesuffix("scales") + "bias"

    def main_parameter(self, site):
        return self.bias_name(site)

    def prepare(self, network, traced, size, *, training):
        super().prepare(network, traced, size, training=training)
        if self.added:
            network.avoid_fast_paths()  # where torch's attention requires either all biases or none

    @property
    def added(self):
        return {
            self.bias_name(site): self.new_bias(site).to(self._weights[site.layer].dtype)
            for site in self.sites
            if site.bias is None
        }
