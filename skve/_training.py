"""The training loop: skorch's, with a loss over members, clipping member by member, and restored states."""

import contextlib
import copy
import dataclasses
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from ._ensembles import BATCHES_PER_INSTALLATION, HEAD, RATIOS, WEIGHTS, is_trained

_AHEAD = 2  # batches that are read while the network computes


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
        `pipeline.load_each(batches, ahead)` reads the samples of one batch after another, those of the next ones
        ahead; `pipeline.prepare(raw, generator)` makes them the network's input, augmented where a generator is
        given.
    targets : numpy.ndarray of int, shape (n_samples,)
    weights : numpy.ndarray of float, shape (n_samples,)
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
        self._reading = None

    def __len__(self):
        return math.ceil(len(self.targets) / self.batch_size)

    def __iter__(self):
        batches = list(self.pipeline.batches(self.batch_size, self.order))
        self._reading = self.pipeline.load_each(batches, _AHEAD)
        for indices, raw in zip(batches, self._reading, strict=True):
            inputs = self.pipeline.prepare(raw, self.augment)
            yield inputs, (self.targets[indices].to(self.device), self.weights[indices].to(self.device))

    def close(self):
        """End the reading, and its threads, where an iteration stopped half-way."""
        if self._reading is not None:
            self._reading.close()


def learning_rate_factor(schedule, warmup, n_steps):
    """Return the function step -> factor of the learning rate: a linear warm-up, then the schedule to zero."""
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
        own: list[torch.nn.Parameter] = []
        heads: list[torch.nn.Parameter] = []
        for member in self.module_.members:
            for name, parameter in member.named_parameters():
                (heads if name.startswith(HEAD.replace(".", "/")) else own).append(parameter)
        groups = [
            {"params": own, "lr": settings.member_lr, "weight_decay": settings.weight_decay},
            {"params": heads, "lr": settings.head_lr, "weight_decay": settings.head_weight_decay},
        ]
        fused = self.module_.device.type in ("cpu", "cuda")
        self.optimizer_ = torch.optim.AdamW([group for group in groups if group["params"]], fused=fused)
        return self

    def get_split_datasets(self, X, y=None, **fit_params):
        return X, y

    def get_iterator(self, dataset, training=False):
        return dataset

    def train_step_single(self, batch, **fit_params):
        self._set_training(True)
        inputs, (targets, weights) = batch
        ensemble = self.module_
        ensemble.network.new_batch()
        total, start = 0.0, 0
        while start < len(ensemble.members):
            indices = range(start, min(start + self.chunk, len(ensemble.members)))
            try:
                loss = self._member_losses(inputs, targets, weights, indices).sum()
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
        return {"loss": torch.tensor(total / len(ensemble.members)), "y_pred": None}

    def _member_losses(self, inputs, targets, weights, indices):
        logits = self.module_.chunk_logits(inputs, indices)
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            targets.repeat(len(indices)),
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        return (losses.reshape(len(indices), -1) * weights).mean(1)

    def _clip(self):
        """Clip each member's gradient by its own norm, so that members do not feel one another."""
        for index, member in enumerate(self.module_.members):
            gradients = {key: t.grad for key, t in self.module_.member(index).items() if t.grad is not None}
            norms = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
            for key, norm in norms.items():
                if key.startswith(RATIOS):
                    self.gradient_norms.setdefault(key, []).append(norm)
            total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
            if not bool(torch.isfinite(total)):
                raise _diverged(f"a gradient became {float(total)}", self.settings)
            if self.settings.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(member.parameters(), self.settings.grad_clip, total)

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
    """Raise if the first step gave a layer's ratios, or all weights of a fine-tune, no gradient."""
    without = [key for key, tensor in ensemble.member(0).items() if tensor.grad is None and is_trained(key)]
    dead = [key.removeprefix(RATIOS) for key in without if key.startswith(RATIOS)]
    if dead:
        raise ValueError(
            f"no gradient reached the singular values of {', '.join(dead)}: the backbone computes these layers "
            f"in a way that skve does not see; leave them out with layers="
        )
    weights = [key for key in ensemble.keys if key.startswith(WEIGHTS) and is_trained(key)]
    if weights and set(weights) <= set(without):
        raise ValueError("no gradient reached the backbone's weights: its forward detaches its output")


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
    for index, callback in enumerate(callbacks or []):
        own_part = callback[-1] if isinstance(callback, tuple) else callback
        if not (isinstance(own_part, Callback) or (isinstance(own_part, type) and issubclass(own_part, Callback))):
            raise ValueError(
                f"callbacks[{index}] is {callback!r}; wanted a callback of skorch, or a pair (name, callback)"
            )
    history = _History()
    n_steps = settings.max_epochs * len(train_batches)
    factor = learning_rate_factor(settings.schedule, settings.warmup, n_steps)
    own = [
        ("learning_rate", LRScheduler(policy=LambdaLR, lr_lambda=factor, step_every="batch")),
        ("history", history),
    ]
    if settings.early_stopping:
        stopping = EarlyStopping("valid_loss", patience=settings.n_iter_no_change, threshold=0, load_best=True)
        own.append(("early_stopping", stopping))
    progress = _Progress() if verbose else None
    if progress:
        own.append(("progress", progress))
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
            for batches in (train_batches, valid_batches):
                if batches is not None:
                    batches.close()
            if progress:
                progress.close()
        net.notify("on_train_end", X=train_batches, y=valid_batches)
    arrays = ensemble.arrays()
    for key, value in arrays.items():
        if not np.isfinite(np.exp(value) if key.startswith(RATIOS) else value).all():
            raise _diverged(f"{key} is not finite after the last step", settings)
    return Result(arrays, history.to_dict(), len(history.rows["epoch"]), interrupted)


def predict_members(ensemble, pipeline, batch_size, n_classes, n_batches=BATCHES_PER_INSTALLATION):
    """Return the members' probabilities, float64 of shape (n_members, n_samples, n_classes).

    Samples are read once for all members, and a member's weights are built once for `n_batches` batches.
    """
    n_members, network = len(ensemble.members), ensemble.network
    proba = np.empty((n_members, len(pipeline), n_classes))
    batches = list(pipeline.batches(batch_size, None))
    with torch.no_grad(), contextlib.closing(pipeline.load_each(batches, n_batches)) as reading:
        for start in range(0, len(batches), n_batches):
            block = batches[start : start + n_batches]
            raw: list = []
            shared: list[dict] = [{} for _ in block]
            for index in range(n_members):
                ensemble.install(index)
                for position, indices in enumerate(block):
                    if index == 0:  # the first member computes while the next batches are read
                        raw.append(next(reading))
                    network.shared_outputs = shared[position]
                    logits = ensemble.member_logits(pipeline.prepare(raw[position], None), index)
                    shared[position] = network.shared_outputs
                    proba[index, indices] = torch.softmax(logits.double(), -1).cpu().numpy()
            network.new_batch()
    return proba
