"""The training loop: skorch's, with a loss over members, clipping member by member, and restored states."""

import bisect
import copy
import dataclasses
import itertools
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from ._differences import OwnOrders
from ._ensembles import BATCHES_PER_INSTALLATION, HEAD, RATIOS, SCALES, WEIGHTS, is_trained


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


class Batches:
    """Samples with targets and weights, in batches; each iteration draws a new order.

    Parameters
    ----------
    pipeline : object
        `pipeline.load(indices)` reads samples, `pipeline.prepare(raw, generator)` makes them the network's
        input, augmented where a generator is given.
    targets : numpy.ndarray of int, shape (n_samples,)
    weights : numpy.ndarray of float, shape (n_samples,) or (n_members, n_samples)
    batch_size : int
    device : torch.device
    order, augment : torch.Generator or None
        None keeps the order, and the samples as they are.
    """

    def __init__(self, pipeline, targets, weights, batch_size, device, order=None, augment=None):
        self.pipeline, self.batch_size, self.device = pipeline, batch_size, device
        self.targets = torch.as_tensor(targets)
        self.weights = torch.as_tensor(weights, dtype=torch.float32)
        self.order, self.augment = order, augment

    def copy(self, **changes):
        """Return these batches with other attributes."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def __len__(self):
        return math.ceil(len(self.targets) / self.batch_size)

    def __iter__(self):
        for indices in self.pipeline.batches(self.batch_size, self.order):
            inputs = self.pipeline.prepare(self.pipeline.load(indices), self.augment)
            yield inputs, (self.targets[indices].to(self.device), self.weights[..., indices].to(self.device))


def cycle_starts(n_steps, n_cycles):
    """Return the steps at which each of the cycles, as equal as can be, starts, and `n_steps`."""
    return [-(-n_steps * cycle // n_cycles) for cycle in range(n_cycles + 1)]


def learning_rate_factor(schedule, warmup, n_steps, n_cycles=1):
    """Return the function step -> factor of the learning rate: a linear warm-up, then the schedule to zero.

    Each of several cycles runs through both.
    """
    if n_cycles > 1:
        starts = cycle_starts(n_steps, n_cycles)
        factors = [learning_rate_factor(schedule, warmup, end - start) for start, end in itertools.pairwise(starts)]

        def cyclic(step):
            cycle = min(bisect.bisect_right(starts, step), n_cycles) - 1
            return factors[cycle](step - starts[cycle])

        return cyclic
    n_warm = round(warmup * n_steps)

    def factor(step):
        if step < n_warm:
            return (step + 1) / (n_warm + 1)
        done = min(1.0, (step - n_warm) / max(1, n_steps - n_warm))
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if schedule == "constant" else 1.0 - done

    return factor


class Net(NeuralNet):
    """skorch's loop over an `Ensemble`: a step accumulates the gradients of all members, chunk by chunk.

    Parameters
    ----------
    ensemble : Ensemble
    train_batches : Batches
    valid_batches : Batches or None
    settings : Settings
    callbacks : list
    chunk : int
        Members that pass through the network together.
    """

    def __init__(self, ensemble, train_batches, valid_batches, settings, callbacks=(), chunk=1):
        super().__init__(
            module=ensemble,
            criterion=torch.nn.CrossEntropyLoss,
            train_split=None,
            max_epochs=settings.max_epochs,
            batch_size=settings.batch_size,
            callbacks=list(callbacks),
            callbacks__print_log=None,
            device=None,  # everything is where it belongs
            verbose=0,
        )
        self.train_batches, self.valid_batches = train_batches, valid_batches
        self.settings, self.chunk = settings, chunk

    # skorch clones and checks what it finds in the signature; this net is built once and never cloned.
    def _validate_params(self):
        pass

    def initialize_optimizer(self, *args, **kwargs):
        settings = self.settings
        own: dict[float, list] = {}
        heads: list[torch.Tensor] = []
        for index in self.module_.trained:
            for key, tensor in self.module_.member(index).items():
                if key.startswith(HEAD):
                    heads.append(tensor)
                elif is_trained(key):
                    own.setdefault(self.module_.rule.member_lr(key, settings.member_lr), []).append(tensor)
        groups = [
            *({"params": own[lr], "lr": lr, "weight_decay": settings.weight_decay} for lr in own),
            {"params": heads, "lr": settings.head_lr, "weight_decay": settings.head_weight_decay},
        ]
        fused = self.module_.device.type in ("cpu", "cuda")
        self.optimizer_ = torch.optim.AdamW(groups, fused=fused)
        return self

    def get_split_datasets(self, X, y=None, **fit_params):
        return X, y

    def get_iterator(self, dataset, training=False):
        return dataset

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        ensemble = self.module_
        ensemble.network.new_batch()
        pooled = self._target_log_proba(batch) if ensemble.rule.options["diversity"] else None
        total, start = 0.0, 0
        while start < len(ensemble.trained):
            indices = ensemble.trained[start : start + self.chunk]
            try:
                loss = self._member_losses(batch, indices, pooled).sum()
                loss.backward()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if self.chunk == 1:
                    raise
                for index in indices:
                    ensemble.members[index].zero_grad()
                # What torch.vmap cannot batch fails with all kinds of messages; one member needs no vmap.
                self.chunk = self.chunk // 2 if isinstance(error, torch.OutOfMemoryError) else 1
                continue
            total += loss.item()
            start += len(indices)
        if not math.isfinite(total):
            raise _diverged(f"the loss became {total} in epoch {len(self.history)}", self.settings)
        self._clip()
        return {"loss": torch.tensor(total / len(ensemble.trained)), "y_pred": None}

    def _member_losses(self, batch, indices, pooled=None):
        if isinstance(self.train_batches, OwnOrders):  # one member at a time
            self.module_.network.new_batch()
            batch = batch[indices[0]]
        inputs, (targets, weights) = batch
        weights = weights if weights.dim() == 1 else weights[list(indices)]
        logits = self.module_.chunk_logits(inputs, indices)
        losses = _cross_entropy(logits, targets, self.settings.label_smoothing)
        if pooled is not None:
            # The loss of the pooled prediction. Its gradient in one member's logits is that of the member's own loss
            # times p_m / mean(p), for the target's probabilities p: members may still come one after another.
            nll, share = _cross_entropy(logits, targets), self.module_.rule.options["diversity"]
            ratios = torch.exp(pooled[list(indices)] - pooled.logsumexp(0) + math.log(len(pooled)))
            joint = math.log(len(pooled)) - pooled.logsumexp(0) + ratios * (nll - nll.detach())
            losses = (1 - share) * losses + share * joint
        return (losses * weights).mean(1)

    def _target_log_proba(self, batch):
        """Return each member's logarithm of the targets' probability, (n_members, n_samples)."""
        inputs, (targets, _) = batch
        with torch.no_grad():
            return torch.cat(
                [-_cross_entropy(self.module_.chunk_logits(inputs, [i]), targets) for i in self.module_.trained]
            )

    def _clip(self):
        """Clip each member's gradient by its own norm, so that members do not feel one another."""
        for index in self.module_.trained:
            gradients = {key: t.grad for key, t in self.module_.member(index).items() if t.grad is not None}
            norms = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
            for key, norm in norms.items():
                if key.startswith(RATIOS):
                    self.gradient_norms.setdefault(key, []).append(norm)
            total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
            if not bool(torch.isfinite(total)):
                raise _diverged(f"a gradient became {float(total)}", self.settings)
            if self.settings.grad_clip is not None:
                parameters = self.module_.members[index].parameters()
                torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, total)

    def validation_step(self, batch, **fit_params):
        """Return the negative log-likelihood of the mean of the members' probabilities."""
        self._set_training(False)
        inputs, (targets, weights) = batch
        with torch.no_grad():
            log_proba = torch.log_softmax(self.module_(inputs).double(), -1)
            pooled = torch.logsumexp(log_proba, 0) - math.log(len(log_proba))
            losses = F.nll_loss(pooled, targets, reduction="none") * weights
        return {"loss": losses.mean(), "y_pred": None}  # skorch weighs batches by their samples

    def notify(self, method_name, **kwargs):
        try:
            return super().notify(method_name, **kwargs)
        except KeyboardInterrupt as stop:
            if method_name == "on_epoch_end":  # how skorch's callbacks end a training early
                raise _StopEarlyError from stop
            raise


