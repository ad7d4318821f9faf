"""Results as pure functions of stored views, in double precision.

A protocol is (clips, crops); a selection is an order of frames ("" is their own) and a protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.labels import Label, label_text
from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from .average_precision import FAILED, average_precisions, mean_average_precision, multi_hot
from .views import Arrays, StoredVideo, ViewStore

TOP = 5  # the most probable classes that count for top-5, and that predictions name
RESAMPLES = 10_000

Protocol: TypeAlias = tuple[int, int]
Selection: TypeAlias = tuple[str, Protocol]
Numbers: TypeAlias = NDArray[Any]


class Pooling(NamedTuple):
    """How the views of a video are combined: `mean` or `max` of `probabilities` or `logits`."""

    how: str = "mean"
    of: str = "probabilities"

    def read(self, arrays: Arrays) -> Arrays:
        """Return those of a video's arrays that are needed."""
        needs_all = self.of == "logits" or "logits" in arrays
        return arrays if needs_all else {"probabilities": arrays["probabilities"]}


MEAN = Pooling()


class Prediction(NamedTuple):
    """The most probable classes of a video and their probabilities: at most five, or all classes where videos
    have many labels.
    """

    classes: Numbers
    probabilities: Numbers


class Predictions(NamedTuple):
    """The most probable classes of N videos and their probabilities, each (N, min(5, K)), or (N, K) where
    videos have many labels; -1 and NaN where a video failed.
    """

    classes: Numbers
    probabilities: Numbers


class Outcome(NamedTuple):
    """N videos and the predictions for them, by the names of the selections. `labels`: (N,) classes, or
    (N, K) whether a video has a class.
    """

    names: list[str]
    labels: Numbers
    errors: list[str]
    predictions: dict[str, Predictions]


class Accuracy(NamedTuple):
    """Accuracy in percent; failed videos are wrong in `top1` and `top5`, and excluded from the others."""

    top1: float
    top5: float
    top1_readable: float
    top5_readable: float


