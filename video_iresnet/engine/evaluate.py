"""Multi-view testing, exact on any number of processes: batches do not depend on it, and no video is padded,
replaced or seen twice.
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
from ..data.functional import cut
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from ..runtime.signals import StopRequest
from .precision import Precision
from .tasks import Keeping
from .views import Arrays, VideoOutputs

FrameOrder = Callable[[list[int], int], list[int]]
"""(frame positions of a clip, record) -> reordered positions."""


def forward(clip: list[int], record: int) -> list[int]:
    return clip


def reversed_frames(clip: list[int], record: int) -> list[int]:
    return clip[::-1]


def frozen_frames(clip: list[int], record: int) -> list[int]:
    return [clip[len(clip) // 2]] * len(clip)


@dataclass(frozen=True)
class ShuffledFrames:
    """A random order per video, which depends on (seed, record)."""

    seed: int

    def __call__(self, clip: list[int], record: int) -> list[int]:
        return [clip[i] for i in generator(self.seed, Stream.SHUFFLE, record).permutation(len(clip))]


def temporal_checks(seed: int) -> dict[str, FrameOrder]:
    """Return the frame orders that show whether a network uses time."""
    return {"reversed": reversed_frames, "shuffled": ShuffledFrames(seed), "frozen": frozen_frames}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    videos: Iterable[list[VideoViews]],
    task: Keeping,
    sink: Callable[[list[VideoOutputs]], None],
    *,
    precision: Precision,
    crop_size: int,
    batch_size: int,
    checks: Mapping[str, FrameOrder],
    processes: Processes,
    stop: StopRequest,
) -> bool:
    """Pass what the task keeps of each view to `sink`, group by group. Returns False if a request to stop
    ended it early.

    The processes agree whether to stop after each group. Raises InputError on all of them if one fails.
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
                    sink(
                        outputs_of_views(
                            model,
                            group,
                            task,
                            precision=precision,
                            crop_size=crop_size,
                            batch_size=batch_size,
                            orders=orders,
                            device=processes.device,
                        )
                    )
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


def outputs_of_views(
    model: nn.Module,
    group: list[VideoViews],
    task: Keeping,
    *,
    precision: Precision,
    crop_size: int,
    batch_size: int,
    orders: Mapping[str, FrameOrder],
    device: torch.device,
) -> list[VideoOutputs]:
    """Return what the task keeps of all views of a group of videos, in each order of frames."""
    views = _all_views(group, orders, crop_size, device)
    return _split(group, list(orders), _outputs(model, views, batch_size, task, precision))


def _all_views(
    group: list[VideoViews], orders: Mapping[str, FrameOrder], crop_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the views of a group, (3, T, S, S) uint8 each, in the order that `_split` expects. Does not wait
    for the device.
    """
    for video in group:
        frames = video.frames.to(device, non_blocking=True)
        for order in orders.values():
            for clip in video.clips:
                chosen = torch.tensor(order(clip, video.record)).to(device, non_blocking=True)
                for place in video.crops:
                    yield cut(frames, place, crop_size)[chosen].permute(3, 0, 1, 2)


def _outputs(
    model: nn.Module, views: Iterator[Tensor], batch_size: int, task: Keeping, precision: Precision
) -> dict[str, Tensor]:
    """Return what the task keeps of all views, by name, (n, ...), without waiting for the device."""
    batches = []
    while batch := list(itertools.islice(views, batch_size)):
        clips = torch.stack([view.permute(1, 2, 3, 0) for view in batch]).permute(0, 4, 1, 2, 3)
        inputs = task.normalize(clips)
        with precision.autocast():
            outputs = model(inputs)
        batches.append(task.keep(outputs))
    names = batches[0] if batches else {}
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}


def _split(group: list[VideoViews], orders: list[str], outputs: dict[str, Tensor]) -> list[VideoOutputs]:
    """Distribute the outputs to the videos of a group. The copy to the CPU waits for the device."""
    arrays = {name: values.cpu().numpy() for name, values in outputs.items()}
    videos = []
    row = 0
    for video in group:
        views = len(video.clips), len(video.crops)
        kept = {}
        for order in orders if video.clips else ():
            rows, row = slice(row, row + views[0] * views[1]), row + views[0] * views[1]
            kept[order] = {
                name: values[rows].reshape(*views, *values.shape[1:]) for name, values in arrays.items()
            }
        error = video.error or _not_finite(kept[""])
        videos.append(VideoOutputs(video.record, {} if error else kept, error))
    return videos


def _not_finite(arrays: Arrays) -> str:
    """Return why a video failed if a number of a view is not finite, else an empty string."""
    finite = [np.isfinite(array).all(axis=tuple(range(2, array.ndim))) for array in arrays.values()]
    failed = int((~np.logical_and.reduce(finite)).sum())
    return f"the network's logits are not finite in {failed} of {finite[0].size} views" if failed else ""