def _cross_entropy(logits, targets, label_smoothing=0.0):
    """Return the cross-entropy of each member and sample, from logits (n_members, n_samples, n_classes)."""
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.repeat(len(logits)), reduction="none", label_smoothing=label_smoothing
    )
    return losses.reshape(len(logits), -1)


def _diverged(what, settings):
    return ValueError(
        f"training diverged: {what}; lower member_lr={settings.member_lr} or head_lr={settings.head_lr}, "
        f"or set grad_clip"
    )


class _StopEarlyError(Exception):
    """A callback ended the training at the end of an epoch."""


class _History(Callback):
    """Collect the fitted `history_` and a copy of the last complete epoch's state."""

    def on_train_begin(self, net, **kwargs):
        self.rows: dict[str, list] = {"epoch": [], "loss": [], "valid_nll": []}
        self.ratio_spread, self.gradient_norm = {}, {}
        self.last_state = None

    def on_epoch_begin(self, net, **kwargs):
        net.gradient_norms = {}

    def on_batch_end(self, net, training, **kwargs):
        if training and len(net.history) == 1 and len(net.history[-1, "batches"]) == 1:
            _check_gradients(net.module_)

    def on_epoch_end(self, net, **kwargs):
        record = net.history[-1]
        self.rows["epoch"].append(int(record["epoch"]))
        self.rows["loss"].append(float(record["train_loss"]))
        self.rows["valid_nll"].append(float(record.get("valid_loss", math.nan)))
        for key, norms in net.gradient_norms.items():
            mean = float(torch.stack(norms).mean())
            self.gradient_norm.setdefault(key.removeprefix(RATIOS), []).append(mean)
        for key, log_ratios in _stacked_ratios(net.module_).items():
            spread = float(torch.exp(log_ratios.double()).std(unbiased=False))
            self.ratio_spread.setdefault(key.removeprefix(RATIOS), []).append(spread)
        self.last_state = copy.deepcopy(net.module_.state_dict())

    def to_dict(self):
        return {**self.rows, "ratio_spread": self.ratio_spread, "gradient_norm": self.gradient_norm}


