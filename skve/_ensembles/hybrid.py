"""Members that own singular values and low-rank pairs of the same weights."""

from skve._ensembles.low_rank import POSITIVE, LowRank
from skve._ensembles.singular_values import SingularValues


class SingularValuesAndPairs(SingularValues, LowRank):
    """The two together, `U diag(sigma * exp(delta)) V^T + scale * B A`.

    Good learning rates of log ratios and of pairs lie far apart: that of the pairs is the option `lora_lr`.
    """

    prefixes = SingularValues.prefixes + LowRank.prefixes
    takes = {"basis": SingularValues.takes["basis"], **LowRank.takes, "lora_lr": (1e-4, [POSITIVE])}

    n_directions = None  # `rank` is that of the pairs

    def new_layer(self, site, weight, generator):
        ratios = SingularValues.new_layer(self, site, weight, generator)
        return {**ratios, **LowRank.new_layer(self, site, weight, generator)}

    def fold(self, site, weight, own):
        return LowRank.fold(self, site, SingularValues.fold(self, site, weight, own), own)

    def call(self, site, inputs, weight, own, bias):
        return SingularValues.call(self, site, inputs, weight, own, bias) + self.change(inputs, weight, own)

    def member_lr(self, key, member_lr):
        return self.options["lora_lr"] if key.startswith(LowRank.prefixes) else member_lr
