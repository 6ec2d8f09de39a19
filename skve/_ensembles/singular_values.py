"""Singular value ensembles: members own the singular values of the adapted weights."""

import numbers

from sklearn.utils._param_validation import Interval, StrOptions

from skve._backbones.decomposition import Factors
from skve._backbones.quantized import QuantizedWeight
from skve._ensembles import forms
from skve._ensembles.base import DIFFERENCES, RATIOS, Defaults, LayerRule, draw
from skve._runtime.device import dtype_of_products


class SingularValues(LayerRule):
    """Singular value ensemble (arXiv 2601.22068): log ratios of the singular values, optionally biases.

    With `basis="random"` the same number r = min(d_out, d_in) of log ratios scales the directions Q = V R in place of
    the right singular vectors V (d_in, r): `W + W Q diag(expm1(delta)) Q^T`, with a random rotation R, fixed for each
    layer. The row space stays that of V; with Q = V it is the singular value ensemble, since W V = U diag(sigma).

    With `rank` members own the log ratios of so many leading directions only,
    `W + U_k diag(sigma_k expm1(delta)) V_k^T`; `directions` makes them the trailing ones, or a random choice that is
    fixed for each layer. Of a quantised weight they are leading ones of the weight as it is kept, and no more than
    `quantized.n_directions`.
    """

    defaults = {"image": Defaults(5e-2, 1e-2, 30.0), "text": Defaults(1e-2, 1e-2, 3.0, folds=4)}
    set_apart = LayerRule.set_apart
    has_ratios = True
    prefixes: tuple[str, ...] = (RATIOS,)
    takes = {
        **DIFFERENCES,
        "basis": ("singular", [StrOptions({"singular", "random"})]),
        "rank": (None, [Interval(numbers.Integral, 1, None, closed="left"), None]),
        "directions": ("leading", [StrOptions({"leading", "trailing", "random"})]),
    }

    def __init__(self, backbone, sites, **settings):
        super().__init__(backbone, sites, **settings)
        self._factors: dict[str, Factors] = {}
        self._cast: dict[str, Factors] = {}

    def factors(self, site):
        """Return the factors in which the layer's ratios are diagonal."""
        if site.layer not in self._factors:
            factors = self.backbone.factors(site, self.options["basis"])
            if self.n_directions is not None:
                factors = factors.chosen(self.n_directions, self.options["directions"], site.layer)
            self._factors[site.layer] = factors
        return self._factors[site.layer]

    def check(self, n_members, early_stopping=False):
        super().check(n_members, early_stopping)
        directions = self.options.get("directions", "leading")
        if directions == "leading":
            return
        if self.options["rank"] is None:
            raise ValueError(
                f"rank in ensemble_params must say how many directions members own with directions={directions!r}, "
                f"got None."
            )
        if any(isinstance(self.backbone.weight(site), QuantizedWeight) for site in self.sites):
            raise ValueError(
                f"directions in ensemble_params must be 'leading' with weights in few bits, of which no other "
                f"directions are kept, got {directions!r}."
            )

    @property
    def n_directions(self):
        """How many directions of a layer members own at most; None for all."""
        return self.options["rank"]

    @property
    def _makes_up_weight(self):
        return self.options["basis"] == "singular" and self.n_directions is None

    def fingerprints(self):
        return {site.layer: self.backbone.fingerprint(site, self.options["basis"]) for site in self.sites}

    def new_layer(self, site, weight, generator):
        return {RATIOS: draw(len(self.factors(site).sigma), generator, self.init_scale)}

    def calls(self, shape, n_positions, training):
        if self._makes_up_weight:
            return forms.choose_form("linear", shape[0], shape[1], n_positions, training=training) == "two_factor"
        return forms.one_sided_pays(
            shape[0], shape[1], self.n_directions or min(shape), n_positions, training=training
        )

    def fold(self, site, weight, own):
        return forms.fold(weight, site.kind, self.factors(site), own[RATIOS])

    def call(self, site, inputs, weight, own, bias):
        factors = self._cast.get(site.layer)
        if factors is None:
            kept, dtype = self.factors(site), dtype_of_products(weight.device, weight.dtype)
            factors = kept.to(dtype)
            if dtype.itemsize <= kept.U.dtype.itemsize:  # wider ones would take more memory than a quantised weight
                self._cast[site.layer] = factors  # once, and not, as autocast would, in each call
        if self._makes_up_weight and len(factors.sigma) == min(weight.shape):
            return forms.two_factor(inputs, factors, own[RATIOS], bias)
        return forms.one_sided(inputs, weight, factors, own[RATIOS], bias)