def _stacked_ratios(ensemble):
    members = [ensemble.member(index) for index in range(len(ensemble.members))]
    return {
        key: torch.stack([member[key].detach() for member in members])
        for key in ensemble.keys
        if key.startswith(RATIOS)
    }


def _check_gradients(ensemble):
    """Raise if the first step gave what members own of a layer, or all weights of a fine-tune, no gradient."""
    member = ensemble.member(ensemble.trained[0])
    without = [key for key, tensor in member.items() if tensor.grad is None and is_trained(key)]
    dead = [key.partition(".")[2] for key in without if not key.startswith((HEAD, WEIGHTS))]
    if dead:
        raise ValueError(
            f"no gradient reached what members own of {', '.join(dict.fromkeys(dead))}: the backbone computes these "
            f"layers in a way that skve does not see; leave them out with layers="
        )
    weights = [key for key in ensemble.keys if key.startswith(WEIGHTS) and is_trained(key)]
    if weights and set(weights) <= set(without):
        raise ValueError("no gradient reached the backbone's weights: its forward detaches its output")


class _Snapshots(Callback):
    """Keep a member at each of the steps `ends`; the last member is the network that trains on."""

    def __init__(self, ends):
        self.ends, self.n_steps = ends, 0

    def on_batch_end(self, net, training, **kwargs):
        self.n_steps += training
        if training and self.n_steps in self.ends:
            net.module_.keep(self.ends.index(self.n_steps))


