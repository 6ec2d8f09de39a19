"""One step of a training and one prediction, for all members, in parts that fit the memory."""

import dataclasses
import math
import types
from typing import Any

import torch
import torch.nn.functional as F

from skve._ensembles import FACTORS, is_trained
from skve._runtime.memory import is_out_of_memory, release_memory, shape_of

MOST_SKIPPED = 20  # steps in a row: float16's loss scale falls from 2 ** 16 to 2 ** -4 meanwhile


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the loop needs of an estimator's parameters; their meaning is documented there."""

    member_lr: float
    head_lr: float
    weight_decay: float
    head_weight_decay: float
    max_epochs: int
    batch_size: int
    schedule: str
    warmup: float
    grad_clip: float | None
    label_smoothing: float
    early_stopping: bool
    n_iter_no_change: int


class Step:
    """The gradients of a training step: chunks of members, and parts of the batch, whose sum is the batch's.

    What turns out not to fit the memory is not tried again in later steps.

    Parameters
    ----------
    ensemble : Ensemble
    settings : Settings
    chunk : int
        Members that pass through the network together, at first.

    Attributes
    ----------
    chunk, largest : int, int or None
        Members, and samples, that pass through the network together; None is the whole batch.
    gradient_norms : dict of str to list of torch.Tensor
        Norms of the ratios' gradients, for each key the values of all steps and members until it is reset.
    """

    def __init__(self, ensemble, settings, chunk):
        self.ensemble, self.settings, self.chunk = ensemble, settings, chunk
        self.largest: int | None = None
        self.gradient_norms: dict[str, list] = {}
        members = ensemble.members
        # A scale for each member, so that they do not feel one another's overflows.
        scaled = ensemble.dtype == torch.float16
        self.scalers = [torch.amp.GradScaler(ensemble.device.type) for _ in members] if scaled else None
        self._skipped = [0] * len(members)  # steps since the last one that was taken
        self._still = set(ensemble.trained)  # members that never took a step
        self.must_repeat = False

    def gradients(self, batch):
        """Give the trained members' parameters the gradients of a batch and return the sum of the members' losses.

        Parameters
        ----------
        batch : tuple or list
            (inputs, (targets, weights)), the weights of shape (n_samples,) or (n_members, n_samples); or a list with
            such a batch for each trained member.
        """
        trained = self.ensemble.trained
        own = (
            zip(batch, ([index] for index in trained), strict=True) if isinstance(batch, list) else [(batch, trained)]
        )
        groups = list(own)
        inputs, (targets, _) = groups[0][0]
        return self._in_fitting_parts(
            lambda: self._accumulate(groups),
            inputs,
            len(targets),
            chunked=not isinstance(batch, list),
            whole=self.ensemble.rule.mixes_samples,
        )

    def log_proba(self, inputs, n_samples):
        """Return the logarithm of the mean of the members' probabilities, on the CPU in float64."""

        def all_members():
            with torch.no_grad():
                logits = torch.cat([self.ensemble(_slice(inputs, part)).cpu() for part in self._parts(n_samples)], 1)
            log_proba = torch.log_softmax(logits.double(), -1)
            return torch.logsumexp(log_proba, 0) - math.log(len(log_proba))

        return self._in_fitting_parts(all_members, inputs, n_samples)

    def _parts(self, n_samples):
        largest = self.largest or n_samples
        return [slice(start, min(start + largest, n_samples)) for start in range(0, n_samples, largest)]

    def _in_fitting_parts(self, compute, inputs, n_samples, *, chunked=False, whole=False):
        """Return `compute()`, after as many attempts with smaller parts as it takes.

        `chunked` says whether it passes members in chunks, `whole` whether it wants all samples at once.
        """
        before = self.state()
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    if self.chunk == 1 or not chunked:
                        raise
                    # What torch.vmap cannot batch fails with all kinds of messages; one member needs no vmap.
                    self.chunk = 1
                elif not self._shrink(n_samples, chunked, whole):
                    raise torch.OutOfMemoryError(f"{self._least(inputs, n_samples, whole)}: {error}") from error
            self.restore(before)
            release_memory(self.ensemble.device)

    def _shrink(self, n_samples, chunked, whole):
        """Choose smaller parts for the next attempt; say whether there are any."""
        size = min(self.largest or n_samples, n_samples)
        if chunked and self.chunk > 1:
            self.chunk //= 2
        elif size > 1 and not whole:
            self.largest = (size + 1) // 2
        else:
            return False
        return True

    def _least(self, inputs, n_samples, whole):
        if whole:
            return f"one member and a batch of {n_samples}, whose statistics train_batch_norm=True keeps from a split"
        return f"one member and one sample of {shape_of(_slice(inputs, slice(0, 1)))}"

    def state(self):
        """Return what computing gradients moves by itself: running statistics, and the generator of noise."""
        members = [self.ensemble.member(index) for index in self.ensemble.trained]
        moved = [tensor for member in members for key, tensor in member.items() if not is_trained(key)]
        return [(tensor, tensor.clone()) for tensor in moved], self.ensemble.rule.noise.get_state()

    def restore(self, state):
        """Undo what an attempt at a step has left behind."""
        statistics, drawn = state
        self.ensemble.members.zero_grad()
        self.ensemble.network.new_batch()
        for tensor, before in statistics:
            tensor.copy_(before)
        self.ensemble.rule.noise.set_state(drawn)

    def _accumulate(self, groups):
        total = 0.0
        for (inputs, (targets, weights)), members in groups:
            for part in self._parts(len(targets)):
                share = len(targets[part]) / len(targets)
                own = _slice(inputs, part), targets[part], weights[..., part]
                self.ensemble.network.new_batch()
                pooled = self._target_log_proba(own) if self.ensemble.rule.options["diversity"] else None
                for start in range(0, len(members), self.chunk):
                    indices = members[start : start + self.chunk]
                    losses = share * self._member_losses(own, indices, pooled)
                    self._scaled(losses, indices).sum().backward()
                    total += losses.sum().item()
        return total

    def _member_losses(self, batch, indices, pooled):
        inputs, targets, weights = batch
        weights = weights if weights.dim() == 1 else weights[list(indices)]
        logits = self.ensemble.chunk_logits(inputs, indices)
        losses = _cross_entropy(logits, targets, self.settings.label_smoothing)
        if pooled is not None:
            # The loss of the pooled prediction. Its gradient in one member's logits is that of the member's own loss
            # times p_m / mean(p), for the target's probabilities p: members may still come one after another.
            nll, share = _cross_entropy(logits, targets), self.ensemble.rule.options["diversity"]
            ratios = torch.exp(pooled[list(indices)] - pooled.logsumexp(0) + math.log(len(pooled)))
            joint = math.log(len(pooled)) - pooled.logsumexp(0) + ratios * (nll - nll.detach())
            losses = (1 - share) * losses + share * joint
        return (losses * weights).mean(1)

    def _target_log_proba(self, batch):
        """Return each member's logarithm of the targets' probability, (n_members, n_samples)."""
        inputs, targets, _ = batch
        with torch.no_grad():
            each = [self.ensemble.chunk_logits(inputs, [index]) for index in self.ensemble.trained]
            return torch.cat([-_cross_entropy(logits, targets) for logits in each])

    def _scaled(self, losses, indices):
        if self.scalers is None:
            return losses
        return torch.stack([self.scalers[index].scale(loss) for index, loss in zip(indices, losses, strict=True)])

    def clip(self):
        """Clip each member's gradient by its own norm, so that members do not feel one another.

        Under a loss scale the gradient is brought back to its size first. If it is not finite, the member loses it
        and with it the optimizer's step; before its first step, `must_repeat` tells that the scale was too large.
        """
        self.must_repeat, of_ratios = False, []
        for index in self.ensemble.trained:
            member = self.ensemble.members[index]
            if self.scalers is not None:
                # All that the scaler asks of an optimizer; the real one holds all members.
                own: Any = types.SimpleNamespace(param_groups=[{"params": list(member.parameters())}])
                self.scalers[index].unscale_(own)
                self.scalers[index].update()
            gradients = {key: t.grad for key, t in self.ensemble.member(index).items() if t.grad is not None}
            norms = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
            total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
            if not bool(torch.isfinite(total)):
                self._skipped[index] += 1
                if self.scalers is None or self._skipped[index] > MOST_SKIPPED:
                    raise self.diverged(f"a gradient became {float(total)}")
                member.zero_grad()
                self.must_repeat |= index in self._still
                continue
            self._skipped[index] = 0
            self._still.discard(index)
            of_ratios += [(key, norm) for key, norm in norms.items() if key.startswith(FACTORS)]
            if self.settings.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(member.parameters(), self.settings.grad_clip, total)

        for key, norm in [] if self.must_repeat else of_ratios:
            self.gradient_norms.setdefault(key, []).append(norm)

    def diverged(self, what):
        """Return the error for a training that left the finite numbers."""
        narrow = " or precision='float16', whose numbers end at 65504," if self.scalers is not None else ""
        return ValueError(
            f"training diverged: {what}; lower member_lr={self.settings.member_lr} or "
            f"head_lr={self.settings.head_lr},{narrow} or set grad_clip"
        )


def _cross_entropy(logits, targets, label_smoothing=0.0):
    """Return the cross-entropy of each member and sample, from logits (n_members, n_samples, n_classes)."""
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.repeat(len(logits)), reduction="none", label_smoothing=label_smoothing
    )
    return losses.reshape(len(logits), -1)


def _slice(inputs, part):
    """Return a part of a batch's samples."""
    return inputs[part] if isinstance(inputs, torch.Tensor) else {name: t[part] for name, t in inputs.items()}
