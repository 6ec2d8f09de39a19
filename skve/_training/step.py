"""One training step: the gradients of all members, clipped."""

import types
from typing import Any

import torch

from skve._backbones import layer_selection
from skve._ensembles import FACTORS, is_trained
from skve._runtime import processes

MOST_SKIPPED = 20  # steps in a row: float16's loss scale falls from 2 ** 16 to 2 ** -4 meanwhile


class DivergedError(ArithmeticError):
    """A training left the finite numbers."""


class Step:
    """The gradients of a training step: chunks of members, and parts of the batch, whose sum is the batch's.

    In a data-parallel training each process computes those of its own samples, and all of them sum up.

    Parameters
    ----------
    ensemble : Ensemble
    parts : FittingParts
    label_smoothing : float
    grad_clip : float or None
        Largest norm of a member's gradient.

    Attributes
    ----------
    gradient_norms : dict of str to list of torch.Tensor
        Norms of the ratios' gradients, for each key the values of all steps and members until it is reset.
    must_repeat : bool
        Whether the last gradients overflowed in a member that never took a step: its loss scale was too large.
    """

    def __init__(self, ensemble, parts, *, label_smoothing=0.0, grad_clip=None):
        self.ensemble, self.parts = ensemble, parts
        self.label_smoothing, self.grad_clip = label_smoothing, grad_clip
        self.gradient_norms: dict[str, list] = {}
        members = ensemble.members
        # A scale for each member, so that they do not feel one another's overflows.
        scaled = ensemble.dtype == torch.float16
        self.scalers = [torch.amp.GradScaler(ensemble.device.type) for _ in members] if scaled else None
        self._skipped = [0] * len(members)  # steps since the last one that was taken
        self._still = set(ensemble.trained)  # members that never took a step
        self.must_repeat = False
        self._shares_layers = _shares_layers(ensemble)

    def gradients(self, batch):
        """Give the trained members' parameters the gradients of a `Batch`; return the sum of the members' losses."""
        before, size, own = self.state(), len(batch), processes.own_part(len(batch))
        groups = batch.groups if processes.n_processes() == 1 else [group.part(own) for group in batch.groups]
        total = 0.0
        if own.stop > own.start:
            total = self.parts.run(
                lambda: sum(self._accumulate(group, size) for group in groups),
                groups[0],
                undo=lambda: self.restore(before),
                chunked=len(groups) == 1,
                whole=self.ensemble.rule.mixes_samples,
            )
        return self._summed(total, has_samples=own.stop > own.start)

    def _summed(self, total, has_samples):
        """Sum the gradients, and the losses, over the processes; return the sum of the losses."""
        if processes.n_processes() == 1:
            return total
        members = [self.ensemble.member(index) for index in self.ensemble.trained]
        tensors = [tensor for member in members for key, tensor in member.items() if is_trained(key)]
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        loss = torch.tensor([total], device=self.ensemble.device)
        processes.sum_up([*gradients, loss])
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if not has_samples:
                tensor.grad = gradient
        return loss.item()

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

    def _accumulate(self, group, size):
        """Compute the gradients of a group, which is part of a batch of `size` samples."""
        total = 0.0
        for samples in self.parts.slices(len(group)):
            part = group.part(samples)
            self.ensemble.network.new_batch(part.trunk)
            log_proba = self._log_proba(part) if self.ensemble.rule.options["diversity"] else None
            skips = log_proba is None and self._skips(part)
            for indices in self.parts.chunks(part.members):
                seen = part
                if skips and len(indices) == 1:
                    seen = _weighted(part, indices[0])
                    self.ensemble.network.new_batch(seen.trunk)  # members that see other samples share nothing
                losses = self._member_losses(seen, indices, log_proba) / size
                self._scaled(losses, indices).sum().backward()
                total += losses.sum().item()
        return total

    def _skips(self, group):
        """Say whether members leave out the samples that have no weight for them.

        Not where all see a batch whose first layers are computed once for all of them.
        """
        if self.ensemble.rule.mixes_samples or (self._shares_layers and group.trunk is None):
            return False
        # A GPU would have to finish all that is queued before the weights can be looked at.
        return group.weights.is_cpu and bool((group.weights == 0).any())

    def _member_losses(self, group, indices, log_proba):
        """Return the sum of the samples' weighted losses of each of some members."""
        weights = group.weights if group.weights.dim() == 1 else group.weights[list(indices)]
        logits = self.ensemble.chunk_logits(group.inputs, indices)
        likelihood = self.ensemble.head.likelihood
        losses = likelihood.losses(logits, group.targets, self.label_smoothing)
        if log_proba is not None:
            share = self.ensemble.rule.options["diversity"]
            losses = (1 - share) * losses + share * likelihood.joint_losses(logits, group.targets, log_proba, indices)
        return (losses * weights).sum(1)

    def _log_proba(self, group):
        """Return the logarithms of each member's probabilities, (n_members, n_samples, n_classes)."""
        with torch.no_grad():
            logits = [self.ensemble.chunk_logits(group.inputs, [index]) for index in group.members]
            return torch.log_softmax(torch.cat(logits), -1)

    def _scaled(self, losses, indices):
        if self.scalers is None:
            return losses
        return torch.stack([self.scalers[index].scale(loss) for index, loss in zip(indices, losses, strict=True)])

    def clip(self):
        """Clip each member's gradient by its own norm, so that members do not feel one another.

        Under a loss scale the gradient is brought back to its size first. If it is not finite, the member loses it
        and with it the optimizer's step; before its first step, `must_repeat` says that the scale was too large.

        Raises
        ------
        DivergedError
            If a gradient is not finite and no loss scale is at fault.
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
            of_layers = [norm.to(self.ensemble.device) for norm in norms.values()]
            total = torch.linalg.vector_norm(torch.stack(of_layers))
            if not bool(torch.isfinite(total)):
                self._skipped[index] += 1
                if self.scalers is None or self._skipped[index] > MOST_SKIPPED:
                    raise DivergedError(f"a gradient became {float(total)}")
                member.zero_grad()
                self.must_repeat |= index in self._still
                continue
            self._skipped[index] = 0
            self._still.discard(index)
            of_ratios += [(key, norm) for key, norm in norms.items() if key.startswith(FACTORS)]
            if self.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(member.parameters(), self.grad_clip, total)

        for key, norm in [] if self.must_repeat else of_ratios:
            self.gradient_norms.setdefault(key, []).append(norm)


def _weighted(group, index):
    """Return the samples of a group that have a weight for a member; the others change no gradient.

    One sample stays in any case, so that the optimizer finds gradients, which are zero if it has no weight.
    """
    weights = group.weights if group.weights.dim() == 1 else group.weights[index]
    rows = torch.nonzero(weights)[:, 0]
    return group.part(rows if len(rows) else slice(0, 1))


def _shares_layers(ensemble):
    """Say whether members have layers in common, which are computed once for all of them and all samples."""
    sites, _ = layer_selection.find_sites(ensemble.rule.backbone.module)
    return any(ensemble.network.is_shared(site.layer) for site in sites)
