"""Members that add low-rank pairs to the adapted weights, alone or beside singular values."""

import math
import numbers

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval

from skve._backbones import decomposition
from skve._ensembles import forms
from skve._ensembles.base import DIFFERENCES, DOWN, SAME_START, UP, Defaults, LayerRule

POSITIVE = Interval(numbers.Real, 0, None, closed="neither")


class LowRank(LayerRule):
    """LoRA-Ensemble (arXiv 2405.14438): a low-rank pair for each layer, `W + scale * B A`.

    A (rank, d_in) starts uniform as Xavier's, widened by `gain`; B (d_out, rank) starts at zero, so that the network
    starts pretrained. `scale` is LoRA's alpha / rank. A fused query-key-value weight is one matrix and gets one pair,
    a convolution's kernel is flattened to (out, in * kh * kw). The rank is at most min(d_out, d_in).
    """

    defaults = {"image": Defaults(3e-4, 1e-2, 30.0), "text": Defaults(1e-4, 1e-2, 3.0, folds=4)}
    set_apart = SAME_START
    prefixes: tuple[str, ...] = (DOWN, UP)
    takes = {
        **DIFFERENCES,
        "rank": (8, [Interval(numbers.Integral, 1, None, closed="left")]),
        "scale": (1.0, [POSITIVE]),
        "gain": (10.0, [POSITIVE]),
    }

    @property
    def draws_start(self):
        return True

    def new_layer(self, site, weight, generator):
        d_out, d_in = decomposition.as_matrix(weight, site.kind).shape
        rank = min(self.options["rank"], d_out, d_in)
        bound = self.options["gain"] * math.sqrt(6 / (rank + d_in))
        uniform = 2 * torch.rand((rank, d_in), generator=generator, dtype=torch.float32) - 1
        return {DOWN: bound * uniform, UP: torch.zeros((d_out, rank), dtype=torch.float32)}

    @classmethod
    def average(cls, arrays, options):
        """Return the pair whose product is the mean of the members' products, of a rank as large as that takes."""
        others = {key: value for key, value in arrays.items() if not key.startswith((UP, DOWN))}
        body, options = super().average(others, options)
        for layer in [key.removeprefix(UP) for key in arrays if key.startswith(UP)]:
            up, down = np.hstack(arrays[UP + layer]) / len(arrays[UP + layer]), np.vstack(arrays[DOWN + layer])
            if len(down) > min(len(up), down.shape[1]):  # more than any product needs
                left, values, right = np.linalg.svd(up.astype(np.float64) @ down, full_matrices=False)
                up, down = left * values, right
            body |= {UP + layer: up[None].astype(np.float32), DOWN + layer: down[None].astype(np.float32)}
        n_members = max(len(value) for value in arrays.values())
        rank = options.get("rank", cls.takes["rank"][0])
        return body, {**options, "rank": n_members * rank}

    def fold(self, site, weight, own):
        return forms.add_change(weight, site.kind, self.options["scale"] * (own[UP] @ own[DOWN]))

    def calls(self, shape, n_positions, training):
        return training

    def call(self, site, inputs, weight, own, bias):
        return F.linear(inputs, weight, bias) + self.change(inputs, weight, own)

    def change(self, inputs, weight, own):
        """Return what the pair adds to the layer's output."""
        inner = F.linear(inputs, own[DOWN].to(weight.dtype))
        return self.options["scale"] * F.linear(inner, own[UP].to(weight.dtype))