def positions(wanted: int, stored: int) -> list[int]:
    """Return the indices of `wanted` clips among `stored` ones: spread flush with both ends, or the one
    nearest the centre (of two, the first).
    """
    if wanted == 1:
        return [(stored - 1) // 2]
    return [(2 * i * (stored - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted)]


def views_of(arrays: Arrays, protocol: Protocol) -> dict[str, Numbers]:
    """Return the views of a smaller protocol; a single crop is the centre."""
    clips, crops = protocol
    num_clips, num_crops = next(iter(arrays.values())).shape[:2]
    chosen = [num_crops // 2] if crops == 1 else list(range(num_crops))
    return {name: array[positions(clips, num_clips)][:, chosen] for name, array in arrays.items()}


def smaller_protocols(protocol: Protocol) -> dict[str, Selection]:
    """Return the reported protocols: a single clip, a single crop, both, and last the given protocol."""
    clips, crops = protocol
    chosen = [(1, 1), (1, crops), (clips, 1), (clips, crops)]
    return {f"{m}x{c}": ("", (m, c)) for m, c in chosen}


def every_number_of_clips(protocol: Protocol) -> dict[str, Selection]:
    """Return the protocols of 1 to all clips: with a single crop, then with all crops."""
    clips, crops = protocol
    return {f"{m}x{c}": ("", (m, c)) for c in sorted({1, crops}) for m in range(1, clips + 1)}


def pool(views: Arrays, pooling: Pooling = MEAN) -> Numbers:
    """{probabilities (clips, crops, K), normalizer (clips, crops)} -> (K,) scores; the same from
    {logits (clips, crops, K)}, where videos have many labels.

    logits = log(probabilities) + normalizer; a probability that was rounded to 0 counts as the smallest
    number that its format holds.
    """
    if "logits" in views:
        values = views["logits"].astype(np.float64)
        values = values if pooling.of == "logits" else _sigmoid(values)
        return np.asarray(values.mean((0, 1)) if pooling.how == "mean" else values.max((0, 1)))
    values = views["probabilities"]
    if pooling.of == "logits":
        smallest = np.finfo(values.dtype).smallest_subnormal
        normalizer = views["normalizer"].astype(np.float64)
        values = np.log(np.maximum(values, smallest).astype(np.float64)) + normalizer[..., None]
    values = values.astype(np.float64)
    return np.asarray(values.mean((0, 1)) if pooling.how == "mean" else values.max((0, 1)))


def _sigmoid(x: Numbers) -> Numbers:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def to_probabilities(scores: Numbers, pooling: Pooling, many_labels: bool = False) -> Numbers:
    """(K,) scores -> (K,) probabilities, which sum to 1 unless videos have many labels."""
    if many_labels:
        return _sigmoid(scores) if pooling.of == "logits" else scores
    if pooling.of == "logits":
        scores = np.exp(scores - scores.max())
    # A mean of probabilities already sums to 1; dividing would change its last digit.
    return scores if pooling == MEAN else scores / scores.sum()


def best(probabilities: Numbers, number: int = TOP) -> Prediction:
    """Return the prediction for (K,) probabilities, of at most `number` classes; ties go to the lower
    class.
    """
    classes = np.argsort(-probabilities, kind="stable")[:number]
    return Prediction(classes, probabilities[classes])


def stack(predictions: Sequence[Prediction | None]) -> Predictions:
    """Stack the predictions of single videos; None if one failed."""
    size = max((len(prediction.classes) for prediction in predictions if prediction), default=1)
    stacked = _no_predictions(len(predictions), size)
    for i, prediction in enumerate(predictions):
        if prediction:
            stacked.classes[i], stacked.probabilities[i] = prediction
    return stacked


def _no_predictions(num_videos: int, number: int) -> Predictions:
    return Predictions(np.full((num_videos, number), -1), np.full((num_videos, number), np.nan))


def scores_of(predictions: Predictions) -> Numbers:
    """Predictions of all K classes -> (N, K) probabilities in the order of the classes; FAILED where a video
    failed.
    """
    scores = np.full(predictions.classes.shape, FAILED)
    readable = predictions.classes[:, 0] >= 0
    rows = np.flatnonzero(readable)[:, None]
    scores[rows, predictions.classes[readable]] = predictions.probabilities[readable]
    return scores


def predict(
    tests: Sequence[Iterable[StoredVideo]],
    selections: Mapping[str, Selection],
    num_videos: int,
    num_classes: int,
    pooling: Pooling = MEAN,
    many_labels: bool = False,
) -> Outcome:
    """The predictions for all videos, whose views are read once, a video at a time.

    Several `tests` are an ensemble: the scores of a video are averaged over them, and a video that failed in
    one has failed. Raises InputError where they are not of the same videos.
    """
    names, labels, errors = [], list[Label](), []
    number = num_classes if many_labels else min(TOP, num_classes)
    predictions = {name: _no_predictions(num_videos, number) for name in selections}
    for i, videos in enumerate(zip(*tests, strict=True)):
        first = videos[0]
        for other in videos[1:]:
            if other[:3] != first[:3]:
                raise InputError(
                    f"video {i} is {first.name} of class {label_text(first.label)} in the first test, but "
                    f"{other.name} of class {label_text(other.label)} in another; expected tests of one list"
                )
        names.append(first.name)
        labels.append(first.label)
        errors.append(next((video.error for video in videos if video.error), ""))
        orders = {frames for frames, _ in selections.values() if not errors[i]}
        found = {frames: [video.outputs.get(frames, {}) for video in videos] for frames in orders}
        finite = {
            frames: [pooling.read(some) for some in arrays]
            for frames, arrays in found.items()
            if all(some and _is_finite(some) for some in arrays)
        }
        for name, (frames, protocol) in selections.items():
            if not (arrays := finite.get(frames)):
                continue
            pooled = [pool(views_of(some, protocol), pooling) for some in arrays]
            # The mean of one would be the same, but cost a fifth of the time.
            scores = np.mean(pooled, axis=0) if len(pooled) > 1 else pooled[0]
            prediction = best(to_probabilities(scores, pooling, many_labels), number)
            predictions[name].classes[i], predictions[name].probabilities[i] = prediction
    stacked: Numbers = multi_hot(labels, num_classes) if many_labels else np.array(labels)
    return Outcome(names, stacked, errors, predictions)


def _is_finite(arrays: Arrays) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


def hits(predictions: Predictions, labels: Numbers) -> Numbers:
    """Return (N, 2): whether the label is the most probable class, and whether it is in the top five."""
    found = predictions.classes == labels[:, None]
    return np.stack([found[:, 0], found.any(1)], 1)


def accuracy(predictions: Predictions, labels: Numbers) -> Accuracy:
    top1, top5 = map(int, hits(predictions, labels).sum(0))
    readable = max(int((predictions.classes[:, 0] >= 0).sum()), 1)
    return Accuracy(
        100 * top1 / len(labels), 100 * top5 / len(labels), 100 * top1 / readable, 100 * top5 / readable
    )


def intervals(values: Numbers, groups: Numbers | None = None) -> list[list[float]]:
    """(N, M) values of N videos -> M 95 % intervals [low, high] of their means, by the percentile bootstrap
    (Efron 1979) with a fixed seed.

    `groups`: (N,) numbers from 0 on; where given, whole groups are drawn and not single videos.
    """
    groups = np.arange(len(values)) if groups is None else groups
    sizes = np.bincount(groups)
    sums = np.stack([np.bincount(groups, column) for column in values.T.astype(np.float64)], 1)
    rng = generator(0, Stream.BOOTSTRAP)
    means = np.empty((RESAMPLES, values.shape[1]))
    rows = max(1, 2**16 // len(sizes))  # drawn at once, within megabytes
    for i in range(0, RESAMPLES, rows):
        drawn = rng.integers(len(sizes), size=(len(means[i : i + rows]), len(sizes)))
        means[i : i + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1, keepdims=True)
    return [[float(low), float(high)] for low, high in np.percentile(means, [2.5, 97.5], axis=0).T]


def group_numbers(names: Sequence[str], pattern: str) -> Numbers:
    """Return the (N,) group numbers of videos: by what the first group of a regular expression matches in
    their names. Raises InputError if it has no group, or does not match a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--groups {pattern!r} is no regular expression: {error}") from error
    if not expression.groups:
        raise InputError(f"--groups {pattern!r} has no group in brackets; expected one, as in '_(g[0-9]+)_'")
    found = []
    for name in names:
        match = expression.search(name)
        if not match or match[1] is None:
            raise InputError(
                f"--groups {pattern!r} finds nothing in the name {name}; expected a group in each"
            )
        found.append(match[1])
    return np.unique(found, return_inverse=True)[1]


def per_class(predictions: Predictions, labels: Numbers, num_classes: int) -> tuple[Numbers, Numbers]:
    """(K,) numbers of videos, and (K, 2) the percent of them that are right by top-1 and top-5; NaN without a
    video.
    """
    counts = np.bincount(labels, minlength=num_classes)
    right = np.stack([np.bincount(labels, h, num_classes) for h in hits(predictions, labels).T], 1)
    percent = np.full(right.shape, np.nan)
    np.divide(100 * right, counts[:, None], out=percent, where=counts[:, None] > 0)
    return counts, percent


def calibration_error(predictions: Predictions, labels: Numbers, num_bins: int = 15) -> float:
    """The expected calibration error in percent (Guo et al. 2017, equation 3): the mean difference between
    the probability of the first class and the fraction that is right, in bins of equal width. Failed videos
    are left out.
    """
    readable = predictions.classes[:, 0] >= 0
    confidence = predictions.probabilities[readable, 0]
    right = hits(predictions, labels)[readable, 0]
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, confidence - right, num_bins)
    return float(100 * np.abs(gaps).sum() / max(len(right), 1))


def results(
    stores: Sequence[ViewStore],
    protocol: Protocol | None = None,
    pooling: Pooling = MEAN,
    groups: str = "",
) -> tuple[dict[str, Any], Outcome]:
    """Return the contents of results.json for a test or an ensemble, and the predictions.

    `protocol`: that of the first test where not given. `groups`: see group_numbers; the intervals are over
    groups then. Raises InputError where a view is missing or the tests do not fit each other.
    """
    first = stores[0].about
    protocol = protocol or (first["num_clips"], first["num_crops"])
    for store in stores:
        store.check_complete()
        _check_about(store.about, first, protocol)
    checks = [name for name in first["checks"] if all(name in store.about["checks"] for store in stores)]
    selections = smaller_protocols(protocol) | every_number_of_clips(protocol)
    selections |= {name: (name, protocol) for name in checks}
    many = has_many_labels(first)
    if many and groups:
        raise InputError("--groups is for intervals, which mean average precision has none of; leave it out")
    outcome = predict(stores, selections, first["num_videos"], first["num_classes"], pooling, many)
    by_views = {name: _percent(outcome.predictions[name], outcome.labels) for name in selections}
    *_, name = smaller_protocols(protocol)
    figures = _precisions if many else _accuracies
    text = f"{name} {first['protocol'].partition(' ')[2]}"
    return {
        **figures(outcome, name, groups),
        "num_videos": len(outcome.labels),
        "num_failed": sum(map(bool, outcome.errors)),
        "num_classes": first["num_classes"],
        "by_views": {key: by_views[key] for key in smaller_protocols(protocol)},
        "by_number_of_clips": {key: by_views[key] for key in every_number_of_clips(protocol)},
        "temporal_checks": {key: by_views[key] for key in checks},
        "protocol": text if pooling == MEAN else f"{text}, {pooling.how} of {pooling.of}",
    }, outcome


def has_many_labels(about: Mapping[str, Any]) -> bool:
    """Whether the videos of a test have many labels."""
    return bool(about.get("config", {}).get("DATA.MULTI_LABEL", False))


def _accuracies(outcome: Outcome, name: str, groups: str) -> dict[str, Any]:
    """Return the accuracies of a selection with their intervals."""
    full = accuracy(outcome.predictions[name], outcome.labels)
    drawn = group_numbers(outcome.names, groups) if groups else None
    top1_interval, top5_interval = intervals(100.0 * hits(outcome.predictions[name], outcome.labels), drawn)
    return {
        "top1_acc": full.top1,
        "top5_acc": full.top5,
        "top1_acc_interval": top1_interval,
        "top5_acc_interval": top5_interval,
        "top1_acc_readable": full.top1_readable,
        "top5_acc_readable": full.top5_readable,
    }


def _precisions(outcome: Outcome, name: str, groups: str) -> dict[str, Any]:
    """Return the mean average precision of a selection, that of random scores, and that of each class; None
    for a class that no video has.
    """
    scores, targets = scores_of(outcome.predictions[name]), outcome.labels
    by_class = average_precisions(scores, targets).tolist()
    readable = np.array([not error for error in outcome.errors])
    fractions = targets.mean(0)
    return {
        "map": mean_average_precision(scores, targets),
        "map_readable": mean_average_precision(scores[readable], targets[readable]),
        "map_chance": float(100 * fractions[fractions > 0].mean()),
        "average_precision": [None if np.isnan(value) else value for value in by_class],
    }


def _check_about(about: Mapping[str, Any], first: Mapping[str, Any], protocol: Protocol) -> None:
    for key in ("num_videos", "num_classes", "class_names"):
        if about[key] != first[key]:
            raise InputError(
                f"{key} is {str(first[key])[:99]} in the first test and {str(about[key])[:99]} in another; "
                "expected tests of one list and its classes"
            )
    clips, crops = about["num_clips"], about["num_crops"]
    if not 0 < protocol[0] <= clips or protocol[1] not in (1, crops):
        raise InputError(
            f"protocol {protocol[0]}x{protocol[1]} is not among the {clips}x{crops} stored views; expected "
            f"up to {clips} clips, and {' or '.join(map(str, sorted({1, crops})))} crops"
        )


def _percent(predictions: Predictions, labels: Numbers) -> dict[str, float]:
    """Return what results.json holds of each selection."""
    if labels.ndim == 2:
        return {"map": mean_average_precision(scores_of(predictions), labels)}
    value = accuracy(predictions, labels)
    return {"top1_acc": value.top1, "top5_acc": value.top5}
