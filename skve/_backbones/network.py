"""A private view of a frozen backbone, in which members take turns with weights and forwards of their own."""

import copy
from collections.abc import Mapping

import torch
import torch.utils.checkpoint
from torch import nn

from skve._backbones.layer_selection import is_huggingface_conv1d
from skve._backbones.quantized import QuantizedLinear
from skve._runtime.device import attention_in_float32


class Network:
    """A private view of a frozen backbone whose weights can be replaced, member by member.

    The module structure is copied, every tensor is shared with the backbone: a view costs milliseconds and, without
    folded normalisations, no memory, and threads that own one each cannot disturb one another. A replaced parameter
    becomes a plain attribute of its module, which every architecture honours, also those that read `layer.weight`
    instead of calling the layer.

    Parameters
    ----------
    backbone : Backbone
        Supplies `module` and `features(module, inputs)`.

    Attributes
    ----------
    replaced : dict of str to torch.Tensor
        The tensors that have taken the place of the backbone's, by name.
    """

    def __init__(self, backbone):
        tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
        self.module = copy.deepcopy(backbone.module, {id(tensor): tensor for tensor in tensors})
        self._features = backbone.features
        self._modules = dict(self.module.named_modules(remove_duplicate=False))
        self._shared_outputs: dict[str, tuple] = {}
        self._forwards: dict[nn.Module, _Forward] = {}
        self._narrow: dict[str, torch.dtype] = {}
        self._normalised: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.replaced: dict[str, torch.Tensor] = {}

    @property
    def folded(self):
        """Whether convolutions compute the normalisations behind them."""
        return bool(self._normalised)

    def features(self, inputs):
        """Return the backbone's features of a batch, of shape (n_samples, n_features)."""
        return self._features(self.module, inputs)

    def set_tensor(self, name, tensor):
        """Replace the parameter or buffer `name` by a tensor, which may need a gradient or be on its way."""
        if name in self._normalised:
            scale, shift = self._normalised[name]
            tensor = tensor * scale if shift is None else torch.addcmul(shift, tensor, scale)
        self.put({name: tensor.to(self._narrow[name]) if name in self._narrow else tensor})

    def set_tensors(self, tensors):
        """Replace several parameters or buffers, by name."""
        for name, tensor in tensors.items():
            self.set_tensor(name, tensor)

    def put(self, tensors):
        """Put tensors into place that need no conversion, such as those in `replaced`."""
        self.replaced.update(tensors)
        for name, tensor in tensors.items():
            path, _, attribute = name.rpartition(".")
            module = self._modules[path]
            module._parameters.pop(attribute, None)
            module._buffers.pop(attribute, None)
            module.__dict__[attribute] = tensor
            self._compute_batch_norm(module)
            for attribute, value in vars(module).items():  # LeViT and its kin keep what they compute of their weights
                if attribute.endswith("_cache") and isinstance(value, dict):
                    value.clear()

    def multiplied(self):
        """Return the names of the float32 weights by which layers multiply: autocast narrows them in each call."""
        kinds = (nn.Linear, nn.Conv2d)
        layers = {name: m for name, m in self.module.named_modules() if type(m) in kinds or is_huggingface_conv1d(m)}
        weights = {f"{name}.weight" if name else "weight": getattr(m, "weight", None) for name, m in layers.items()}
        return [name for name, weight in weights.items() if weight is not None and weight.dtype == torch.float32]

    def narrow(self, names, dtype):
        """Let `set_tensor` convert these weights, once and not in each call; the network has to run in autocast."""
        self._narrow = dict.fromkeys(names, dtype)

    def calls_plainly(self, layer):
        """Say whether a layer's own forward is all that it does, so that another form may take its place."""
        module = self._modules[layer]
        if isinstance(module, QuantizedLinear):  # whose weight keeps torch off its fast paths
            return True
        if isinstance(self._modules[layer.rpartition(".")[0]], nn.TransformerEncoderLayer):
            return False  # called when gradients are needed, else its fast path reads the weights of its layers
        return type(module) is nn.Linear or is_huggingface_conv1d(module)

    def _forward(self, layer):
        """Return the forward of `layer` that can be changed."""
        module = self._modules[layer]
        if module not in self._forwards:
            self._forwards[module] = module.forward = _Forward(layer, module.forward, self._shared_outputs)
        return self._forwards[module]

    def forward_of(self, layer):
        """Return what `layer` computes at present, whether or not the result is shared or checkpointed."""
        return self._forward(layer).compute

    def set_forward(self, layer, forward):
        """Let `layer` compute `forward(inputs)`; only for layers that are called and not just read."""
        self._forward(layer).compute = forward

    def avoid_fast_paths(self):
        """Keep torch's attention off its inference-only kernels; under vmap it takes them in training as well."""
        for module in self._modules.values():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
                module.training = True

    def avoid_copies(self):
        """Let activations whose gradients need their inputs leave them: writing in place, torch copies them first."""
        for module in self._modules.values():
            if isinstance(module, nn.Hardtanh | nn.SiLU | nn.Hardswish | nn.Mish):
                module.inplace = False

    def simplify_batch_norms(self):
        """Compute frozen batch normalisations as `scale * x + shift`: equal to rounding, half the backward."""
        for layer, module in self._modules.items():
            if _is_batch_norm(module):
                self.set_forward(layer, _FrozenBatchNorm(module))

    def fold_batch_norms(self, convolutions):
        """Let convolutions compute the frozen batch normalisations behind them, with other weights and a bias.

        Parameters
        ----------
        convolutions : dict of str to str
            The normalisation's name -> that of the convolution whose output it alone reads, see `Trace`. What
            `set_tensor` is given from now on as weight or bias of the convolution, takes over scale and shift.
        """
        for layer, convolution in convolutions.items():
            normalisation, plain = self._modules[layer], _is_plain_convolution(self._modules[convolution])
            if plain and _is_batch_norm(normalisation):
                normalised = _FrozenBatchNorm(normalisation)
                self._fold(convolution, normalised)
                self.set_forward(layer, normalised)

    def _fold(self, layer, normalised):
        """Let the convolution `layer` compute the normalisation behind it."""
        convolution, scale, shift = self._modules[layer], normalised.scale.flatten(), normalised.shift.flatten()
        bias = torch.zeros_like(shift) if convolution.bias is None else convolution.bias
        self._normalised[f"{layer}.weight"] = scale[:, None, None, None], None
        self._normalised[f"{layer}.bias"] = scale, shift
        self.set_tensors({f"{layer}.weight": convolution.weight, f"{layer}.bias": bias})
        normalised.folded = True

    def train_batch_norms(self, mode):
        """Put batch normalisation into training mode (statistics of the batch) or back; nothing else moves."""
        for module in self._modules.values():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = mode
                self._compute_batch_norm(module)

    def _compute_batch_norm(self, module):
        """Undo `simplify_batch_norms` where statistics or weights are no longer those of the backbone."""
        forward = self._forwards.get(module)
        if forward is not None and isinstance(forward.compute, _FrozenBatchNorm):
            if forward.compute.folded:
                raise RuntimeError(f"{forward.layer} is part of a convolution and cannot change.")
            forward.compute = forward.own

    def share(self, layers):
        """Compute the modules `layers` once for each batch and not once for each member.

        Parameters
        ----------
        layers : iterable of str
            Modules in front of the first adapted layer, from `trace`.
        """
        for layer in layers:
            self._forward(layer).shared = True

    def is_shared(self, layer):
        """Say whether `layer` is among the modules that are computed once for all members, or inside one."""
        around = [layer.rsplit(".", depth)[0] for depth in range(layer.count(".") + 1)]
        forwards = [self._forwards.get(self._modules[name]) for name in around]
        return any(forward is not None and forward.shared for forward in forwards)

    def checkpoint(self, layers):
        """Compute the activations of the modules `layers` again in the backward pass instead of keeping them."""
        for layer in layers:
            self._forward(layer).checkpointed = True

    @property
    def shared_layers(self):
        """Names of the modules that `share` was called with."""
        return [forward.layer for forward in self._forwards.values() if forward.shared]

    def new_batch(self, outputs=None):
        """Forget what the previous batch left behind; call before its first member.

        Parameters
        ----------
        outputs : dict of str to output, default=None
            What shared modules return for the new batch, by name, where that is known: these are not computed.
        """
        self._shared_outputs.clear()
        for layer, output in (outputs or {}).items():
            self._shared_outputs[layer] = (output, _tensor_versions(output))

    def batch_outputs(self):
        """Return what the shared modules returned for the present batch, by name."""
        return {layer: output for layer, (output, _) in self._shared_outputs.items()}

    def wrote_to_shared(self):
        """Say whether later code wrote into what a shared module returned for the present batch."""
        return any(_tensor_versions(output) != versions for output, versions in self._shared_outputs.values())

    @property
    def shared_outputs(self):
        """Outputs of the shared modules of the present batch; assign to bring back those of another."""
        return dict(self._shared_outputs)

    @shared_outputs.setter
    def shared_outputs(self, outputs):
        self._shared_outputs.clear()
        self._shared_outputs.update(outputs)