class _Progress(Callback):
    """One progress bar over all steps of a fit, with the time left."""

    def on_train_begin(self, net, **kwargs):
        self.bar = tqdm(total=net.max_epochs * len(net.train_batches), unit="batch", desc="skve")

    def on_batch_end(self, net, training, **kwargs):
        if training:
            self.bar.update()

    def on_epoch_end(self, net, **kwargs):
        record = net.history[-1]
        shown = {"epoch": f"{record['epoch']}/{net.max_epochs}", "loss": f"{record['train_loss']:.3f}"}
        if "valid_loss" in record:
            shown["valid_nll"] = f"{record['valid_loss']:.3f}"
        self.bar.set_postfix(shown)

    def close(self):
        self.bar.close()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training leaves: members' arrays, history, epochs run, whether Ctrl-C ended it."""

    arrays: dict[str, np.ndarray]
    history: dict
    n_iter: int
    interrupted: bool


def train(ensemble, train_batches, valid_batches, settings, *, callbacks=None, verbose=0, chunk=1):
    """Train the members of an ensemble and return what they became.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before the first epoch was complete; later, `Result.interrupted` says so.
    ValueError
        If the loss is not finite or a layer's ratios get no gradient.
    """
    history = _History()
    n_steps = settings.max_epochs * len(train_batches)
    n_cycles = ensemble.rule.n_cycles(len(ensemble.members))
    if n_steps < n_cycles:
        raise ValueError(
            f"n_members={n_cycles} snapshots of one training want as many steps at least, and there are {n_steps}; "
            f"lower n_members or batch_size, or raise max_epochs"
        )
    factor = learning_rate_factor(settings.schedule, settings.warmup, n_steps, n_cycles)
    own = [
        ("learning_rate", LRScheduler(policy=LambdaLR, lr_lambda=factor, step_every="batch")),
        ("history", history),
    ]
    if n_cycles > 1:
        own.append(("snapshots", _Snapshots(cycle_starts(n_steps, n_cycles)[1:-1])))
    if settings.early_stopping:
        stopping = EarlyStopping("valid_loss", patience=settings.n_iter_no_change, threshold=0, load_best=True)
        own.append(("early_stopping", stopping))
    progress = _Progress() if verbose else None
    if progress:
        own.append(("progress", progress))
    if isinstance(train_batches, OwnOrders):
        chunk = 1  # members see other samples than one another
    net = Net(ensemble, train_batches, valid_batches, settings, [*own, *(callbacks or [])], chunk)
    interrupted = False
    with warnings.catch_warnings():
        # LambdaLR is stepped by skorch after each batch, the optimizer inside a closure that torch overlooks.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*", category=UserWarning)
        net.initialize()
        net.notify("on_train_begin", X=train_batches, y=valid_batches)
        try:
            net.fit_loop(train_batches, valid_batches)
        except _StopEarlyError:
            pass
        except KeyboardInterrupt:
            if history.last_state is None:
                raise
            ensemble.load_state_dict(history.last_state)
            interrupted = True
        finally:
            if progress:
                progress.close()
        net.notify("on_train_end", X=train_batches, y=valid_batches)
    arrays = ensemble.arrays()
    for key, value in arrays.items():
        if not np.isfinite(np.exp(value) if key.startswith((RATIOS, SCALES)) else value).all():
            raise _diverged(f"{key} is not finite after the last step", settings)
    return Result(arrays, history.to_dict(), len(history.rows["epoch"]), interrupted)


def predict_members(ensemble, pipeline, batch_size, n_classes, n_batches=BATCHES_PER_INSTALLATION):
    """Return the members' probabilities, float64 of shape (n_members, n_samples, n_classes).

    Samples are read once for all members, and a member's weights are built once for `n_batches` batches.
    """
    n_members, network = len(ensemble.members), ensemble.network
    proba = np.empty((n_members, len(pipeline), n_classes))
    batches = list(pipeline.batches(batch_size, None))
    with torch.no_grad():
        for start in range(0, len(batches), n_batches):
            block = batches[start : start + n_batches]
            raw = [pipeline.load(indices) for indices in block]
            shared: list[dict] = [{} for _ in block]
            for index in range(n_members):
                ensemble.install(index)
                for position, indices in enumerate(block):
                    network.shared_outputs = shared[position]
                    logits = ensemble.member_logits(pipeline.prepare(raw[position], None), index)
                    shared[position] = network.shared_outputs
                    proba[index, indices] = torch.softmax(logits.double(), -1).cpu().numpy()
            network.new_batch()
    return proba
