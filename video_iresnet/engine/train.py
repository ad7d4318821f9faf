"""One epoch of training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm import tqdm

from ..data.dataset import Failure
from ..data.loader import ClipBatch
from ..data.mixing import Targets
from ..data.records import Record
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.logging import Stats, log, memory
from ..runtime.seeding import Stream, generator, integer_seed
from ..runtime.signals import StopRequest
from .metrics import TrainSums, train_stats
from .optim import set_learning_rate
from .schedule import Schedule


class BadVideos:
    """The unreadable videos of a run: each is logged once, and too many of them end it. The processes agree
    on them.
    """

    def __init__(self, records: Sequence[Record], max_share: float) -> None:
        self.records = records
        self.max_share = max_share
        self.reasons: dict[int, str] = {}

    def add(self, failures: Sequence[Failure]) -> None:
        """Raises InputError when the share of unreadable videos exceeds the largest one allowed."""
        for record, reason in failures:
            if record not in self.reasons:
                self.reasons[record] = reason
                log.warning(
                    "cannot read %s: %s; another clip takes its place (unreadable so far: %d of %d)",
                    self.records[record].path, reason, len(self.reasons), len(self.records),
                )  # fmt: skip
        if len(self.reasons) > self.max_share * len(self.records):
            first = next(iter(self.reasons))
            raise InputError(
                f"{len(self.reasons)} of {len(self.records)} training videos cannot be read, more than the "
                f"share DATA.MAX_BAD_SHARE {self.max_share} allows; the first is {self.records[first].path} "
                f"({self.reasons[first]})"
            )


@dataclass
class Trainer:
    """What a step needs. `batches` never ends; `to_network` turns uint8 clips into the network's input,
    `targets` labels into shares of classes.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    batches: Iterator[ClipBatch]
    to_network: Callable[[Tensor], Tensor]
    targets: Targets
    bad_videos: BadVideos
    processes: Processes
    stop: StopRequest
    stats: Stats | None
    steps_per_epoch: int
    num_epochs: int
    log_period: int
    seed: int


@dataclass
class EpochResult:
    """How far an epoch got, and its sums over all processes: loss, top-1 hits, top-5 hits, clips."""

    steps: int
    sums: list[float]
    seconds: float
    waiting_share: float


