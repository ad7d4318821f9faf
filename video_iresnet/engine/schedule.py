"""Learning rates as functions of progress, the fraction of all steps that are done, in [0, 1], beside those
of fvcore.common.param_scheduler.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]


def steps(base_lr: float, starts: Sequence[float], factors: Sequence[float]) -> Schedule:
    """`factors[i] * base_lr` from progress `starts[i]` on; the first start is 0."""
    return lambda progress: base_lr * factors[bisect.bisect_right(starts, progress) - 1]


def warm_up(schedule: Schedule, start_lr: float, fraction: float) -> Schedule:
    """In the first `fraction` of the run, a line from `start_lr` to what `schedule` gives at its end; then
    `schedule`, as in PySlowFast.
    """

    def warmed(progress: float) -> float:
        if progress >= fraction:
            return schedule(progress)
        return start_lr + (schedule(fraction) - start_lr) * progress / fraction

    return warmed
