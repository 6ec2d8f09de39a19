"""The training loop: skorch's, over the steps of an ensemble, with restored states."""

import contextlib
import copy
import dataclasses
import itertools
import math
import signal
import threading
from typing import Any

import numpy as np
import torch

try:
    from skorch import NeuralNet
    from skorch.callbacks import Callback, EarlyStopping, LRScheduler
except AttributeError as error:  # it makes docstrings of docstrings
    raise ImportError("Training requires skorch, which python -OO cannot import. Run python -O instead.") from error
from torch.optim.lr_scheduler import LambdaLR

from skve._backbones.trunk import keep_trunk
from skve._ensembles import FACTORS, HEAD, WEIGHTS, is_trained
from skve._runtime import processes
from skve._runtime.progress import progress_bar
from skve._runtime.warnings import ignored, warn
from skve._training.fitting_parts import FittingParts
from skve._training.schedule import cycle_starts, learning_rate_factor, plan_course
from skve._training.step import DivergedError, Step


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the loop needs of an estimator's parameters; their meaning is documented there."""

    member_lr: float
    head_lr: float
    weight_decay: float
    head_weight_decay: float
    max_epochs: int | None
    max_steps: int | None
    least_steps: int | None
    schedule: str
    warmup: float
    grad_clip: float | None
    label_smoothing: float
    early_stopping: bool
    n_iter_no_change: int


@dataclasses.dataclass(frozen=True)
class Notes:
    """What the history of a larger ensemble is made of, where its members train in groups.

    Attributes
    ----------
    n_members : int
        In the group.
    ratio_means : dict of str to list of float
        The mean ratio of each layer after each round.
    valid_nll : list of ndarray of shape (n_samples,)
        The validation samples' negative log-likelihood, under the group's mean probabilities, after each round.
    valid_weights : ndarray of shape (n_samples,), or None
        Of the same samples.
    """

    n_members: int
    ratio_means: dict[str, list]
    valid_nll: list[np.ndarray]
    valid_weights: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training leaves: members' arrays, history, rounds run, whether Ctrl-C ended it."""

    arrays: dict[str, np.ndarray]
    history: dict
    n_iter: int
    interrupted: bool
    notes: Notes | None = None


def train(ensemble, train_batches, valid_batches, settings, *, callbacks=None, verbose=0, chunk=1):
    """Train the members of an ensemble and return what they became.

    Parameters
    ----------
    ensemble : Ensemble
    train_batches : Batches
    valid_batches : Batches or None
    settings : Settings
    callbacks : list, default=None
        Of skorch.
    verbose : int, default=0
    chunk : int, default=1
        Members that pass through the network together.

    Returns
    -------
    Result

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before the first round was complete; later, `Result.interrupted` says so.
    ValueError
        If the loss is not finite or a layer's ratios get no gradient.
    """
    check_callbacks(callbacks or [])
    _check_processes(ensemble, train_batches)
    course = plan_course(len(train_batches), settings.max_epochs, settings.max_steps, settings.least_steps)
    n_cycles = ensemble.rule.n_cycles(len(ensemble.members))
    _check_cycles(n_cycles, course.n_steps, settings)
    if course.n_steps > course.steps_per_epoch:
        for batches in (train_batches, valid_batches):
            if batches is not None:
                batches.kept_trunk = keep_trunk(ensemble, batches.pipeline, batches.batch_size)
    history, interrupted = _History(course), False
    # LambdaLR is stepped by skorch after each batch, the optimizer inside a closure that torch overlooks.
    with contextlib.ExitStack() as stack, ignored(".*lr_scheduler.step.*"):
        own = _own_callbacks(history, course, n_cycles, settings)
        if verbose:
            progress = _Progress(course.n_steps)
            stack.callback(progress.close)
            own.append(("progress", progress))
        net = Net(ensemble, settings, course, [*own, *(callbacks or [])], chunk)
        for batches in (train_batches, valid_batches):
            if batches is not None:
                stack.callback(batches.close)
        try:
            net.train(train_batches, valid_batches)
        except DivergedError as error:
            raise _diverged(error, ensemble, settings) from error
        except KeyboardInterrupt:
            n_complete, state = history.complete
            if state is None:
                raise
            ensemble.load_state_dict(state)
            interrupted = True
            if n_cycles > 1:
                done, planned = course.epochs(n_complete), course.epochs(course.n_rounds)
                warn(
                    f"The training of {n_cycles} snapshots was interrupted after {done:.4g} of {planned:.4g} epochs: "
                    f"the members of unfinished cycles are the same network."
                )
        net.notify("on_train_end", X=train_batches, y=valid_batches)  # early stopping brings back the best state
        if not interrupted:
            processes.take_from_first(ensemble.state_dict().values())
    arrays = ensemble.arrays()
    for key, value in arrays.items():
        if not np.isfinite(np.exp(value) if key.startswith(FACTORS) else value).all():
            raise _diverged(f"{key} is not finite after the last step", ensemble, settings)
    return Result(arrays, history.to_dict(), history.complete[0], interrupted, history.notes(len(ensemble.trained)))