@dataclass
class Clock:
    """Where the time of the steps goes. `waiting` is the time that the network waited for data."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def fields(self) -> dict[str, float]:
        steps = max(self.steps, 1)
        return {
            "dt": self.seconds / steps,
            "dt_data": self.waiting / steps,
            "dt_net": (self.seconds - self.waiting) / steps,
        }


def train_epoch(trainer: Trainer, epoch: int, first_step: int, sums: list[float] | None) -> EpochResult:
    """Run the steps of one epoch from `first_step` on, with the sums of the steps before; ends early on a
    request to stop.

    Raises InputError, on all processes, when the loss of one is not a number, one has no batch, or too many
    videos are unreadable.
    """
    device = trainer.processes.device
    steps_total = trainer.steps_per_epoch * trainer.num_epochs
    trainer.model.train()
    own_sums = TrainSums(device, sums if trainer.processes.is_main else None)
    logged = own_sums.values()
    clock, epoch_clock = Clock(), Clock()
    bar = tqdm(
        total=trainer.steps_per_epoch,
        initial=first_step,
        desc=f"epoch {epoch + 1}/{trainer.num_epochs}",
        leave=False,
        disable=None if trainer.stats else True,
    )
    for step in range(first_step, trainer.steps_per_epoch):
        before = time.perf_counter()
        batch, error = _next_batch(trainer, step)
        waited = time.perf_counter() - before
        stop = _agree(trainer, batch.failures, error)

        done = epoch * trainer.steps_per_epoch + step
        learning_rate = trainer.schedule(done / steps_total)
        set_learning_rate(trainer.optimizer, learning_rate)
        torch.manual_seed(integer_seed(trainer.seed, Stream.STEP, done, trainer.processes.rank))
        labels = batch.labels.to(device, non_blocking=True)
        clips = trainer.to_network(batch.clips.to(device, non_blocking=True))
        clips, targets = trainer.targets(
            clips, labels, generator(trainer.seed, Stream.MIXING, done, trainer.processes.rank)
        )
        logits = trainer.model(clips)
        loss = F.cross_entropy(logits, targets)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.optimizer.step()

        own_sums.add(loss, logits, labels)
        for timer in (clock, epoch_clock):
            timer.steps += 1
            timer.waiting += waited
        bar.update()
        if (step + 1) % trainer.log_period == 0:
            now = own_sums.values()
            window = train_stats([b - a for a, b in zip(logged, now, strict=True)])
            _log_step(trainer, epoch, step, window | clock.fields() | {"lr": learning_rate}, bar)
            logged, clock = now, Clock()
        if stop:
            break
    bar.close()
    totals = [sum(values) for values in zip(*trainer.processes.gather(own_sums.values()), strict=True)]
    trainer.processes.raise_first(_not_finite(totals[0], epoch, step))
    return EpochResult(step + 1, totals, epoch_clock.seconds, epoch_clock.waiting / epoch_clock.seconds)


def _next_batch(trainer: Trainer, step: int) -> tuple[ClipBatch, InputError | None]:
    """The batch of a step, or why this process has none."""
    try:
        batch = next(trainer.batches)
    except InputError as error:
        return ClipBatch(torch.empty(0), torch.empty(0), []), error
    if batch.clips.numel():
        return batch, None
    return batch, InputError(
        f"no clip for step {step + 1}: all videos tried cannot be read, the last because "
        f"{batch.failures[-1].reason}"
    )


def _agree(trainer: Trainer, failures: list[Failure], error: InputError | None) -> bool:
    """Tell all processes of unreadable videos, of an error of one, which all raise then, and of a request to
    stop; returns whether to stop after this step.
    """
    stops, bad, errors = trainer.processes.sum(
        [int(bool(trainer.stop)), len(failures), int(error is not None)]
    )
    if bad:
        everywhere = [failure for some in trainer.processes.gather(failures) for failure in some]
        trainer.bad_videos.add(everywhere)
    if errors:
        trainer.processes.raise_first(error)
    return stops > 0


def _not_finite(loss: float, epoch: int, step: int) -> InputError | None:
    if math.isfinite(loss):
        return None
    return InputError(
        f"the loss is {loss} in epoch {epoch + 1} by step {step + 1}; try a lower SOLVER.BASE_LR or a longer "
        "SOLVER.WARMUP_EPOCHS"
    )


def _log_step(trainer: Trainer, epoch: int, step: int, values: dict[str, float], bar: Any) -> None:
    """A line of PySlowFast's train_iter_ kind; loss and errors are means over the main process's clips since
    the last one.
    """
    trainer.processes.raise_first(_not_finite(values["loss"], epoch, step))
    if trainer.stats is None:
        return
    left = (trainer.num_epochs - epoch) * trainer.steps_per_epoch - step - 1
    trainer.stats.write(
        {
            "_type": "train_iter_",
            "epoch": f"{epoch + 1}/{trainer.num_epochs}",
            "iter": f"{step + 1}/{trainer.steps_per_epoch}",
            "eta": hours(left * values["dt"]),
            "gpu_mem": gpu_memory(trainer.processes.device),
            **values,
        },
        epoch * trainer.steps_per_epoch + step + 1,
    )
    bar.set_postfix_str(
        f"loss {values['loss']:.3f}, {100 * values['dt_data'] / values['dt']:.0f}% waiting for data, run "
        f"ends in {hours(left * values['dt'])}"
    )


def hours(seconds: float) -> str:
    """12345.6 -> 3:25:45."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def gpu_memory(device: torch.device) -> str:
    """The largest memory that tensors have taken, in gibibytes."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}G" if device.type == "cuda" else "0.00G"


def epoch_line(
    kind: str, epoch: int, num_epochs: int, seconds: float, device: torch.device
) -> dict[str, Any]:
    """The fields that PySlowFast's train_epoch and val_epoch lines share."""
    return {
        "_type": kind,
        "epoch": f"{epoch + 1}/{num_epochs}",
        "time_diff": seconds,
        "gpu_mem": gpu_memory(device),
        "RAM": memory(),
    }
