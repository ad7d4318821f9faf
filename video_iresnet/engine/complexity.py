"""Parameters, multiply-adds and activations of a network."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """`multiply_adds` and `activations` (output elements) count convolutions and linear layers, for one
    input.
    """

    parameters: int
    multiply_adds: int
    activations: int


@torch.no_grad()
def complexity(model: nn.Module, size: tuple[int, ...]) -> Complexity:
    """Return the cost for one input (3, *size); nothing is computed if the network is on the meta device."""
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
