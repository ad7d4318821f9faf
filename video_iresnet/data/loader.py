"""The order of samples over epochs and processes, collation, and the DataLoaders."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..runtime.seeding import Stream, generator
from .dataset import ClipDataset, Failure, TrainSample, VideoViews, ViewDataset


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """This process's batches of (epoch, record), epoch after epoch without end, from any (epoch, step).

    The records of a step depend on (seed, epoch, step) alone; the processes share them out. An epoch ends with its last full batch.
    """

    def __init__(self, num_records: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, start: tuple[int, int] = (0, 0)) -> None:
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.start = start

    @property
    def steps_per_epoch(self) -> int:
        return self.num_records // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first_step = self.start
        while True:
            order = generator(self.seed, Stream.ORDER, epoch).permutation(self.num_records)
            for step in range(first_step, self.steps_per_epoch):
                records = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [(epoch, int(record)) for record in records[self.share]]
            epoch, first_step = epoch + 1, 0


class ClipBatch(NamedTuple):
    """(B, 3, T, S, S) uint8 clips in channels-last layout, (B,) labels, and the unreadable videos met on the way.

    `clips` is empty where a sample's clip is.
    """

    clips: Tensor
    labels: Tensor
    failures: list[Failure]


def collate_clips(samples: Sequence[TrainSample]) -> ClipBatch:
    failures = [failure for sample in samples for failure in sample.failures]
    labels = torch.tensor([sample.label for sample in samples])
    if any(sample.clip.numel() == 0 for sample in samples):
        return ClipBatch(torch.empty(0, dtype=torch.uint8), labels, failures)
    clips = torch.empty((len(samples), *samples[0].clip.shape), dtype=torch.uint8, memory_format=torch.channels_last_3d)
    for clip, sample in zip(clips, samples, strict=True):
        clip.copy_(sample.clip)
    return ClipBatch(clips, labels, failures)


def clip_loader(dataset: ClipDataset, batches: EpochBatches, *, num_workers: int, pin_memory: bool) -> DataLoader[TrainSample]:
    """Batches of training clips without end, from where `batches` starts."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_clips,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def view_loader(
    dataset: ViewDataset, *, videos_at_once: int, rank: int, world_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[VideoViews]:
    """Lists of whole videos. The lists are the same for any number of processes, which take them in turn, and none is padded."""
    groups = [list(range(first, min(first + videos_at_once, len(dataset)))) for first in range(0, len(dataset), videos_at_once)]
    return DataLoader(
        dataset,
        batch_sampler=groups[rank::world_size],
        collate_fn=list,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def _init_worker(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
