"""What logits mean: the probabilities they stand for, the targets they are compared with, and the losses."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax

IMPOSSIBLE = -1e4  # logit of a class that a sample cannot have: finite, as label smoothing needs it, with exp() = 0
EPSILON = 1e-12  # what scikit-learn adds to a probability before it takes the logarithm


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """A categorical distribution over `n_classes` classes; training, heads and predictions all use this one.

    Targets are class indices, int64 of shape (n_samples,), or probabilities, floats of shape (n_samples, n_classes).

    Attributes
    ----------
    n_classes : int
    softcap : float or None
        Bound of the logits, `softcap * tanh(logits / softcap)`, of language models that have one.
    """

    n_classes: int
    softcap: float | None = None

    def logits(self, outputs, impossible=None):
        """Return the logits (..., n_classes) of a head's outputs; classes `impossible` for a sample get none."""
        if self.softcap is not None:
            outputs = self.softcap * torch.tanh(outputs / self.softcap)
        return outputs if impossible is None else outputs.masked_fill(impossible, IMPOSSIBLE)

    def proba(self, logits):
        """Return the probabilities of logits, float64 on the CPU."""
        return torch.softmax(logits.cpu().double(), -1)

    def pooled_log_proba(self, logits):
        """Return the logarithm of the members' mean probabilities, from logits (n_members, n_samples, n_classes)."""
        log_proba = torch.log_softmax(logits.double(), -1)
        return torch.logsumexp(log_proba, 0) - math.log(len(log_proba))

    def targets(self, values):
        """Return targets, class indices or rows of probabilities, as a tensor."""
        values = torch.as_tensor(values)
        return values.float() if values.is_floating_point() else values.long()

    def nll(self, log_proba, targets):
        """Return the cross-entropy (n_samples,) of one prediction's logarithms with the targets."""
        if targets.dim() == 2:
            return -(targets * log_proba).sum(-1)
        return F.nll_loss(log_proba, targets, reduction="none")

    def losses(self, logits, targets, label_smoothing=0.0):
        """Return the cross-entropy (n_members, n_samples) of each member, from logits of all."""
        repeated = targets.repeat(len(logits), *[1] * (targets.dim() - 1))
        losses = F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none", label_smoothing=label_smoothing)
        return losses.reshape(len(logits), -1)

    def joint_losses(self, logits, targets, log_proba, members):
        """Return losses whose gradients, for all members together, are those of the pooled prediction's loss.

        The loss of the mean p of the probabilities p_m has in the logits of member m the gradient of the member's own
        loss, times p_m / (n_members p) for each class: members may pass through the network one after another.

        Parameters
        ----------
        logits : torch.Tensor of shape (n_chunk, n_samples, n_classes)
        targets : torch.Tensor
        log_proba : torch.Tensor of shape (n_members, n_samples, n_classes)
            Of all members, without gradients.
        members : sequence of int
            Places of the chunk's members in `log_proba`.
        """
        pooled = log_proba.logsumexp(0) - math.log(len(log_proba))
        ratios = torch.exp(log_proba[list(members)] - pooled)
        own = torch.log_softmax(logits, -1)
        shares = pooled + ratios * (own - own.detach())
        return torch.stack([self.nll(share, targets) for share in shares])

    def temper(self, proba, temperature):
        """Return probabilities ∝ `proba ** (1 / temperature)`, NumPy arrays; those that are 0 stay 0."""
        return proba if temperature == 1.0 else softmax(self._log(proba) / temperature, axis=-1)

    def log_temper(self, proba, temperature):
        """Return the logarithms of `temper`."""
        return log_softmax(self._log(proba) / temperature, axis=-1)

    def _log(self, proba):
        return np.log(proba + EPSILON, where=proba > 0, out=np.full_like(proba, -np.inf))
