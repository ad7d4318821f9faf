"""The optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from ..runtime.errors import InputError


def build_sgd(
    model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float, bn_weight_decay: float
) -> SGD:
    """Return SGD with a separate weight decay for batch normalization. Each step sets the learning rate."""
    normalization = [
        p for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()
    ]
    known = {id(p) for p in normalization}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": others, "weight_decay": weight_decay},
        {"params": normalization, "weight_decay": bn_weight_decay},
    ]
    return SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)


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
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
