"""The log of a training: lines, records and curves of steps, epochs and validations."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.loader import EpochBatches
from ..runtime.devices import peak_memory
from ..runtime.logging import Stats, log, memory
from ..runtime.storage import atomic_write
from .checkpoint import Position
from .step import Outcome

ValidationRecord: TypeAlias = Callable[[Mapping[str, float], Mapping[str, float]], dict[str, float]]
"""See Task.record."""


@dataclass
class Clock:
    """Time of steps, in seconds, and its parts: `waiting` for data, `communicating` with other processes."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waiting: float = 0.0
    communicating: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def fields(self) -> dict[str, float]:
        """Return the seconds per step: all, waiting for data, messages between processes, and the rest, which
        is the device's.
        """
        steps = max(self.steps, 1)
        return {
            "dt": self.seconds / steps,
            "dt_data": self.waiting / steps,
            "dt_comm": self.communicating / steps,
            "dt_net": (self.seconds - self.waiting - self.communicating) / steps,
        }


class Meter:
    """Sums and times over the steps of an epoch on this process. Sums stay on the device, so adding does not
    synchronize. A window begins after the last log line.
    """

    def __init__(self, device: torch.device, sums: list[float] | None) -> None:
        self._sums = torch.tensor(sums or 0.0, dtype=torch.float64, device=device)
        self._logged = sums or []
        self._norms: list[Tensor] = []
        self._bad: list[Tensor] = []
        self.epoch, self.window = Clock(), Clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        before = time.perf_counter()
        yield
        for clock in (self.epoch, self.window):
            clock.waiting += time.perf_counter() - before

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Count the block as messages between processes."""
        before = time.perf_counter()
        yield
        for clock in (self.epoch, self.window):
            clock.communicating += time.perf_counter() - before

    def add(self, outcome: Outcome) -> None:
        """Add what a step tells."""
        self._sums = self._sums + outcome.sums
        self._norms.append(outcome.gradient_norm)
        self._bad.append(outcome.is_bad)
        for clock in (self.epoch, self.window):
            clock.steps += 1

    def sums(self) -> list[float]:
        """Return the sums of the epoch so far."""
        return [float(value) for value in self._sums.tolist()]

    def window_sums(self) -> list[float]:
        return [now - before for now, before in zip_longest(self.sums(), self._logged, fillvalue=0.0)]

    def bad_steps(self) -> list[bool]:
        """Return for each step of the window whether its loss or gradient was not finite."""
        return torch.stack(self._bad).tolist() if self._bad else []

    def gradient_norm(self) -> float:
        """Return the mean L2 norm of the gradient over the window."""
        return float(torch.stack(self._norms).mean())

    def start_window(self) -> None:
        self._logged, self.window = self.sums(), Clock()
        self._norms, self._bad = [], []


class Trace:
    """Writes what torch.profiler sees of the steps `first` to `last` (counted from 1 over the run) to a file
    for chrome://tracing or Perfetto; `file` None: nothing.
    """

    def __init__(self, file: Path | None = None, first: int = 0, last: int = 0) -> None:
        self.file = file
        self.first = first
        self.last = last
        self._profiler: Any = None

    def step(self, done: int) -> None:
        """Called after the step that follows `done` others."""
        if self.file is None:
            return
        if self._profiler is None and done + 2 == self.first:
            self._profiler = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profiler.start()
        elif self._profiler is not None and done + 1 == self.last:
            self._profiler.stop()
            with tempfile.TemporaryDirectory() as folder, atomic_write(self.file, "wb") as file:
                path = Path(folder) / "trace.json"
                self._profiler.export_chrome_trace(str(path))
                file.write(path.read_bytes())
            self.file, self._profiler = None, None


@dataclass(frozen=True)
class Journal:
    """The log of a training. Only the main process has `stats`, for records in PySlowFast's format.
    `verdict`: the fraction of time spent waiting for data -> what to say of it.
    """

    stats: Stats | None
    device: torch.device
    batches: EpochBatches
    num_epochs: int
    log_period: int
    num_processes: int = 1
    trace: Trace = field(default_factory=Trace)
    verdict: Callable[[float], str | None] = lambda waiting: None

    def bar(self, position: Position) -> Any:
        """Return the progress bar of an epoch."""
        return tqdm(
            total=self.batches.steps(position.epoch),
            initial=position.step,
            desc=f"epoch {position.epoch + 1}/{self.num_epochs}",
            leave=False,
            disable=None if self.stats else True,
        )

    def step(
        self,
        position: Position,
        stats: Callable[[list[float]], dict[str, float]],
        meter: Meter,
        learning_rate: float,
        bar: Any,
    ) -> None:
        """Write a record of the steps since the last one. `stats`: sums over the clips of this process ->
        means.
        """
        sums = meter.window_sums()
        if self.stats is None or not sums[-1]:  # no clips: all these steps were skipped
            return
        times = meter.window.fields()
        done = self.batches.steps_before(position.epoch) + position.step
        left = self.batches.steps_before(self.num_epochs) - done
        values = stats(sums)
        self.stats.write(
            {
                "_type": "train_iter_",
                "epoch": f"{position.epoch + 1}/{self.num_epochs}",
                "iter": f"{position.step}/{self.batches.steps(position.epoch)}",
                "eta": hours(left * times["dt"]),
                "gpu_mem": gpu_memory(self.device),
                "lr": learning_rate,
                "grad_norm": meter.gradient_norm(),
                "clips_per_second": sums[-1] * self.num_processes / meter.window.seconds,
                **times,
                **values,
            },
            done,
        )
        bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {100 * times['dt_data'] / times['dt']:.0f}% waiting for data, run "
            f"ends in {hours(left * times['dt'])}"
        )

    def epoch(self, position: Position, values: dict[str, float], clock: Clock) -> None:
        """Log an epoch. `values`: means over the clips of all processes."""
        fraction = clock.waiting / clock.seconds
        log.info(
            "epoch %d/%d: %s, %s, %.0f%% of it waiting for data",
            position.epoch, self.num_epochs, _text(values), hours(clock.seconds), 100 * fraction,
        )  # fmt: skip
        if verdict := self.verdict(fraction):
            log.info("%s", verdict)
        self._write("train_epoch", position, clock.seconds, values | {"waiting_fraction": fraction})

    def validation(self, position: Position, seconds: float, videos: str, record: ValidationRecord) -> None:
        """Log a validation, whose accuracies are the last of the history. `videos`:
        what was classified, in words.
        """
        accuracies = {name: value for name, value in position.history[-1].items() if name != "epoch"}
        best = {name: max(past[name] for past in position.history) for name in accuracies}
        self._write("val_epoch", position, seconds, record(accuracies, best))
        log.info(
            "epoch %d: validation %s (best: %s), %s",
            position.epoch, _text(accuracies), _text(best), videos,
        )  # fmt: skip

    def _write(self, kind: str, position: Position, seconds: float, values: dict[str, float]) -> None:
        """Write a record with the common fields of PySlowFast's train_epoch and val_epoch."""
        if self.stats:
            self.stats.write(
                {
                    "_type": kind,
                    "epoch": f"{position.epoch}/{self.num_epochs}",
                    "time_diff": seconds,
                    "gpu_mem": gpu_memory(self.device),
                    "RAM": memory(),
                    **values,
                },
                self.batches.steps_before(position.epoch),
            )


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def hours(seconds: float) -> str:
    """12345.6 -> 3:25:45."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def gpu_memory(device: torch.device) -> str:
    """Return the peak memory of tensors, in gibibytes."""
    return f"{peak_memory(device) / 2**30:.2f}G"
