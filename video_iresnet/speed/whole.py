"""Training and testing from videos, end to end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .. import build
from ..config import Config
from ..data.loader import ClipBatch, WatchedLoader, clip_loader, view_loader
from ..data.packed import PackedRecords
from ..data.records import Record
from ..engine.evaluate import evaluate
from ..engine.step import Step
from ..engine.train import readable
from ..runtime.devices import synchronize
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.signals import StopRequest
from .data import plain_views
from .timing import measure

WARM_UP = 3  # steps that are not timed, which also fill the loader's queues


class Training(NamedTuple):
    """Clips per second of loading alone, of the step alone, and of both; the fraction of the time of both
    that is spent waiting for data.
    """

    loading: float
    step: float
    both: float
    waiting: float


def training(
    cfg: Config, records: PackedRecords, step: Step, num_steps: int, processes: Processes
) -> Training:
    """Train for some steps from videos; returns what bounds it. The step's weights change. Raises InputError
    with what fits if the memory does not suffice.
    """
    device, clips = step.device, cfg.TRAIN.BATCH_SIZE
    step.train()
    kept: list[ClipBatch] = []
    with _loader(cfg, records, device) as loader:
        batches = readable(iter(loader), processes)
        for _ in range(WARM_UP):
            kept.append(next(batches))
        begin = time.perf_counter()
        for _ in range(num_steps):
            next(batches)
        loading = time.perf_counter() - begin
    endless = enumerate(itertools.cycle(kept))

    def one() -> object:
        done, batch = next(endless)
        return step(batch, done, 0.5)

    try:
        one()
    except torch.OutOfMemoryError:
        raise InputError(step.advise_on_memory(kept[0])) from None
    alone = measure({"step": lambda: one}, device, num_steps)["step"].seconds
    with _loader(cfg, records, device) as loader:
        seconds, waiting = _train(step, readable(iter(loader), processes), num_steps)
    return Training(
        clips * num_steps / loading, clips / alone, clips * num_steps / seconds, waiting / seconds
    )


def _loader(cfg: Config, records: PackedRecords, device: torch.device) -> WatchedLoader[ClipBatch]:
    data = build.build_training_data(cfg, records)
    return clip_loader(data, build.build_batches(cfg, len(records)), **build.loading(cfg, device))


def _train(step: Step, batches: Iterator[ClipBatch], num_steps: int) -> tuple[float, float]:
    """Return the seconds of some steps, and those of waiting for data in them."""
    for done in range(WARM_UP):
        step(next(batches), done, 0.5)
    synchronize(step.device)
    start, waiting = time.perf_counter(), 0.0
    for done in range(num_steps):
        begin = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - begin
        step(batch, done, 0.5)
    synchronize(step.device)
    return time.perf_counter() - start, waiting


def testing(cfg: Config, records: Sequence[Record], processes: Processes) -> float:
    """Return videos per second of a test with untrained weights, as run_net.py does it."""
    device = processes.device
    data = build.build_test_data(cfg, records)
    tested = build.build_tested(cfg, build.build_network(cfg, device).eval(), processes)
    size, loading = build.videos_at_once(cfg, data), build.loading(cfg, device)
    begin = time.perf_counter()
    with view_loader(data, videos_at_once=size, rank=0, world_size=1, **loading) as loader:
        evaluate(
            tested.network,
            loader,
            build.build_task(cfg, device),
            lambda videos: None,
            precision=tested.precision,
            crop_size=data.crop_size,
            batch_size=cfg.TEST.BATCH_SIZE,
            checks={},
            processes=processes,
            stop=StopRequest(signals=()),  # Ctrl-C ends a benchmark at once
        )
    return len(records) / (time.perf_counter() - begin)


@torch.inference_mode()
def plain_testing(cfg: Config, records: Sequence[Record], device: torch.device) -> float:
    """Return videos per second of a test that decodes and classifies one view at a time, in float32."""
    data = build.build_test_data(cfg, records)
    network = build.build_network(cfg, device).eval()
    begin = time.perf_counter()
    for record in records:
        for view in plain_views(data, record):
            network(view[None].to(device)).softmax(1).cpu()
    return len(records) / (time.perf_counter() - begin)
