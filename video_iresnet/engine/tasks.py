"""What is learnt and how it is measured, as values. Training and testing are the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.mixing import Targets
from .aggregate import TOP, Prediction, accuracy, best, pool, stack
from .views import Arrays


class Task(Protocol):
    """A batch becomes the network's input and targets; outputs become a loss and sums to report."""

    def normalize(self, clips: Tensor) -> Tensor:
        """(B, 3, T, S, S) uint8 clips -> the network's input."""

    def targets(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Normalized clips and (B,) labels -> the network's input, mixed or not, and its targets."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over a batch, a scalar."""

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """(N,) float64 sums over a batch, on its device. The first is that of the loss, the last the number
        of clips.
        """

    def stats(self, sums: list[float]) -> dict[str, float]:
        """Sums over any number of batches -> the numbers to report; `loss` is one of them."""

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        """The network's outputs for n views -> what is kept of them, by name, each (n, ...), on the device;
        not finite where a view has failed.
        """

    def predict(self, views: Arrays) -> Any:
        """What was kept of a video's views -> the prediction."""

    def measure(self, predictions: Sequence[Any], labels: Sequence[int]) -> dict[str, float]:
        """The accuracies in percent; a video with None for a prediction counts as wrong. The first one
        decides which network is best.
        """


@dataclass(frozen=True)
class SingleLabel:
    """Classification of clips that belong to one class each."""

    normalize: Callable[[Tensor], Tensor]
    targets: Targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of (B, K) logits with (B,) labels or (B, K) fractions."""
        return F.cross_entropy(outputs, targets)

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """(4,): loss, top-1 hits, top-5 hits, clips. Hits are counted against the labels as they are, mixed
        or not.
        """
        hits = outputs.topk(min(TOP, outputs.shape[1]), dim=1).indices == labels[:, None]
        clips = torch.full((), len(labels), dtype=torch.float64, device=loss.device)
        return torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum(), clips])

    def stats(self, sums: list[float]) -> dict[str, float]:
        """Mean loss, and the top-1 and top-5 errors in percent."""
        loss, top1, top5, clips = sums
        return {
            "loss": loss / clips,
            "top1_err": 100 * (1 - top1 / clips),
            "top5_err": 100 * (1 - top5 / clips),
        }

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        """(n, K) logits -> (n, K) probabilities, and (n,) normalizers: logits = log(probabilities) +
        normalizer. All of a view are NaN where one of its logits is not finite.
        """
        logits = outputs.float()
        # Decided on the device, so that copying stays the only wait for it.
        finite = logits.isfinite().all(1)
        return {
            "probabilities": torch.where(finite[:, None], logits.softmax(1), torch.nan),
            "normalizer": torch.where(finite, logits.logsumexp(1), torch.nan),
        }

    def predict(self, views: Arrays) -> Prediction:
        """The classes of the highest mean probability over all views."""
        return best(pool(views))

    def measure(self, predictions: Sequence[Prediction | None], labels: Sequence[int]) -> dict[str, float]:
        """Top-1 and top-5."""
        measured = accuracy(stack(predictions), np.array(labels))
        return {"top1": measured.top1, "top5": measured.top5}
