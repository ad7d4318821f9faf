"""One epoch of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..data.dataset import Failure
from ..data.loader import ClipBatch
from ..data.records import Record
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.logging import log
from ..runtime.signals import StopRequest
from .checkpoint import Position
from .journal import Journal, Meter
from .step import Step


class BadVideos:
    """The unreadable videos of a run, on all processes alike. Each is logged once; too many end the run."""

    def __init__(self, records: Sequence[Record], max_fraction: float) -> None:
        self.records = records
        self.max_fraction = max_fraction
        self.reasons: dict[int, str] = {}

    def add(self, failures: Sequence[Failure]) -> None:
        """Raises InputError if the fraction of unreadable videos exceeds `max_fraction`."""
        for record, reason in failures:
            if record not in self.reasons:
                self.reasons[record] = reason
                log.warning(
                    "cannot read %s: %s; replaced by another clip (unreadable so far: %d of %d)",
                    self.records[record].path, reason, len(self.reasons), len(self.records),
                )  # fmt: skip
        if len(self.reasons) > self.max_fraction * len(self.records):
            first = next(iter(self.reasons))
            raise InputError(
                f"{len(self.reasons)} of {len(self.records)} training videos cannot be read, more than the "
                f"fraction DATA.MAX_BAD_FRACTION {self.max_fraction} allows; the first is "
                f"{self.records[first].path} ({self.reasons[first]})"
            )


@dataclass(frozen=True)
class Agreement:
    """What the processes decide together."""

    processes: Processes
    stop: StopRequest
    bad_videos: BadVideos

    def reach(self, failures: list[Failure], error: InputError | None) -> bool:
        """Exchange unreadable videos, errors (which all processes raise) and requests to stop. Returns
        whether to stop after this step.
        """
        stops, bad, errors = self.processes.sum([int(bool(self.stop)), len(failures), int(error is not None)])
        if bad:
            everywhere = [failure for some in self.processes.gather(failures) for failure in some]
            self.bad_videos.add(everywhere)
        if errors:
            self.processes.raise_first(error)
        return stops > 0

    def check_loss(self, loss: float, position: Position) -> None:
        """Raises InputError on all processes if the loss of one is not finite."""
        error = InputError(
            f"the loss is {loss} in epoch {position.epoch + 1} by step {position.step}; try a lower "
            "SOLVER.BASE_LR or a longer SOLVER.WARMUP_EPOCHS"
        )
        self.processes.raise_first(None if math.isfinite(loss) else error)


def train_epoch(
    step: Step, batches: Iterator[ClipBatch], position: Position, agreement: Agreement, journal: Journal
) -> bool:
    """Run the steps of an epoch from `position`, which is updated. Returns False if a request to stop ended
    it early.

    Raises InputError on all processes if one has no batch or a loss that is not finite, or if too many videos
    are unreadable.
    """
    processes, num_steps = agreement.processes, journal.steps_per_epoch
    step.network.train()
    meter = Meter(step.device, position.sums if processes.is_main else None)
    stopping = False
    with journal.bar(position) as bar:
        while position.step < num_steps and not stopping:
            with meter.waiting():
                batch, error = _next_batch(batches, position.step)
            stopping = agreement.reach(batch.failures, error)
            done = position.epoch * num_steps + position.step
            meter.add(step(batch, done, done / (num_steps * journal.num_epochs)))
            position.step += 1
            bar.update()
            if position.step % journal.log_period == 0:
                values = step.task.stats(meter.window_sums())
                agreement.check_loss(values["loss"], position)
                journal.step(position, values | meter.window.fields() | {"lr": step.learning_rate}, bar)
                meter.start_window()
    position.sums = [sum(values) for values in zip(*processes.gather(meter.sums()), strict=True)]
    values = step.task.stats(position.sums)
    agreement.check_loss(values["loss"], position)
    step.share_statistics()
    if position.step < num_steps:
        return False
    position.epoch, position.step, position.sums = position.epoch + 1, 0, None
    journal.epoch(position, values, meter.epoch)
    return True


def _next_batch(batches: Iterator[ClipBatch], step: int) -> tuple[ClipBatch, InputError | None]:
    """Return the batch of a step, or the reason why there is none."""
    try:
        batch = next(batches)
    except InputError as error:
        return ClipBatch(torch.empty(0), torch.empty(0), []), error
    if batch.clips.numel():
        return batch, None
    return batch, InputError(
        f"no clip for step {step + 1}: all videos tried cannot be read, the last because "
        f"{batch.failures[-1].reason}"
    )
