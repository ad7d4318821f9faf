"""The order of samples over epochs and processes, collation, and the DataLoaders, which say what a worker was
reading when it fails.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from .dataset import ClipDataset, Failure, SampleKey, TrainSample, VideoViews, ViewDataset
from .records import Record

Batch = TypeVar("Batch")


class BatchShape(NamedTuple):
    """Clips of a batch over all processes, and the size of each of them."""

    batch_size: int
    num_frames: int
    crop_size: int


class EpochBatches(Sampler[list[SampleKey]]):
    """This process's batches of keys, epoch after epoch without end, from any (epoch, step).

    The records of a step depend on (seed, epoch, step) alone; the processes share them out. An epoch ends
    with its last full batch. The batches of an epoch take the `shapes` in turn. A record stands for
    `num_samples` clips.
    """

    def __init__(
        self,
        num_records: int,
        shapes: Sequence[BatchShape],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
        num_samples: int = 1,
    ) -> None:
        self.num_records = num_records
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self._steps: list[tuple[int, int, BatchShape]] = []
        first = 0
        while (
            first + (count := shapes[len(self._steps) % len(shapes)].batch_size // num_samples) <= num_records
        ):
            self._steps.append((first, count, shapes[len(self._steps) % len(shapes)]))
            first += count

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_step = self.start
        while True:
            order = generator(self.seed, Stream.ORDER, epoch).permutation(self.num_records)
            for first, count, shape in self._steps[first_step:]:
                share = slice(
                    first + self.rank * count // self.world_size,
                    first + (self.rank + 1) * count // self.world_size,
                )
                yield [
                    SampleKey(epoch, int(record), shape.num_frames, shape.crop_size)
                    for record in order[share]
                ]
            epoch, first_step = epoch + 1, 0


class ClipBatch(NamedTuple):
    """(B, 3, T, S, S) uint8 clips in channels-last layout, (B,) labels, and the unreadable videos met on the
    way.

    `clips` is empty where a sample has none.
    """

    clips: Tensor
    labels: Tensor
    failures: list[Failure]


def collate_clips(samples: Sequence[TrainSample]) -> ClipBatch:
    failures = [failure for sample in samples for failure in sample.failures]
    labels = torch.tensor([label for sample in samples for label in sample.labels])
    if not all(sample.clips for sample in samples):
        return ClipBatch(torch.empty(0, dtype=torch.uint8), labels, failures)
    ready = [clip for sample in samples for clip in sample.clips]
    clips = torch.empty(
        (len(ready), *ready[0].shape), dtype=torch.uint8, memory_format=torch.channels_last_3d
    )
    for target, clip in zip(clips, ready, strict=True):
        target.copy_(clip)
    return ClipBatch(clips, labels, failures)


class Watched(Dataset[Any]):
    """A data set whose workers note, in memory that all processes share, which record they are at: (pid,
    record or -1, since when).
    """

    def __init__(self, dataset: ClipDataset | ViewDataset, num_workers: int) -> None:
        self.dataset = dataset
        self.notes = torch.full((num_workers, 3), -1, dtype=torch.int64)
        self.notes.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        info = get_worker_info()
        if info is None:
            return self.dataset[key]
        note = self.notes[info.id]
        note[0], note[2] = os.getpid(), time.monotonic_ns()
        note[1] = key.record if isinstance(key, SampleKey) else key
        sample = self.dataset[key]
        note[1] = -1
        return sample


class WatchedLoader(Generic[Batch]):
    """Batches of a DataLoader, inside a `with` block, which raises InputError, with the file that was being
    read, where a worker dies or hangs.

    PyTorch reports the death of a worker from a signal handler, so it can come up anywhere in the block and
    not only where a batch is asked for.
    """

    def __init__(
        self, dataset: ClipDataset | ViewDataset, *, num_workers: int, timeout: float, **options: Any
    ) -> None:
        self.watched = Watched(dataset, num_workers)
        self.timeout = timeout
        self.loader: DataLoader[Any] = DataLoader(
            self.watched,
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
            worker_init_fn=_init_worker,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def __enter__(self) -> WatchedLoader[Batch]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader"):
            signal.signal(
                signal.SIGCHLD, signal.SIG_DFL
            )  # or the same death would be reported again when the other workers end
            raise InputError(self._story(str(error))) from None

    def _story(self, message: str) -> str:
        """What happened to a worker, from DataLoader's message and the notes."""
        records: Sequence[Record] = self.watched.dataset.records
        notes = [note for note in self.watched.notes.tolist() if note[1] >= 0]
        named = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", message)
        if named:
            pids = [int(pid) for pid in named[1].split(",")]
            files = ", ".join(records[record].path for pid, record, _ in notes if pid in pids) or "no video"
            return (
                f"a decoding worker (pid {pids[0]}) was killed, perhaps for want of memory, while reading "
                f"{files}; verify the file, or lower DATA_LOADER.NUM_WORKERS"
            )
        pid, record, since = min(notes, key=lambda note: note[2])
        seconds = (time.monotonic_ns() - since) / 1e9
        return (
            f"no batch came for {self.timeout:.0f} s (DATA_LOADER.TIMEOUT); a decoding worker (pid {pid}) "
            f"has been reading {records[record].path} for {seconds:.0f} s; verify the file, or allow more "
            "time"
        )


def clip_loader(
    dataset: ClipDataset, batches: EpochBatches, *, num_workers: int, pin_memory: bool, timeout: float = 0.0
) -> WatchedLoader[ClipBatch]:
    """Batches of training clips without end, from where `batches` starts. `timeout`: seconds that a batch may
    take; 0: any time.
    """
    return WatchedLoader(
        dataset,
        num_workers=num_workers,
        timeout=timeout,
        batch_sampler=batches,
        collate_fn=collate_clips,
        pin_memory=pin_memory,
    )


def view_loader(
    dataset: ViewDataset,
    *,
    videos_at_once: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
    timeout: float = 0.0,
) -> WatchedLoader[list[VideoViews]]:
    """Lists of whole videos. The lists are the same for any number of processes, which take them in turn, and
    none is padded.
    """
    groups = [
        list(range(first, min(first + videos_at_once, len(dataset))))
        for first in range(0, len(dataset), videos_at_once)
    ]
    return WatchedLoader(
        dataset,
        num_workers=num_workers,
        timeout=timeout,
        batch_sampler=groups[rank::world_size],
        collate_fn=list,
        pin_memory=pin_memory,
    )


def _init_worker(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
