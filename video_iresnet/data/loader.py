"""Batch sampling over epochs and processes, collation, and DataLoaders that name the file a failed worker was
reading.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..runtime.errors import InputError
from ..runtime.seeding import Stream, generator
from ..runtime.signals import follow_parent, starting_workers
from .dataset import ClipDataset, Failure, SampleKey, TrainSample, VideoViews, ViewDataset
from .labels import label_tensor
from .records import Record

Batch = TypeVar("Batch")


class BatchShape(NamedTuple):
    """The number of clips of a batch over all processes, their size, and the largest of the sampling rates
    that are drawn for them; 0: none is drawn.
    """

    batch_size: int
    num_frames: int
    crop_size: int
    largest_rate: int = 0


# The shapes that the batches of an epoch take in turn.
ShapesOfEpoch = Callable[[int], Sequence[BatchShape]]


class EpochBatches(Sampler[list[SampleKey]]):
    """Batches of sample keys for one process, endlessly from any (epoch, step).

    The records of a step depend only on (seed, epoch, step) and are divided among the processes. Incomplete
    batches are dropped. The batches of an epoch cycle through `shapes`, which may be a function of the epoch.
    Each record gives `num_samples` clips.
    """

    def __init__(
        self,
        num_records: int,
        shapes: Sequence[BatchShape] | ShapesOfEpoch,
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
        self.num_samples = num_samples
        self._shapes: ShapesOfEpoch = shapes if callable(shapes) else lambda epoch: shapes
        self._before = [0]
        self._divisions: dict[tuple[BatchShape, ...], list[tuple[slice, BatchShape]]] = {}

    def steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return len(self._division(epoch))

    def steps_before(self, epoch: int) -> int:
        """Return the number of steps of all epochs before this one."""
        while len(self._before) <= epoch:
            self._before.append(self._before[-1] + self.steps(len(self._before) - 1))
        return self._before[epoch]

    def records_of(self, epoch: int, step: int) -> list[int]:
        """Return the records of a step on all processes."""
        part, _ = self._division(epoch)[step]
        return [int(record) for record in self._order(epoch)[part]]

    def after(self, epoch: int) -> EpochBatches:
        """Return the batches from the end of an epoch on, all in the last of its shapes."""
        return EpochBatches(
            self.num_records,
            [self._shapes(epoch)[-1]],
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            start=(epoch + 1, 0),
            num_samples=self.num_samples,
        )

    def _order(self, epoch: int) -> np.ndarray[Any, Any]:
        return generator(self.seed, Stream.ORDER, epoch).permutation(self.num_records)

    def _division(self, epoch: int) -> list[tuple[slice, BatchShape]]:
        """Return which of the ordered records are in each step of an epoch, and the shape of its batch."""
        shapes = tuple(self._shapes(epoch))
        if shapes not in self._divisions:
            steps: list[tuple[slice, BatchShape]] = []
            first = 0
            for shape in itertools.cycle(shapes):
                end = first + shape.batch_size // self.num_samples
                if end > self.num_records:
                    break
                steps.append((slice(first, end), shape))
                first = end
            self._divisions[shapes] = steps
        return self._divisions[shapes]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_step = self.start
        while True:
            order = self._order(epoch)
            for part, shape in self._division(epoch)[first_step:]:
                count = part.stop - part.start
                mine = slice(
                    part.start + self.rank * count // self.world_size,
                    part.start + (self.rank + 1) * count // self.world_size,
                )
                yield [SampleKey(epoch, int(record), *shape[1:]) for record in order[mine]]
            epoch, first_step = epoch + 1, 0


class ClipBatch(NamedTuple):
    """(B, 3, T, S, S) uint8 clips in channels-last layout, (B,) labels or (B, N) with gaps (see
    label_tensor), and unreadable videos.

    `clips` is empty if a sample is.
    """

    clips: Tensor
    labels: Tensor
    failures: list[Failure]


def collate_clips(samples: Sequence[TrainSample]) -> ClipBatch:
    failures = [failure for sample in samples for failure in sample.failures]
    labels = _for_sending(label_tensor([label for sample in samples for label in sample.labels]))
    if not all(sample.clips for sample in samples):
        return ClipBatch(torch.empty(0, dtype=torch.uint8), labels, failures)
    ready = [clip for sample in samples for clip in sample.clips]
    clips = torch.empty(
        (len(ready), *ready[0].shape), dtype=torch.uint8, memory_format=torch.channels_last_3d
    )
    for target, clip in zip(clips, ready, strict=True):
        target.copy_(clip)
    return ClipBatch(_for_sending(clips), labels, failures)


def collate_views(videos: list[VideoViews]) -> list[VideoViews]:
    return [video._replace(frames=_for_sending(video.frames)) for video in videos]


def _for_sending(tensor: Tensor) -> Tensor:
    """In a worker, move the tensor to shared memory. If the queue's own thread did it, a lack of memory would
    lose the batch and the run would wait forever.
    """
    if get_worker_info() is None or not tensor.numel():
        return tensor
    try:
        return tensor.share_memory_()  # type: ignore[no-untyped-call,no-any-return]
    except RuntimeError as error:
        raise InputError(_no_shared_memory(str(error))) from None


def _no_shared_memory(reason: str) -> str:
    return f"a decoding worker ran out of shared memory ({reason.splitlines()[0]}); {_MORE_SHARED_MEMORY}"


_MORE_SHARED_MEMORY = (
    "if `df /dev/shm` shows it full, give it more (docker run --shm-size 8g), or lower "
    "DATA_LOADER.NUM_WORKERS"
)


class Watched(Dataset[Any]):
    """A dataset whose workers note in shared memory what they read: (pid, record or -1, since when)."""

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
    """Batches of a DataLoader, whose workers end with the `with` block.

    If a worker dies, fails or hangs, the next batch raises an InputError that names the file being read. On
    Linux workers are forked: Python 3.14 would start them by a server, which they would take for a new parent
    and end.
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
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            worker_init_fn=_init_worker,
            **options,
        )
        self._batches: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        others = set(multiprocessing.active_children())
        with starting_workers():
            batches = iter(self.loader)
        workers = {process.pid for process in set(multiprocessing.active_children()) - others}
        _deaths.hold_back()
        self._batches = self._watch(batches, workers)
        return self._batches

    def __enter__(self) -> WatchedLoader[Batch]:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._batches is not None:
            self._batches.close()

    def _watch(self, batches: Iterator[Batch], workers: set[int | None]) -> Generator[Batch, None, None]:
        try:
            while True:
                with _deaths.raised(workers):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        except (RuntimeError, InputError) as error:
            explanation = self._explain(str(error))
            if explanation is None:
                raise
        except (OSError, EOFError):  # a batch that its worker can no longer send
            pid = _dead(workers)
            if not pid:
                raise
            explanation = self._killed(pid)
        finally:
            del batches  # ends the workers, unless a stored exception refers to them
        raise InputError(explanation)

    def _explain(self, message: str) -> str | None:
        """Return what happened to a worker, from DataLoader's message and the notes; None for a bug."""
        if message.startswith("Caught InputError"):  # the error follows the traceback of the worker
            return message.rstrip().splitlines()[-1].partition(": ")[2]
        if not message.startswith("DataLoader"):
            return None
        if "shared memory" in message:
            return _no_shared_memory(message)
        if _pid(message):
            return self._killed(_pid(message))
        late = f"no batch came for {self.timeout:.0f} s (DATA_LOADER.TIMEOUT)"
        reading = self._reading()
        if not reading:
            return f"{late}, and no decoding worker is reading a video; {_MORE_SHARED_MEMORY}"
        pid, record, since = min(reading, key=lambda note: note[2])
        seconds = (time.monotonic_ns() - since) / 1e9
        return (
            f"{late}; a decoding worker (pid {pid}) has been reading {self._path(record)} for "
            f"{seconds:.0f} s; verify the file, or allow more time"
        )

    def _killed(self, pid: int) -> str:
        what = "while it read no video; lower"
        for reader, record, _ in self._reading():
            if reader == pid:
                what = f"while reading {self._path(record)}; verify the file, or lower"
        return (
            f"a decoding worker (pid {pid}) was killed, perhaps for want of memory, {what} "
            "DATA_LOADER.NUM_WORKERS"
        )

    def _reading(self) -> list[list[int]]:
        """Return the notes of workers that are reading a video."""
        return [note for note in self.watched.notes.tolist() if note[1] >= 0]

    def _path(self, record: int) -> str:
        records: Sequence[Record] = self.watched.dataset.records
        return records[record].path


