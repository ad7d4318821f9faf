"""The memory of a training process and its decoding workers over an epoch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import ClipDataset
from ..data.loader import BatchShape, EpochBatches, clip_loader
from ..data.packed import PackedRecords
from ..data.records import Record
from ..data.sampling import DenseSampler
from ..data.transforms import Compose, ShortSideJitter

FEWEST = 500  # records, and per batch


class Grey:
    """A video of grey frames, for any record."""

    fps = 25.0

    def __init__(self, record: Record) -> None:
        self.name = record.name

    def __len__(self) -> int:
        return 4

    def __enter__(self) -> Grey:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), 40, 40, 3, dtype=torch.uint8)


def memory_of(pids: Sequence[int]) -> float:
    """Return the memory of processes in MB, counting shared pages once (Linux)."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return (
        sum(int(size) for text in texts for size in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)) / 1000
    )


def over_an_epoch(num_records: int) -> dict[str, list[float]]:
    """Return the memory in MB with packed records and with a list: after 10, 40 and 70 % of an epoch, and at
    its end.
    """
    records = [
        Record(
            f"class {i % 400:03d}/{i:011d}_000000_000010.mp4",
            f"/data/k400/class {i % 400:03d}/{i:011d}_000000_000010.mp4",
            0,
        )
        for i in range(num_records)
    ]
    kinds: dict[str, Callable[[], Sequence[Record]]] = {
        "packed": lambda: PackedRecords(records),
        "list": lambda: records,
    }
    results = {}
    for name, make in kinds.items():
        data = ClipDataset(
            make(),
            sampler=DenseSampler(1),
            open_video=Grey,
            crop=ShortSideJitter(32, 32, 40),
            flip=None,
            augment=Compose([]),
            seed=0,
        )
        batches = EpochBatches(len(records), [BatchShape(FEWEST, 1, 32)], seed=0)
        with clip_loader(data, batches, num_workers=2, pin_memory=False) as loader:
            iterator: Any = iter(loader.loader)
            used = []
            for step in tqdm(range(batches.steps(0)), desc=name, leave=False):
                next(iterator)
                if step in [batches.steps(0) * tenths // 10 for tenths in (1, 4, 7)] + [batches.steps(0) - 1]:
                    used.append(memory_of([os.getpid(), *(worker.pid for worker in iterator._workers)]))
        results[name] = used
    return results
