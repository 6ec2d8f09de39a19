"""The training loop: skorch's, over the steps of an ensemble, with restored states."""

import copy
import dataclasses
import dis
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch.optim.lr_scheduler import LambdaLR

from skve._ensembles import FACTORS, HEAD, WEIGHTS, is_trained
from skve._runtime.progress import progress_bar
from skve._runtime.warnings import warn
from skve._training.schedule import cycle_starts, learning_rate_factor
from skve._training.step import Step


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
        self.settings = settings
        self.step = Step(ensemble, settings, chunk)

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
        before = self.step.state()
        while True:
            total = self.step.gradients(batch)
            if not math.isfinite(total):
                raise self.step.diverged(f"the loss became {total} in epoch {len(self.history)}")
            if len(self.history) == 1 and len(self.history[-1, "batches"]) == 1:
                _check_gradients(self.module_)
            self.step.clip()
            if not self.step.must_repeat:
                break
            self.step.restore(before)
        return {"loss": torch.tensor(total / len(self.module_.trained)), "y_pred": None}

    def validation_step(self, batch, **fit_params):
        """Return the negative log-likelihood of the mean of the members' probabilities."""
        self._set_training(False)
        inputs, (targets, weights) = batch
        losses = F.nll_loss(self.step.log_proba(inputs, len(targets)), targets.cpu(), reduction="none")
        return {"loss": (losses * weights.cpu()).mean(), "y_pred": None}  # skorch weighs batches by their samples

    def notify(self, method_name, **kwargs):
        try:
            return super().notify(method_name, **kwargs)
        except KeyboardInterrupt as stop:
            # How skorch's callbacks end a training early. Ctrl-C is no statement of theirs: it comes between two.
            if method_name == "on_epoch_end" and _is_raised_by_statement(stop):
                raise _StopEarlyError from stop
            raise


def _is_raised_by_statement(error):
    """Say whether the innermost frame of an exception stood at a `raise`."""
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class _StopEarlyError(Exception):
    """A callback ended the training at the end of an epoch."""


class _History(Callback):
    """Collect the fitted `history_` and a copy of the last complete epoch's state."""

    def on_train_begin(self, net, **kwargs):
        self.rows: dict[str, list] = {"epoch": [], "loss": [], "valid_nll": []}
        self.layers: dict[str, dict[str, list]] = {"ratio_spread": {}, "gradient_norm": {}}
        self.complete = (0, None)  # epochs and the members' state, in one piece: Ctrl-C may come at any time

    def on_epoch_begin(self, net, **kwargs):
        net.step.gradient_norms = {}

    def on_epoch_end(self, net, **kwargs):
        record = net.history[-1]
        self.rows["epoch"].append(int(record["epoch"]))
        self.rows["loss"].append(float(record["train_loss"]))
        self.rows["valid_nll"].append(float(record.get("valid_loss", math.nan)))
        for key, norms in net.step.gradient_norms.items():
            mean = float(torch.stack(norms).mean())
            self.layers["gradient_norm"].setdefault(key.partition(".")[2], []).append(mean)
        for key, log_ratios in _stacked_ratios(net.module_).items():
            spread = float(torch.exp(log_ratios.cpu().double()).std(unbiased=False))
            self.layers["ratio_spread"].setdefault(key.partition(".")[2], []).append(spread)
        self.complete = (self.complete[0] + 1, copy.deepcopy(net.module_.state_dict()))

    def to_dict(self):
        """Return what was noted of the complete epochs."""
        n_epochs = self.complete[0]
        rows = {name: values[:n_epochs] for name, values in self.rows.items()}
        layers = {
            name: {layer: values[:n_epochs] for layer, values in lists.items()} for name, lists in self.layers.items()
        }
        return rows | layers


def _stacked_ratios(ensemble):
    members = [ensemble.member(index) for index in range(len(ensemble.members))]
    return {
        key: torch.stack([member[key].detach() for member in members])
        for key in ensemble.keys
        if key.startswith(FACTORS)
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
        self.bar = progress_bar(net.max_epochs * len(net.train_batches))

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
    n_cycles = ensemble.rule.n_cycles(len(ensemble.members))
    if n_cycles > 1 and settings.early_stopping:
        raise ValueError(
            "early_stopping=True: snapshots are taken all along a training, which has to run to its end; set "
            "early_stopping=False"
        )
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
            state = history.complete[1]
            if state is None:
                raise
            ensemble.load_state_dict(state)
            interrupted = True
            if n_cycles > 1:
                warn(
                    f"the training of {n_cycles} snapshots was interrupted after {history.complete[0]} of "
                    f"{settings.max_epochs} epochs: members of cycles that did not end are one and the same network"
                )
        finally:
            for batches in (train_batches, valid_batches):
                if batches is not None:
                    batches.close()
            if progress:
                progress.close()
        net.notify("on_train_end", X=train_batches, y=valid_batches)
    arrays = ensemble.arrays()
    for key, value in arrays.items():
        if not np.isfinite(np.exp(value) if key.startswith(FACTORS) else value).all():
            raise net.step.diverged(f"{key} is not finite after the last step")
    return Result(arrays, history.to_dict(), history.complete[0], interrupted)