def _check_processes(ensemble, batches):
    """Check that the processes of a data-parallel training can share out the batches."""
    n = processes.n_processes()
    if n == 1:
        return
    if batches.batch_size < n:
        raise ValueError(
            f"batch_size must be at least the number of processes of a data-parallel fit, got "
            f"batch_size={batches.batch_size} for {n} processes. Raise it, or start fewer."
        )
    if ensemble.rule.mixes_samples:
        raise ValueError(
            f"train_batch_norm must be False in a data-parallel fit, got {n} processes, none of which has the "
            f"statistics of a whole batch. Train in one process, or without batch statistics."
        )


def check_callbacks(callbacks):
    for index, callback in enumerate(callbacks):
        own_part = callback[-1] if isinstance(callback, tuple) else callback
        if not (isinstance(own_part, Callback) or (isinstance(own_part, type) and issubclass(own_part, Callback))):
            raise ValueError(
                f"callbacks[{index}] must be a callback of skorch or a pair (name, callback), got {callback!r}."
            )


def _check_cycles(n_cycles, n_steps, settings):
    if n_cycles > 1 and settings.early_stopping:
        raise ValueError(
            "early_stopping must be False for snapshots, which are taken throughout the training, got True."
        )
    if n_steps < n_cycles:
        raise ValueError(
            f"n_members must be at most the number of training steps for snapshots, got {n_cycles} "
            f"for {n_steps} steps. Lower n_members or batch_size, or raise max_epochs or max_steps."
        )


def _own_callbacks(history, course, n_cycles, settings):
    factor = learning_rate_factor(settings.schedule, settings.warmup, course.n_steps, n_cycles)
    own = [
        ("learning_rate", LRScheduler(policy=LambdaLR, lr_lambda=factor, step_every="batch")),
        ("history", history),
    ]
    if n_cycles > 1:
        own.append(("snapshots", _Snapshots(cycle_starts(course.n_steps, n_cycles)[1:-1])))
    if settings.early_stopping:
        stopping = EarlyStopping("valid_loss", patience=settings.n_iter_no_change, threshold=0, load_best=True)
        own.append(("early_stopping", stopping))
    return own


def _diverged(what, ensemble, settings):
    """Return the error for a training that left the finite numbers."""
    narrow = " or precision='float16', whose numbers end at 65504," if ensemble.dtype == torch.float16 else ""
    return ValueError(
        f"The training diverged: {what}. Lower member_lr={settings.member_lr} or "
        f"head_lr={settings.head_lr},{narrow} or set grad_clip."
    )


def groups_of(ensemble, members, settings):
    """Return the parameter groups of some members: dicts, as optimizers of torch take them."""
    own: dict[float, list] = {}
    heads: list[torch.Tensor] = []
    for index in members:
        for key, tensor in ensemble.member(index).items():
            if key.startswith(HEAD):
                heads.append(tensor)
            elif is_trained(key):
                own.setdefault(ensemble.rule.member_lr(key, settings.member_lr), []).append(tensor)
    return [
        *({"params": own[lr], "lr": lr, "weight_decay": settings.weight_decay} for lr in own),
        {"params": heads, "lr": settings.head_lr, "weight_decay": settings.head_weight_decay},
    ]


