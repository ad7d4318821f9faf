"""What a test got wrong, as numbers: which classes are mixed up, and the worst mistakes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..engine.aggregate import Numbers, hits
from .results import TestedVideos


class ConfusedPair(NamedTuple):
    """Two classes with the numbers of videos of the one that were taken for the other."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int


def confusion(videos: TestedVideos, num_classes: int) -> Numbers:
    """Return (K, K) numbers of videos by their class and the most probable one, without failed videos."""
    best = videos.predictions.classes[:, 0]
    readable = best >= 0
    cells = videos.labels[readable] * num_classes + best[readable]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def row_fractions(counts: Numbers) -> Numbers:
    """(K, K) counts -> the fractions of each row; a row without videos is zero."""
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def confused_pairs(counts: Numbers, most: int) -> list[ConfusedPair]:
    """Return the pairs of classes that are mixed up most often in either direction, at most `most`; of equal
    ones the first.
    """
    both = np.triu(counts + counts.T, k=1)
    order = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = [divmod(int(cell), len(counts)) for cell in order if both.flat[cell]]
    return [ConfusedPair(a, b, int(counts[a, b]), int(counts[b, a])) for a, b in pairs]


def worst_mistakes(videos: TestedVideos, most: int) -> list[int]:
    """Return the wrong videos whose wrong class has the highest probability, at most `most`; failed videos
    are none.
    """
    best = videos.predictions.classes[:, 0]
    is_wrong = (best >= 0) & ~hits(videos.predictions, videos.labels)[:, 0]
    order = np.argsort(-videos.predictions.probabilities[:, 0], kind="stable")
    return [int(i) for i in order if is_wrong[i]][:most]
