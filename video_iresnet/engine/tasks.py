"""Tasks: what is learned and how it is measured. Training and testing are the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.labels import Label
from ..data.mixing import Targets
from .aggregate import TOP, Prediction, accuracy, best, pool, scores_of, stack
from .average_precision import mean_average_precision, multi_hot
from .views import Arrays


class Keeping(Protocol):
    """What testing does with the views of videos."""

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """(B, 3, T, S, S) uint8 clips -> the network's input."""

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs of n views -> what is stored of them by name, (n, ...) each, on the device; not finite for
        views that failed.
        """


class Task(Keeping, Protocol):
    """How batches become inputs and targets, and outputs become losses, sums and accuracies."""

    def targets(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Normalized clips and their labels (see label_tensor) -> the network's input, mixed or not, and its
        targets.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (N,) float64 sums over a batch, on its device: the loss first, the number of clips last."""

    def stats(self, sums: list[float]) -> dict[str, float]:
        """Sums over any number of batches -> the numbers to report, `loss` among them."""

    def predict(self, views: Arrays) -> Any:
        """What was stored of a video's views -> its prediction."""

    def measure(self, predictions: Sequence[Any], labels: Sequence[Label]) -> dict[str, float]:
        """Return accuracies in percent; a prediction of None counts as wrong. The first accuracy selects the
        best checkpoint.
        """

    def record(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
        """Accuracies of a validation, and the best ones so far -> the fields of its record, by PySlowFast's
        names.
        """


@dataclass(frozen=True)
class SingleLabel:
    """Classification with one label per clip."""

    normalize: Callable[[Tensor], Tensor]
    targets: Targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of (B, K) logits and (B,) labels or (B, K) fractions."""
        return F.cross_entropy(outputs, targets)

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (4,): loss, top-1 hits, top-5 hits, clips. Hits are counted against the unmixed labels."""
        hits = outputs.topk(min(TOP, outputs.shape[1]), dim=1).indices == labels[:, None]
        clips = torch.full((), len(labels), dtype=torch.float64, device=loss.device)
        return torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum(), clips])

    def stats(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss, and the top-1 and top-5 errors in percent."""
        loss, top1, top5, clips = sums
        return {
            "loss": loss / clips,
            "top1_err": 100 * (1 - top1 / clips),
            "top5_err": 100 * (1 - top5 / clips),
        }

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        """(n, K) logits -> (n, K) probabilities, and (n,) normalizers: logits = log(probabilities) +
        normalizer. NaN for views with a logit that is not finite.
        """
        logits = outputs.float()
        # Computed on the device, so that the copy to the CPU remains the only synchronization.
        finite = logits.isfinite().all(1)
        return {
            "probabilities": torch.where(finite[:, None], logits.softmax(1), torch.nan),
            "normalizer": torch.where(finite, logits.logsumexp(1), torch.nan),
        }

    def predict(self, views: Arrays) -> Prediction:
        """Return the classes with the highest mean probability over all views."""
        return best(pool(views))

    def measure(self, predictions: Sequence[Prediction | None], labels: Sequence[Label]) -> dict[str, float]:
        """Return the top-1 and top-5 accuracy in percent."""
        measured = accuracy(stack(predictions), np.array(labels))
        return {"top1": measured.top1, "top5": measured.top5}

    def record(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
        """Return errors in percent."""
        errors = {f"{name}_err": 100 - value for name, value in accuracies.items()}
        return errors | {f"min_{name}_err": 100 - value for name, value in best.items()}


@dataclass(frozen=True)
class ManyLabels:
    """Classification with any number of labels per clip, in which each class is learned by itself."""

    normalize: Callable[[Tensor], Tensor]
    targets: Targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy of (B, K) logits and (B, K) fractions, the mean over clips and classes."""
        return F.binary_cross_entropy_with_logits(outputs, targets)

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (2,): loss, clips."""
        clips = torch.full((), len(labels), dtype=torch.float64, device=loss.device)
        return torch.stack([loss * len(labels), clips])

    def stats(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss."""
        loss, clips = sums
        return {"loss": loss / clips}

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        """(n, K) logits -> themselves, whose probabilities have no more digits near 1."""
        return {"logits": outputs.float()}

    def predict(self, views: Arrays) -> Prediction:
        """Return all classes, from the highest mean probability over all views to the lowest."""
        probabilities = pool(views)
        return best(probabilities, len(probabilities))

    def measure(self, predictions: Sequence[Prediction | None], labels: Sequence[Label]) -> dict[str, float]:
        """Return the mean average precision in percent."""
        scores = scores_of(stack(predictions))
        return {"map": mean_average_precision(scores, multi_hot(labels, scores.shape[1]))}

    def record(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
        """Return mean average precisions in percent."""
        return {**accuracies, **{f"max_{name}": value for name, value in best.items()}}
