"""Multi-view testing: every video once, exact on any number of processes.

The network sees the same batches for any number of processes, outputs are kept under their record, and
nothing is padded or replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.dataset import VideoViews
from ..data.functional import crop
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from ..runtime.signals import StopRequest
from .tasks import Task
from .views import Arrays, VideoOutputs

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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    videos: Iterable[list[VideoViews]],
    task: Task,
    sink: Callable[[list[VideoOutputs]], None],
    *,
    crop_size: int,
    batch_size: int,
    checks: Mapping[str, FrameOrder],
    processes: Processes,
    stop: StopRequest,
) -> bool:
    """Hand what the task keeps of each view to `sink`, one group of videos after the other; False where a
    request to stop ended it before all are done.

    After each group the processes agree whether to stop. Raises InputError, on all of them, where one cannot
    go on.
    """
    model.eval()
    orders = {"": forward, **checks}
    groups = iter(videos)
    with tqdm(
        desc="testing", unit="batch", leave=False, disable=None if processes.is_main else True
    ) as progress:
        while True:
            group, error = None, None
            try:
                group = next(groups, None)
                if group is not None:
                    views = _all_views(group, orders, crop_size, processes.device)
                    sink(_split(group, list(orders), _outputs(model, views, batch_size, task)))
            except InputError as caught:
                error = caught
            left, stops, errors = processes.sum(
                [int(group is not None), int(bool(stop)), int(error is not None)]
            )
            if errors:
                processes.raise_first(error)
            if stops or not left:
                return not left
            progress.update()


def _all_views(
    group: list[VideoViews], orders: Mapping[str, FrameOrder], crop_size: int, device: torch.device
) -> Iterator[Tensor]:
    """The views of a group in the order that `_split` expects, each (3, T, S, S) uint8."""
    for video in group:
        frames = video.frames.to(device, non_blocking=True)
        for order in orders.values():
            for clip in video.clips:
                chosen = torch.tensor(order(clip, video.record), device=device)
                for top, left in video.crops:
                    yield crop(frames, top, left, crop_size, crop_size)[chosen].permute(3, 0, 1, 2)


def _outputs(model: nn.Module, views: Iterator[Tensor], batch_size: int, task: Task) -> dict[str, Tensor]:
    """What the task keeps of all views, (n, ...) on the CPU by name, from `batch_size` views at a time."""
    batches = []
    while batch := list(itertools.islice(views, batch_size)):
        clips = torch.stack([view.permute(1, 2, 3, 0) for view in batch]).permute(0, 4, 1, 2, 3)
        kept = task.keep(model(task.normalize(clips)))
        batches.append({name: values.cpu() for name, values in kept.items()})
    names = batches[0] if batches else {}
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}


def _split(group: list[VideoViews], orders: list[str], outputs: dict[str, Tensor]) -> list[VideoOutputs]:
    """Give each video of a group its rows of the outputs."""
    videos = []
    row = 0
    for video in group:
        views = len(video.clips), len(video.crops)
        kept = {}
        for order in orders if video.clips else ():
            rows, row = slice(row, row + views[0] * views[1]), row + views[0] * views[1]
            kept[order] = {
                name: values[rows].numpy().reshape(*views, *values.shape[1:])
                for name, values in outputs.items()
            }
        error = video.error or _not_finite(kept[""])
        videos.append(VideoOutputs(video.record, {} if error else kept, error))
    return videos


def _not_finite(arrays: Arrays) -> str:
    """Why a video has failed where a number of one of its views is not finite, else an empty text."""
    finite = [np.isfinite(array).all(axis=tuple(range(2, array.ndim))) for array in arrays.values()]
    failed = int((~np.logical_and.reduce(finite)).sum())
    return f"the network's logits are not finite in {failed} of {finite[0].size} views" if failed else ""