class Net(NeuralNet):
    """skorch's loop over an `Ensemble`: a step accumulates the gradients of all members, chunk by chunk.

    Parameters
    ----------
    ensemble : Ensemble
    settings : Settings
    course : Course
        Its rounds are the epochs of skorch.
    callbacks : list
    chunk : int
        Members that pass through the network together.
    """

    def __init__(self, ensemble, settings, course, callbacks=(), chunk=1):
        super().__init__(
            module=ensemble,
            criterion=torch.nn.CrossEntropyLoss,
            train_split=None,
            max_epochs=course.n_rounds,
            callbacks=list(callbacks),
            callbacks__print_log=None,
            device=None,  # everything is where it belongs
            verbose=0,
        )
        self.settings, self.course = settings, course
        self.parts = FittingParts(ensemble, chunk)
        self.step = Step(ensemble, self.parts, label_smoothing=settings.label_smoothing, grad_clip=settings.grad_clip)
        self.valid_nll: list[torch.Tensor] = []  # (2, n_samples) of each batch: of the samples, and their weights
        self.ctrl_c = _CtrlC()

    def train(self, train_batches, valid_batches):
        """Train from the start; a callback may end the training after a round."""
        self.initialize()
        self.notify("on_train_begin", X=train_batches, y=valid_batches)
        with self.ctrl_c, contextlib.suppress(_StopEarlyError):
            self.fit_loop(_Rounds(train_batches, self.course), valid_batches)

    # skorch clones and checks what it finds in the signature; this net is built once and never cloned.
    def _validate_params(self):
        pass

    def initialize_optimizer(self, *args, **kwargs):
        fused = self.module_.device.type in ("cpu", "cuda")
        self.optimizer_ = torch.optim.AdamW(self.parameter_groups(), fused=fused)
        return self

    def parameter_groups(self):
        """Return the groups of tensors that the optimizer moves at one rate and decay."""
        return groups_of(self.module_, self.module_.trained, self.settings)

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
                n_steps = (len(self.history) - 1) * self.course.steps_per_round + len(self.history[-1, "batches"])
                raise DivergedError(f"the loss became {total} in step {n_steps}")
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
        (group,) = batch.groups
        group, size = group.part(processes.own_part(len(group))), len(group)
        likelihood, before = self.module_.head.likelihood, self.step.state()

        def log_proba():
            with torch.no_grad():
                parts = [group.part(samples) for samples in self.parts.slices(len(group))]
                logits = torch.cat([self.module_(part.inputs, part.trunk).cpu() for part in parts], 1)
            return likelihood.pooled_log_proba(logits)

        total = torch.zeros(())
        if len(group):
            log_proba = self.parts.run(log_proba, group, undo=lambda: self.step.restore(before))
            nll, weights = likelihood.nll(log_proba, group.targets.cpu()), group.weights.cpu()
            self.valid_nll.append(torch.stack([nll, weights.to(nll)]))
            total = (nll * weights).sum()
        if processes.n_processes() > 1:
            total = total.to(self.module_.device, torch.float32)
            processes.sum_up([total])
        return {"loss": total.cpu() / size, "y_pred": None}  # skorch weighs batches by samples

    def notify(self, method_name, **kwargs):
        try:
            return super().notify(method_name, **kwargs)
        except KeyboardInterrupt as stop:
            # How skorch's callbacks end a training early.
            if method_name == "on_epoch_end" and not self.ctrl_c.pressed:
                raise _StopEarlyError from stop
            raise


class EpochTasks(Callback):
    """Report each epoch, or round, to the callbacks of scikit-learn, which may end the training after it.

    Parameters
    ----------
    estimator : estimator
        That is fitted.
    task : sklearn.callback.CallbackContext
        The fit.
    """

    def __init__(self, estimator, task):
        self.estimator, self.task = estimator, task

    def on_epoch_begin(self, net, **kwargs):
        self.epoch = self.task.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(estimator=self.estimator)

    def on_epoch_end(self, net, **kwargs):
        if self.epoch.call_on_fit_task_end(estimator=self.estimator):
            raise KeyboardInterrupt  # as skorch's own callbacks do


class _StopEarlyError(Exception):
    """A callback ended the training at the end of a round."""


class _CtrlC:
    """Notes Ctrl-C while it is entered, and leaves what follows to the handler that was there.

    Python lets the main thread alone handle signals; in others a KeyboardInterrupt is not Ctrl-C.
    """

    _before: Any
    pressed = False

    def __enter__(self):
        self._before = signal.getsignal(signal.SIGINT)
        self._notes = threading.current_thread() is threading.main_thread() and callable(self._before)
        if self._notes:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number, frame):
        self.pressed = True
        return self._before(number, frame)

    def __exit__(self, *error):
        if self._notes and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)


class _Rounds:
    """Training batches whose iterations are the rounds of a course: parts of an endless row of epochs."""

    def __init__(self, batches, course):
        self._endless = itertools.chain.from_iterable(itertools.repeat(batches))
        self._course, self._n_left = course, course.n_steps

    def __iter__(self):
        n_steps = min(self._course.steps_per_round, self._n_left)
        self._n_left -= n_steps
        return itertools.islice(self._endless, n_steps)