class _Forward:
    """What a module computes: checkpointed inside, shared outside, in whichever order these were asked for."""

    def __init__(self, layer, compute, outputs):
        self.layer, self.own, self.compute, self.outputs = layer, compute, compute, outputs
        self.checkpointed = self.shared = False

    def __call__(self, *args, **kwargs):
        if not self.shared:
            return self._compute(*args, **kwargs)
        kept = self.outputs.get(self.layer)
        if kept is None or _tensor_versions(kept[0]) != kept[1]:  # later code may have written into the output
            output = self._compute(*args, **kwargs)
            kept = self.outputs[self.layer] = (output, _tensor_versions(output))
        return kept[0]

    def _compute(self, *args, **kwargs):
        if not self.checkpointed or not torch.is_grad_enabled():
            return self.compute(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(
            self._compute_in_float32, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    def _compute_in_float32(self, *args, **kwargs):
        with attention_in_float32():  # once more in the backward pass, which is outside of all contexts but autocast
            return self.compute(*args, **kwargs)


class _FrozenBatchNorm:
    def __init__(self, module):
        # Statistics and affine weights are fixed: torch's kernel would still compute sums for their gradients.
        scale = torch.rsqrt(module.running_var + module.eps)
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale
        shift = shift if module.bias is None else shift + module.bias
        self.scale, self.shift = scale[:, None, None], shift[:, None, None]
        self.module, self.folded = None if type(module) is nn.BatchNorm2d else module, False

    def __call__(self, inputs):
        output = inputs if self.folded else torch.addcmul(self.shift, inputs, self.scale)
        return output if self.module is None else self.module.act(self.module.drop(output))


def _is_batch_norm(module):
    kind = type(module) is nn.BatchNorm2d or (type(module).__name__ == "BatchNormAct2d" and _is_timm(module))
    return kind and module.running_var is not None


def _is_timm(module):
    return type(module).__module__.startswith("timm.")


def _is_plain_convolution(module):
    """Say whether a module multiplies by its weight as it is: others standardise it, so that a scale gets lost."""
    plain = type(module) is nn.Conv2d or (type(module).__name__ == "Conv2dSame" and _is_timm(module))
    return plain and module.weight.dtype == torch.float32


def _tensor_versions(output):
    """Return how often each tensor of a module's output was written to."""
    if isinstance(output, torch.Tensor):
        return output._version
    if isinstance(output, Mapping):
        return [_tensor_versions(value) for value in output.values()]
    return [_tensor_versions(value) for value in output] if isinstance(output, tuple | list) else None
