"""Batch normalization over parts of a batch, or over the batches of several processes.

Both have the state dict of ordinary batch normalization and are the same in evaluation.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = ("batchnorm", "sub_batchnorm", "sync_batchnorm")


class SubBatchNorm(nn.BatchNorm3d):
    """(B, C, ...) -> (B, C, ...). In training, each of `splits` consecutive parts of the batch is normalized
    by its own mean and variance (Wu et al., arXiv 1912.00998, section 3.3).

    The running statistics move once per step, towards the means over the parts of their means and unbiased
    variances. Raises ValueError if a batch does not divide into the parts.
    """

    def __init__(self, num_features: int, splits: int = 1, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.splits = splits

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept images and clips alike."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(input)
        if len(input) % self.splits:
            raise ValueError(
                f"a batch of {len(input)} clips does not divide into BN.NUM_SPLITS {self.splits} parts"
            )
        dtype = torch.promote_types(input.dtype, torch.float32)
        means = torch.zeros(self.splits, self.num_features, dtype=dtype, device=input.device)
        variances = torch.zeros_like(means)
        # Momentum 1 replaces the buffers by the statistics of a part.
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, variance in zip(input.chunk(self.splits), means, variances, strict=True)
        ]
        _move_statistics(self, means.mean(0), variances.mean(0))
        return torch.cat(parts)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, splits={self.splits}"  # type: ignore[no-untyped-call]


class SyncBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm that also works on the CPU: in training, the mean and variance are those of the
    batches of all processes of its group together, computed in float32 or better.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        if not (self.training and dist.is_initialized() and dist.get_world_size(self.process_group) > 1):
            return _BatchNorm.forward(self, input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [dim for dim in range(values.dim()) if dim != 1]
        per_channel = (1, -1, *[1] * (values.dim() - 2))
        # Processes may have batches of different sizes.
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _summed(torch.cat([values.sum(over), count]), self.process_group)
        total = sums[-1:]
        mean = sums[:-1] / total
        # The sum of squared distances comes after the mean, because that of squares would lose digits.
        centred = values - mean.view(per_channel)
        variance = _summed(centred.square().sum(over), self.process_group) / total
        _move_statistics(self, mean.detach(), (variance * total / (total - 1)).detach())
        outputs = centred * (variance + self.eps).rsqrt().view(per_channel)
        if self.affine:
            outputs = outputs * self.weight.view(per_channel) + self.bias.view(per_channel)
        return outputs.to(input.dtype)


class _Summed(torch.autograd.Function):
    """The sum over the processes of a group. Each process's sum is part of every process's loss, so the
    gradient is a sum over them too.

    torch.distributed.nn.functional.all_reduce is the same, but torch deprecates it and imports it apart.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _summed(values: Tensor, group: Any) -> Tensor:
    return cast(Tensor, _Summed.apply(values, group))


@torch.no_grad()
def _move_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards (C,) means and unbiased variances, as nn.BatchNorm3d does, without
    waiting for the device.
    """
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    weight: Any = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), weight)


def set_norm(network: nn.Module, kind: str, *, splits: int = 1, group: Any = None) -> None:
    """Replace every batch normalization in a network that is of another kind by one with the same parameters
    and buffers, so that optimizers and DistributedDataParallel go on. It may be called again.

    `kind`: one of NORMS. `splits`: the parts of sub_batchnorm. `group`: the process group of sync_batchnorm;
    None: all processes. Raises ValueError for another kind.
    """
    if kind not in NORMS:
        raise ValueError(f"unknown normalization {kind!r}; expected one of {', '.join(NORMS)}")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _of_kind(child, kind, splits, group))


def _of_kind(norm: _BatchNorm, kind: str, splits: int, group: Any) -> _BatchNorm:
    plain: Any = getattr(norm, "plain", type(norm))
    if kind == "batchnorm" and type(norm) is plain:
        return norm
    if kind == "sub_batchnorm" and isinstance(norm, SubBatchNorm) and norm.splits == splits:
        return norm
    if kind == "sync_batchnorm" and isinstance(norm, SyncBatchNorm) and norm.process_group is group:
        return norm
    options: dict[str, Any] = {
        "eps": norm.eps,
        "momentum": norm.momentum,
        "affine": norm.affine,
        "track_running_stats": norm.track_running_stats,
    }
    other: Any
    if kind == "batchnorm":
        other = plain(norm.num_features, **options)
    elif kind == "sub_batchnorm":
        other = SubBatchNorm(norm.num_features, splits, **options)
    else:
        other = SyncBatchNorm(norm.num_features, process_group=group, **options)
    other.plain = plain  # what batchnorm goes back to
    other._parameters.update(norm._parameters)
    other._buffers.update(norm._buffers)
    other.train(norm.training)
    return cast(_BatchNorm, other)
