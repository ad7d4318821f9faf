"""Metrics as sums and a count, reduced once at the end: exact for batches of any size and any number of
processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP = 5


class TrainSums:
    """Sums of loss, top-1 and top-5 hits, and the number of clips; kept on the device so that adding never
    waits for it.
    """

    def __init__(self, device: torch.device, sums: list[float] | None = None) -> None:
        self.sums = torch.tensor(sums or [0.0, 0.0, 0.0, 0.0], dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: the mean over (B, K) logits and (B,) labels."""
        best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
        hits = torch.stack([loss.detach() * len(labels), best[:, 0].sum(), best.sum()])
        self.sums[:3] += hits
        self.sums[3] += len(labels)

    def values(self) -> list[float]:
        return [float(value) for value in self.sums.tolist()]


def train_stats(sums: list[float]) -> dict[str, float]:
    """Mean loss, and the top-1 and top-5 errors in percent."""
    loss, top1, top5, count = sums
    return {"loss": loss / count, "top1_err": 100 * (1 - top1 / count), "top5_err": 100 * (1 - top5 / count)}
