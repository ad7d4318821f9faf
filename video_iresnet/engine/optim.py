"""The optimizer."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer


def build_sgd(
    model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float, bn_weight_decay: float
) -> SGD:
    """SGD whose batch normalisation parameters have a weight decay of their own. The learning rate is set at
    each step.
    """
    normalisation = [
        p for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()
    ]
    known = {id(p) for p in normalisation}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": others, "weight_decay": weight_decay},
        {"params": normalisation, "weight_decay": bn_weight_decay},
    ]
    return SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