class _Deaths:
    """Worker deaths. PyTorch raises them from a signal handler, anywhere in the program; here they are raised
    when a batch of that worker's loader is requested.
    """

    def __init__(self) -> None:
        self._errors: dict[int, RuntimeError] = {}
        self._expected: set[int | None] = set()
        self._report: Any = None

    def hold_back(self) -> None:
        """Take over PyTorch's signal handler; call after the first workers have started."""
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._receive:
            self._report = handler
            signal.signal(signal.SIGCHLD, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        try:
            self._report(number, frame)
        except RuntimeError as error:
            pid = _pid(str(error))
            if pid in self._expected:
                raise
            self._errors[pid] = error

    @contextmanager
    def raised(self, workers: set[int | None]) -> Iterator[None]:
        """Raise the death of one of these workers within the block."""
        self._expected = workers
        try:
            for pid in self._errors.keys() & workers:
                raise self._errors.pop(pid)
            yield
        finally:
            self._expected = set()


_deaths = _Deaths()


def _dead(workers: set[int | None]) -> int:
    """Return a worker that died within the last second, or 0."""
    for _ in range(20):
        dead = workers - {process.pid for process in multiprocessing.active_children()}
        if dead:
            return dead.pop() or 0
        time.sleep(0.05)
    return 0


def _pid(message: str) -> int:
    """Return the first worker named in a message of DataLoader, or 0."""
    named = re.search(r"\(pid(?:\(s\))? (\d+)", message)
    return int(named[1]) if named else 0


def clip_loader(
    dataset: ClipDataset, batches: EpochBatches, *, num_workers: int, pin_memory: bool, timeout: float = 0.0
) -> WatchedLoader[ClipBatch]:
    """Load batches of training clips, endlessly from the start of `batches`. `timeout`: maximum seconds per
    batch; 0: no limit.
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
    done: Collection[int] = (),
) -> WatchedLoader[list[VideoViews]]:
    """Load groups of whole videos. The groups do not depend on the number of processes, which take turns, and
    are not padded. `done`: records whose groups are skipped.
    """
    groups = [
        list(range(first, min(first + videos_at_once, len(dataset))))
        for first in range(0, len(dataset), videos_at_once)
        if first not in done
    ]
    return WatchedLoader(
        dataset,
        num_workers=num_workers,
        timeout=timeout,
        batch_sampler=groups[rank::world_size],
        collate_fn=collate_views,
        pin_memory=pin_memory,
    )


def _init_worker(worker: int) -> None:
    follow_parent()
