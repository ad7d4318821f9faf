"""One epoch of training."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.dataset import Failure
from ..data.loader import ClipBatch
from ..data.records import Record
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.logging import log
from ..runtime.signals import StopRequest
from ..runtime.storage import append_whole
from .checkpoint import Position
from .journal import Journal, Meter
from .step import Step

# The file in OUTPUT_DIR with a line `epoch,step,path` for each video of such a step.
NONFINITE = "nonfinite_steps.csv"


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


class BadSteps:
    """The steps whose loss or gradient was not finite, on all processes alike. Their videos are listed in a
    file; more of them than `tolerated` in a run end it.

    `videos_of`: (epoch, step) -> the paths of the videos in that step's batch on all processes.
    """

    def __init__(
        self, videos_of: Callable[[int, int], Sequence[str]], file: Path | None, tolerated: int = 0
    ) -> None:
        self.videos_of = videos_of
        self.file = file
        self.tolerated = tolerated

    def add(self, steps: Sequence[int], position: Position) -> None:
        """Count the steps of the current epoch. Raises InputError if there are too many. The weights are as
        before these steps.
        """
        for step in steps:
            position.skipped += 1
            if self.file:
                lines = [
                    f"{position.epoch + 1},{step + 1},{path}\n"
                    for path in self.videos_of(position.epoch, step)
                ]
                append_whole(self.file, "".join(lines).encode())
            log.warning(
                "the loss or the gradient of epoch %d, step %d was not finite, so it changed no weights",
                position.epoch + 1, step + 1,
            )  # fmt: skip
        if steps and position.skipped > self.tolerated:
            raise InputError(
                f"the loss or the gradient was not finite in {position.skipped} step(s), the last in epoch "
                f"{position.epoch + 1}, step {steps[-1] + 1} (SOLVER.SKIP_NONFINITE_STEPS is "
                f"{self.tolerated}); {NONFINITE} lists their videos, and the last checkpoint is intact; try "
                "a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_EPOCHS, or SOLVER.CLIP_GRAD_L2NORM"
            )


@dataclass(frozen=True)
class Agreement:
    """What the processes decide together. `save_due`: whether it is time for a checkpoint, by the clock of
    the main process; False on the others.
    """

    processes: Processes
    stop: StopRequest
    bad_videos: BadVideos
    bad_steps: BadSteps
    save_due: Callable[[], bool] = lambda: False

    def reach(self, failures: list[Failure], error: InputError | None) -> tuple[bool, bool]:
        """Exchange unreadable videos, errors (which all processes raise) and requests to stop. Returns
        whether to stop after this step, and whether to save a checkpoint.
        """
        flags = [bool(self.stop), self.save_due(), error is not None]
        bad, stops, saves, errors = self.processes.sum([len(failures), *map(int, flags)])
        if bad:
            everywhere = [failure for some in self.processes.gather(failures) for failure in some]
            self.bad_videos.add(everywhere)
        if errors:
            self.processes.raise_first(error)
        return stops > 0, saves > 0

    def check_steps(self, are_bad: list[bool], position: Position) -> None:
        """Exchange which of the last steps were not finite on any process; see BadSteps."""
        everywhere = self.processes.sum([int(is_bad) for is_bad in are_bad])
        first = position.step - len(everywhere)
        with self.processes.together():
            self.bad_steps.add([first + i for i, count in enumerate(everywhere) if count], position)


def train_epoch(
    step: Step,
    batches: Iterator[ClipBatch],
    position: Position,
    agreement: Agreement,
    journal: Journal,
    save: Callable[[], object] = lambda: None,
) -> bool:
    """Run the steps of an epoch from `position`, which is updated. Returns False if a request to stop ended
    it early. `save`: saves a checkpoint at `position`; called after a step where one is due, as
    `agreement` says, but not after the last one.

    Raises InputError on all processes if one has no batch, if too many steps are not finite, or if too many
    videos are unreadable.
    """
    processes, num_steps = agreement.processes, journal.batches.steps(position.epoch)
    before = journal.batches.steps_before(position.epoch)
    step.train()
    meter = Meter(step.device, position.sums if processes.is_main else None)
    stopping = saving = False
    with journal.bar(position) as bar, _no_garbage_collection():
        while position.step < num_steps and not stopping:
            with meter.waiting():
                batch, error = _next_batch(batches, position.step)
            with meter.communicating():
                stopping, saving = agreement.reach(batch.failures, error)
            done = before + position.step
            # Epochs of more and fewer steps make equal progress.
            progress = (position.epoch * num_steps + position.step) / (num_steps * journal.num_epochs)
            try:
                meter.add(step(batch, done, progress))
            except torch.OutOfMemoryError:
                agreement.reach([], InputError(step.advise_on_memory(batch)))
            journal.trace.step(done)
            position.step += 1
            bar.update()
            processes.expect_the_next_step()
            saving = saving and not stopping and position.step < num_steps
            if saving or position.step % journal.log_period == 0:
                agreement.check_steps(meter.bad_steps(), position)
                journal.step(position, step.task.stats, meter, step.learning_rate, bar)
                meter.start_window()
                gc.collect(1)
            if saving:
                position.sums = _shared(step, meter, processes)
                save()
    agreement.check_steps(meter.bad_steps(), position)
    position.sums = _shared(step, meter, processes)
    if position.step < num_steps:
        return False
    if not position.sums[-1]:
        raise InputError(f"no step of epoch {position.epoch + 1} had a finite loss; see {NONFINITE}")
    values = step.task.stats(position.sums)
    position.epoch, position.step, position.sums = position.epoch + 1, 0, None
    journal.epoch(position, values, meter.epoch)
    return True


def _shared(step: Step, meter: Meter, processes: Processes) -> list[float]:
    """Broadcast the running statistics; return the sums of the epoch so far over all processes."""
    step.share_statistics()
    return [sum(values) for values in zip(*processes.gather(meter.sums()), strict=True)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in the block by itself: a pause of one process would stop
    the others too. The loop collects at the same steps on all.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def readable(batches: Iterator[ClipBatch], processes: Processes) -> Iterator[ClipBatch]:
    """Yield the batches. Raises InputError on all processes if that of one has no clips."""
    for number in itertools.count():
        batch, error = _next_batch(batches, number)
        processes.raise_first(error)
        yield batch


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
