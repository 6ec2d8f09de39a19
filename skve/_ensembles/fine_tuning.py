"""Members that own all weights: independent full fine-tunes, and one alone."""

import torch
from torch import nn

from skve._ensembles.base import DIFFERENCES, SAME_START, WEIGHTS, Defaults, MemberRule, Options
from skve._runtime.memory import available_memory

# Copies of a weight at the peak of a training, which is reached twice. At the end of an epoch: the weight, its
# gradient, two moments of AdamW, the state of the last complete epoch, and that of this one, which replaces it. After
# the last: the first five and the arrays that are handed over. Members in one pass of a GPU are stacked in yet
# another copy, but fewer of them pass together where that does not fit.
COPIES = 6
COPIES_KEPT = 3  # of a member that no longer trains: all but gradient and moments
COPIES_BEST = 1  # the best epoch's state, with early stopping
BATCH_NORM: Options = {"train_batch_norm": (False, ["boolean"])}


class FullFineTuning(MemberRule):
    """Independent full fine-tunes: every member owns all weights of the backbone (a deep ensemble).

    With `train_batch_norm` the batch statistics are those of the training batches and the running ones move;
    by default batch normalisation stays in evaluation mode.
    """

    defaults = {"image": Defaults(1e-4, 1e-2, 30.0), "text": Defaults(5e-5, 1e-2, 3.0, folds=4)}
    set_apart = SAME_START
    takes = {**DIFFERENCES, **BATCH_NORM}
    student = "single"
    owns_weights = True

    def __init__(self, backbone, sites, **settings):
        super().__init__(backbone, sites, **settings)
        self.train_batch_norm = self.mixes_samples = self.options.get("train_batch_norm", False)
        self._names = [name for name, p in backbone.module.named_parameters() if p.is_floating_point()]
        owners: dict[int, list[str]] = {}
        for name, parameter in backbone.module.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        self._aliases = {names[0]: names for names in owners.values()}  # tied weights have several names
        self._statistics = [
            f"{path}.{name}" if path else name
            for path, module in backbone.module.named_modules()
            if self.train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
            for name in ("running_mean", "running_var")
        ]

    @property
    def changed(self):
        return self._names

    def check(self, n_members, early_stopping=False):
        super().check(n_members, early_stopping)
        n_trained = len(self.trained(n_members))
        n_kept = 0 if self.shares(WEIGHTS) else n_members - n_trained
        n_weights = sum(self.backbone.module.get_parameter(name).numel() for name in self._names)
        copies = COPIES + COPIES_BEST if early_stopping else COPIES
        needed = 4 * n_weights * (copies * n_trained + COPIES_KEPT * n_kept)
        devices = self.backbone.frozen.devices
        known = [available_memory(device) for device in devices]
        free = None if None in known else sum(known)
        if free is not None and needed > free:
            n_networks = n_trained + n_kept
            what = f"n_members={n_members} fine-tunes" if n_networks > 1 else "A fine-tune"
            remedy = "Lower n_members, or use" if n_networks > 1 else "Use"
            raise ValueError(
                f"{what} of {n_weights:,} weights must fit into the {free / 1e9:.2f} GB that are free on "
                f"{' and '.join(map(str, devices))}, got {needed / 1e9:.2f} GB for training (float32 weights, "
                f"gradients, two moments of AdamW, copies of epochs). {remedy} an ensemble whose members own less, "
                f"such as 'sve' or 'lora'."
            )

    def new_member(self, generator):
        # In float32, in which small steps do not get lost.
        return {key: tensor.to(torch.float32, copy=True) for key, tensor in self._tensors().items()}

    def shapes(self):
        return {key: tuple(tensor.shape) for key, tensor in self._tensors().items()}

    def _tensors(self):
        module = self.backbone.module
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {WEIGHTS + name: tensors[name].detach() for name in self._names + self._statistics}

    def prepare(self, network, traced, size, *, training):
        for name, _ in self.backbone.module.named_buffers():
            if name.endswith("num_batches_tracked"):  # a counter that training mode would advance for all
                network.set_tensor(name, None)

    def install(self, network, member):
        for name in self._names + self._statistics:
            for alias in self._aliases.get(name, [name]):
                network.set_tensor(alias, member[WEIGHTS + name])

    def set_training(self, network, mode):
        if self.train_batch_norm:
            network.train_batch_norms(mode)


class SingleFineTuning(FullFineTuning):
    """One full fine-tune, whatever `n_members` says."""

    takes = BATCH_NORM

    @classmethod
    def n_members(cls, n_members):
        return 1
