"""What the times of a training mean, in words."""

from __future__ import annotations

import math

# The fraction of waiting from which loading is said to bound a run; workers that keep up leave about none.
BOUND = 0.1


def loading_verdict(waiting_fraction: float, num_workers: int, usable_cores: int, remedy: str) -> str | None:
    """Say that loading bounds a training and what would help, or return None if it does not.

    `waiting_fraction`: of the time of the steps, spent waiting for data. `num_workers`: decoding workers per
    process, 0 if it decodes itself. `usable_cores`: the cores for one process and its workers. `remedy`: what
    makes loading cheaper.
    """
    if not waiting_fraction >= BOUND:
        return None
    text = f"{100 * waiting_fraction:.0f} % of the time is spent waiting for data"
    needed = workers_needed(waiting_fraction, num_workers)
    if needed is not None and needed <= usable_cores:
        return f"{text}: {_count(needed, 'worker')} would do, or {remedy}; see tools/benchmark.py data"
    cores = _count(usable_cores, "core")
    missing = f"{_count(needed, 'worker')}, but has {cores}" if needed else f"more workers than its {cores}"
    return f"{text}: a process would need {missing}; try {remedy}, and see tools/benchmark.py data"


def workers_needed(waiting_fraction: float, num_workers: int) -> int | None:
    """Return the number of workers that load a batch in the time that a step takes otherwise; None if a step
    takes no other time.

    Now the workers take a whole step for a batch. Without workers, the process takes its time of waiting.
    """
    computing = 1 - waiting_fraction
    if computing <= 0:
        return None
    now = num_workers or waiting_fraction
    return max(1, math.ceil(now / computing - 1e-6))  # 8 / (1 - 0.9) is 80 and a rounding error


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
