"""Multi-view testing: every video once, exact on any number of processes.

The network sees the same batches for any number of processes, results are kept under their record, and
nothing is padded or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.dataset import VideoViews
from ..data.functional import crop
from ..data.records import Record
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from ..runtime.signals import StopRequest
from .tasks import TOP

FrameOrder = Callable[[list[int], int], list[int]]
"""(positions of a clip's frames, record) -> the positions that the network gets."""


def forward(clip: list[int], record: int) -> list[int]:
    return clip


def reversed_frames(clip: list[int], record: int) -> list[int]:
    return clip[::-1]


def frozen_frames(clip: list[int], record: int) -> list[int]:
    return [clip[len(clip) // 2]] * len(clip)


@dataclass(frozen=True)
class ShuffledFrames:
    """One order per video, from (seed, record)."""

    seed: int

    def __call__(self, clip: list[int], record: int) -> list[int]:
        return [clip[i] for i in generator(self.seed, Stream.SHUFFLE, record).permutation(len(clip))]


def temporal_checks(seed: int) -> dict[str, FrameOrder]:
    """The orders of frames that show whether a network uses time."""
    return {"reversed": reversed_frames, "shuffled": ShuffledFrames(seed), "frozen": frozen_frames}


class Prediction(NamedTuple):
    """The most probable classes, at most five, and their probabilities."""

    classes: list[int]
    probabilities: list[float]


class VideoResult(NamedTuple):
    """The predictions for one video by protocol and by temporal check; none, and the reason, where it could
    not be read or its logits are not finite. A check whose own logits are not finite has no prediction.
    """

    record: int
    by_views: dict[str, Prediction]
    by_check: dict[str, Prediction]
    error: str


class Accuracy(NamedTuple):
    """Percent of the videos; failed ones are wrong in `top1` and `top5` and left out of the others."""

    top1: float
    top5: float
    top1_readable: float
    top5_readable: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    videos: Iterable[list[VideoViews]],
    *,
    crop_size: int,
    batch_size: int,
    normalize: Callable[[Tensor], Tensor],
    checks: dict[str, FrameOrder],
    processes: Processes,
    stop: StopRequest,
) -> list[VideoResult] | None:
    """The results of all videos in the order of their records, on every process; None after a request to
    stop. Raises InputError, on all processes, where one cannot go on.
    """
    model.eval()
    orders = {"": forward, **checks}
    results = []
    for group in tqdm(
        _rounds(videos, processes, stop),
        desc="testing",
        unit="batch",
        leave=False,
        disable=None if processes.is_main else True,
    ):
        views = (
            view
            for video in group
            for order in orders.values()
            for view in _views(video, order, crop_size, processes.device)
        )
        results += _split(group, list(orders), list(_probabilities(model, views, batch_size, normalize)))
    if processes.sum([int(bool(stop))])[0]:
        return None
    return sorted(result for some in processes.gather(results) for result in some)


def _rounds(
    videos: Iterable[list[VideoViews]], processes: Processes, stop: StopRequest
) -> Iterator[list[VideoViews]]:
    """The groups of this process. Before each the processes agree whether to stop, and raise what one has."""
    groups = iter(videos)
    while True:
        group, error = None, None
        try:
            group = next(groups, None)
        except InputError as caught:
            error = caught
        left, stops, errors = processes.sum([int(group is not None), int(bool(stop)), int(error is not None)])
        if errors:
            processes.raise_first(error)
        if stops or not left:
            return
        if group is not None:
            yield group


def accuracy(predictions: Sequence[Prediction | None], records: Sequence[Record]) -> Accuracy:
    """`predictions[i]` is that of `records[i]`; None where the video failed."""
    pairs = [
        (prediction, record.label)
        for prediction, record in zip(predictions, records, strict=True)
        if prediction
    ]
    top1 = sum(prediction.classes[0] == label for prediction, label in pairs)
    top5 = sum(label in prediction.classes for prediction, label in pairs)
    readable = max(len(pairs), 1)
    return Accuracy(
        100 * top1 / len(records), 100 * top5 / len(records), 100 * top1 / readable, 100 * top5 / readable
    )


def view_subsets(num_clips: int, num_crops: int) -> dict[str, tuple[slice, slice]]:
    """The protocols that the views of one pass contain: name -> (clips, crops). Single ones are those nearest
    the centre.
    """
    clip, square = (num_clips - 1) // 2, num_crops // 2
    one_clip, one_crop = slice(clip, clip + 1), slice(square, square + 1)
    return {
        "1x1": (one_clip, one_crop),
        f"1x{num_crops}": (one_clip, slice(None)),
        f"{num_clips}x1": (slice(None), one_crop),
        f"{num_clips}x{num_crops}": (slice(None), slice(None)),
    }


def _views(video: VideoViews, order: FrameOrder, crop_size: int, device: torch.device) -> Iterator[Tensor]:
    """The views of a video, clip by clip, each (3, T, S, S) uint8."""
    frames = video.frames.to(device, non_blocking=True)
    for clip in video.clips:
        chosen = torch.tensor(order(clip, video.record), device=device)
        for top, left in video.crops:
            yield crop(frames, top, left, crop_size, crop_size)[chosen].permute(3, 0, 1, 2)


def _probabilities(
    model: nn.Module, views: Iterator[Tensor], batch_size: int, normalize: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """(n, K) probabilities on the CPU, for `batch_size` views at a time; see `_forward`."""
    batch = []
    for view in views:
        batch.append(view)
        if len(batch) == batch_size:
            yield _forward(model, batch, normalize)
            batch = []
    if batch:
        yield _forward(model, batch, normalize)


def _forward(model: nn.Module, batch: list[Tensor], normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """(n, K) probabilities on the CPU; a view's are all NaN where one of its logits is not finite."""
    clips = torch.stack([view.permute(1, 2, 3, 0) for view in batch]).permute(0, 4, 1, 2, 3)
    logits = model(normalize(clips)).float()
    # Decided on the device, so that copying the probabilities stays the only wait for it.
    return torch.where(logits.isfinite().all(1, keepdim=True), logits.softmax(1), torch.nan).cpu()


def _split(group: list[VideoViews], orders: list[str], probabilities: list[Tensor]) -> list[VideoResult]:
    """Give each video of a group its rows of the probabilities, and average them."""
    results = []
    row = 0
    rows = torch.cat(probabilities).double() if probabilities else torch.empty(0)
    for video in group:
        num_clips, num_crops = len(video.clips), len(video.crops)
        if not num_clips:
            results.append(VideoResult(video.record, {}, {}, video.error))
            continue
        count = len(orders) * num_clips * num_crops
        views = rows[row : row + count].reshape(len(orders), num_clips, num_crops, -1)
        row += count
        finite = views.isfinite().all(-1)
        if num_failed := int((~finite[0]).sum()):
            error = f"the network's logits are not finite in {num_failed} of {num_clips * num_crops} views"
            results.append(VideoResult(video.record, {}, {}, error))
            continue
        by_views = {
            name: _predict(views[0][clips, crops])
            for name, (clips, crops) in view_subsets(num_clips, num_crops).items()
        }
        by_check = {name: _predict(views[i]) for i, name in enumerate(orders) if name and finite[i].all()}
        results.append(VideoResult(video.record, by_views, by_check, ""))
    return results


def _predict(probabilities: Tensor) -> Prediction:
    """(clips, crops, K) -> the classes of the highest mean probability."""
    best = probabilities.mean((0, 1)).topk(min(TOP, probabilities.shape[-1]))
    return Prediction(best.indices.tolist(), best.values.tolist())
