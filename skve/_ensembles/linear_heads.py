"""Linear heads on the frozen backbone, solved instead of trained."""

import torch

from skve._ensembles.base import DIFFERENCES, Defaults, MemberRule, Options
from skve._runtime.warnings import warn


class LinearHeads(MemberRule):
    """Logistic regressions on features of the frozen backbone, each with sample weights of its own.

    `fit` brings each to its optimum and takes no steps; `partial_fit` takes steps, as with other rules. The strength
    of the penalty is chosen once, on all samples. Members have the weights of the Bayesian bootstrap by default: the
    ordinary one leaves out a third of the samples, which costs much where a class has few.
    """

    is_solved = True
    takes: Options = {**DIFFERENCES, "bootstrap": ("bayesian", DIFFERENCES["bootstrap"][1])}
    defaults = {"image": Defaults(1e-4, 5e-3), "text": Defaults(5e-5, 1e-2)}
    set_apart = "leave bootstrap='bayesian' in ensemble_params; heads on one set of features differ little: try 'sve'"

    def check(self, n_members, early_stopping=False):
        if self.options["diversity"]:
            raise ValueError(
                f"diversity in ensemble_params must be 0 for members that are solved one by one, got "
                f"{self.options['diversity']}."
            )
        super().check(n_members, early_stopping)

    def solve(self, problem, weights, generators):
        """Return the heads that fit brings members to.

        Parameters
        ----------
        problem : HeadProblem
            The features and targets, and what finds the best head for them.
        weights : torch.Tensor of shape (n_members, n_samples)
            Of the samples for each member, as the options on members' differences make them.
        generators : list of torch.Generator
            One for each member.

        Returns
        -------
        heads : list of tuple of torch.Tensor
            Weight (n_classes, n_features) and bias (n_classes,) of each member.
        """
        if len(weights) > 1 and torch.equal(weights, weights[:1].expand_as(weights)):
            warn(
                f"All {len(weights)} members are the same head, without epistemic uncertainty: each is the only "
                f"optimum for the same samples. Set bootstrap='bayesian' in ensemble_params, or n_members=1."
            )
        strength = problem.best_strength()
        return [problem.head(problem.optimum(own, strength)) for own in weights]
