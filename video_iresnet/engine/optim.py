"""Parameter groups, optimizers, learning rates and the limits of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, AdamW, Optimizer

from ..models import ResNet
from ..runtime.errors import InputError

Groups = list[dict[str, Any]]


def levels(network: ResNet) -> list[list[nn.Module]]:
    """Return the modules of a network by depth: the stem, each stage, the classifier."""
    stages: list[list[nn.Module]] = [[stage] for stage in network.stages]
    return [[network.conv1, network.bn1], *stages, [network.fc]]


def parameter_groups(
    network: ResNet,
    *,
    weight_decay: float,
    bn_weight_decay: float,
    decay_1d: bool = True,
    layer_decay: float = 1.0,
) -> Groups:
    """Return the parameters that are trained, in groups with a `weight_decay` and a `scale` of the rate.

    Batch normalization has its own weight decay; without `decay_1d` other vectors (biases) have none.
    `layer_decay`: the factor of the learning rate from each level (see `levels`) to the one before it; the
    classifier has the full rate.
    """
    parts: list[list[nn.Module]] = levels(network) if layer_decay != 1 else [[network]]
    groups: Groups = []
    for place, modules in enumerate(parts):
        group = nn.ModuleList(modules)
        normalization = [
            p for module in group.modules() if isinstance(module, _BatchNorm) for p in module.parameters()
        ]
        known = {id(p) for p in normalization}
        others = [p for p in group.parameters() if id(p) not in known]
        vectors = [p for p in others if p.ndim == 1 and not decay_1d]
        known = {id(p) for p in vectors}
        weights = [p for p in others if id(p) not in known]
        scale = layer_decay ** (len(parts) - 1 - place)
        for parameters, decay in ((weights, weight_decay), (normalization, bn_weight_decay), (vectors, 0.0)):
            trained = [p for p in parameters if p.requires_grad]
            if trained:
                groups.append({"params": trained, "weight_decay": decay, "scale": scale})
    return groups


def build_sgd(groups: Groups, *, momentum: float, nesterov: bool) -> SGD:
    """Return SGD. Each step sets the learning rate."""
    optimizer = SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:  # else a first step that is skipped on the device would leave them undefined
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_adamw(groups: Groups, *, betas: tuple[float, float]) -> AdamW:
    """Return AdamW. Each step sets the learning rate."""
    return AdamW(groups, lr=0.0, betas=betas, fused=True)


def skip_update(optimizer: Optimizer, skip: Tensor) -> None:
    """Let the next `optimizer.step()` change nothing if `skip`, a boolean on the device, is True. Fused
    optimizers read it there, so that nothing waits for the device.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]


def load_momenta(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the momenta of a saved optimizer, but keep the current weight decay, momentum and so on. Raises
    InputError where the state is not one of these parameters.
    """
    own = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the optimizer's state does not fit the network ({error}); name another OUTPUT_DIR, and the "
            "checkpoint with TRAIN.CHECKPOINT_FILE_PATH to start from its weights"
        ) from error
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the classifier; the other levels follow by their scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


@dataclass(frozen=True)
class Limits:
    """A limit of gradients: of the absolute value of each element, or of the L2 norm of all. 0: none."""

    value: float = 0.0
    norm: float = 0.0

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Apply the limit; returns the norm before, a scalar on the device."""
        trained = [p for p in parameters if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.value:
            clip_grad_value_(trained, self.value)
        if self.norm:
            clip_grads_with_norm_(trained, self.norm, norm)
        return norm


def freeze(network: ResNet, num_levels: int, norms: bool) -> list[str]:
    """Exclude the first levels of a network (see `levels`), and with `norms` all normalization, from
    training. Returns the names of the modules that must stay in evaluation mode, so that their statistics
    stand still.
    """
    frozen = [module for level in levels(network)[:num_levels] for module in level]
    if norms:
        frozen += [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for module in frozen:
        module.requires_grad_(False)
    return [name for name, module in network.named_modules() if any(module is other for other in frozen)]


def set_training(network: ResNet, frozen: Sequence[str]) -> None:
    """Set the network to training mode, except the modules with these names."""
    network.train()
    for name in frozen:
        network.get_submodule(name).eval()
