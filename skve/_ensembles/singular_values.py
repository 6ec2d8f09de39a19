"""Singular value ensembles: members own the singular values of the adapted weights."""

from sklearn.utils._param_validation import StrOptions

from skve._backbones.decomposition import Factors
from skve._ensembles import forms
from skve._ensembles.base import DIFFERENCES, RATIOS, Defaults, LayerRule, draw


class SingularValues(LayerRule):
    """Singular value ensemble (arXiv 2601.22068): log ratios of the singular values, optionally biases.

    With `basis="random"` the same number r = min(d_out, d_in) of log ratios scales the directions Q = V R in place of
    the right singular vectors V (d_in, r): `W + W Q diag(expm1(delta)) Q^T`, with a random rotation R, fixed for each
    layer. The row space stays that of V; with Q = V it is the singular value ensemble, since W V = U diag(sigma).
    """

    defaults = {"image": Defaults(5e-2, 1e-2, 30.0), "text": Defaults(1e-2, 1e-2, 3.0, folds=4)}
    set_apart = LayerRule.set_apart
    has_ratios = True
    prefixes: tuple[str, ...] = (RATIOS,)
    takes = {**DIFFERENCES, "basis": ("singular", [StrOptions({"singular", "random"})])}

    def __init__(self, backbone, sites, **settings):
        super().__init__(backbone, sites, **settings)
        self._cast: dict[str, Factors] = {}

    def factors(self, site):
        """Return the factors in which the layer's ratios are diagonal."""
        return self.backbone.factors(site, self.options["basis"])

    def fingerprints(self):
        return {site.layer: self.backbone.fingerprint(site, self.options["basis"]) for site in self.sites}

    def new_layer(self, site, weight, generator):
        return {RATIOS: draw(len(self.factors(site).sigma), generator, self.init_scale)}

    def calls(self, shape, n_positions, training):
        return forms.choose_form("linear", shape[0], shape[1], n_positions, training=training) == "two_factor"

    def fold(self, site, weight, own):
        return forms.fold(weight, site.kind, self.factors(site), own[RATIOS])

    def call(self, site, inputs, weight, own, bias):
        if site.layer not in self._cast:
            self._cast[site.layer] = self.factors(site).to(weight.dtype)
        factors = self._cast[site.layer]
        if self.options["basis"] == "singular":
            return forms.two_factor(inputs, factors, own[RATIOS], bias)
        return forms.one_sided(inputs, weight, factors, own[RATIOS], bias)
