"""Average precision of videos with many labels, by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.labels import Label, classes_of
from ..runtime.errors import missing_extra

FAILED = -1.0  # the score of a failed video for all classes, below any probability


def load_average_precision() -> Callable[..., Any]:
    """Return scikit-learn's function. Raises InputError if it is not installed."""
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise missing_extra("DATA.MULTI_LABEL True", "labels", error) from error
    return average_precision_score  # type: ignore[no-any-return]


def multi_hot(labels: Sequence[Label], num_classes: int) -> NDArray[np.bool_]:
    """Return (N, K): whether a video has a class."""
    found = np.zeros((len(labels), num_classes), bool)
    for row, label in zip(found, labels, strict=True):
        row[list(classes_of(label))] = True
    return found


def average_precisions(scores: NDArray[Any], targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, K) scores and whether a video has a class -> (K,) average precision in percent; NaN for a class
    that no video has.
    """
    score = load_average_precision()
    found, seen = np.full(targets.shape[1], np.nan), targets.any(0)
    if seen.any():
        found[seen] = 100 * np.asarray(score(targets[:, seen], scores[:, seen], average=None))
    return found


def mean_average_precision(scores: NDArray[Any], targets: NDArray[np.bool_]) -> float:
    """Return the mean over the classes that a video has, in percent; 0 if there is none."""
    found = average_precisions(scores, targets)
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else 0.0
