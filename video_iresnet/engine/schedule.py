"""Learning rate schedules: functions of progress in [0, 1]. See also fvcore.common.param_scheduler."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]


def steps(base_lr: float, starts: Sequence[float], factors: Sequence[float]) -> Schedule:
    """Return the schedule `factors[i] * base_lr` from progress `starts[i]`; the first start is 0."""
    return lambda progress: base_lr * factors[bisect.bisect_right(starts, progress) - 1]


def warm_up(schedule: Schedule, start_lr: float, fraction: float) -> Schedule:
    """Return `schedule` with a linear warm-up from `start_lr` over the first `fraction`, as in PySlowFast."""

    def warmed(progress: float) -> float:
        if progress >= fraction:
            return schedule(progress)
        return start_lr + (schedule(fraction) - start_lr) * progress / fraction

    return warmed


def later(schedule: Schedule, start: float) -> Schedule:
    """Return `schedule` over the progress from `start` to 1; its first value before."""
    return lambda progress: schedule(max(0.0, progress - start) / (1 - start))