class _History(Callback):
    """Collect the fitted `history_` and a copy of the state at the end of the last complete round."""

    def __init__(self, course):
        self.course = course
        self.rows: dict[str, list] = {"epoch": [], "step": [], "loss": [], "valid_nll": []}
        self.layers: dict[str, dict[str, list]] = {"ratio_spread": {}, "gradient_norm": {}}
        self.ratio_means: dict[str, list] = {}
        self.valid_nll: list[np.ndarray] = []  # (2, n_samples) of each round
        self.complete = (0, None)  # rounds and the members' state, in one piece: Ctrl-C may come at any time

    def on_epoch_begin(self, net, **kwargs):
        net.step.gradient_norms, net.valid_nll = {}, []

    def on_epoch_end(self, net, **kwargs):
        record = net.history[-1]
        n_rounds = int(record["epoch"])
        self.rows["epoch"].append(self.course.epochs(n_rounds))
        self.rows["step"].append(self.course.steps(n_rounds))
        self.rows["loss"].append(float(record["train_loss"]))
        self.rows["valid_nll"].append(float(record.get("valid_loss", math.nan)))
        for key, norms in net.step.gradient_norms.items():
            mean = float(torch.stack(norms).mean())
            self.layers["gradient_norm"].setdefault(key.partition(".")[2], []).append(mean)
        for key, log_ratios in _stacked_ratios(net.module_).items():
            ratios, layer = torch.exp(log_ratios.cpu().double()), key.partition(".")[2]
            self.layers["ratio_spread"].setdefault(layer, []).append(float(ratios.std(unbiased=False)))
            self.ratio_means.setdefault(layer, []).append(float(ratios.mean()))
        if net.valid_nll:
            self.valid_nll.append(torch.cat(net.valid_nll, 1).numpy())
        self.complete = (self.complete[0] + 1, copy.deepcopy(net.module_.state_dict()))

    def to_dict(self):
        """Return what was noted of the complete rounds."""
        n_rounds = self.complete[0]
        rows = {name: values[:n_rounds] for name, values in self.rows.items()}
        layers = {
            name: {layer: values[:n_rounds] for layer, values in lists.items()} for name, lists in self.layers.items()
        }
        return rows | layers

    def notes(self, n_members):
        """Return what was noted of all rounds that the history of more members takes."""
        weights = self.valid_nll[0][1] if self.valid_nll else None
        return Notes(n_members, self.ratio_means, [nll for nll, _ in self.valid_nll], weights)


def _stacked_ratios(ensemble):
    members = [ensemble.member(index) for index in range(len(ensemble.members))]
    return {
        key: torch.stack([member[key].detach() for member in members])
        for key in ensemble.keys
        if key.startswith(FACTORS)
    }


def _check_gradients(ensemble):
    """Raise if the first step gave the members' parameters of a layer, or all weights of a fine-tune, no gradient."""
    member = ensemble.member(ensemble.trained[0])
    without = [key for key, tensor in member.items() if tensor.grad is None and is_trained(key)]
    dead = [key.partition(".")[2] for key in without if not key.startswith((HEAD, WEIGHTS))]
    if dead:
        raise ValueError(
            f"Gradients must reach the members' parameters of each layer, got none for "
            f"{', '.join(dict.fromkeys(dead))}: the backbone computes these layers in a way that skve does not "
            f"detect. Exclude them with layers."
        )
    weights = [key for key in ensemble.keys if key.startswith(WEIGHTS) and is_trained(key)]
    if weights and set(weights) <= set(without):
        raise ValueError(
            "Gradients must reach the backbone's weights, got none: its forward detaches its output. Use "
            "ensemble='head', which needs no gradients."
        )


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

    def __init__(self, n_steps):
        self.bar = progress_bar(n_steps)

    def on_batch_end(self, net, training, **kwargs):
        if training:
            self.bar.update()

    def on_epoch_end(self, net, **kwargs):
        record = net.history[-1]
        epoch, epochs = (net.course.epochs(n_rounds) for n_rounds in (record["epoch"], net.course.n_rounds))
        shown = {"epoch": f"{round(epoch, 1):g}/{round(epochs, 1):g}", "loss": f"{record['train_loss']:.3f}"}
        if "valid_loss" in record:
            shown["valid_nll"] = f"{record['valid_loss']:.3f}"
        self.bar.set_postfix(shown)

    def close(self):
        self.bar.close()
