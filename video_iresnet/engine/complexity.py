"""What a network costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """`multiply_adds`: of convolutions and linear layers, for one input. `activations`: the numbers that
    these layers put out.
    """

    parameters: int
    multiply_adds: int
    activations: int


@torch.no_grad()
def complexity(model: nn.Module, size: tuple[int, ...]) -> Complexity:
    """The cost of a network for one input (3, *size); computes nothing where the network is on the meta
    device.
    """
    activations = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal activations
        activations += output.numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    was_training = model.training
    try:
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, 3, *size, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, activations)
