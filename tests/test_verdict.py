"""What is said of a training that waits for data."""

from __future__ import annotations

import heapq

import pytest

from video_iresnet.engine.verdict import BOUND, loading_verdict, workers_needed


def waiting_of(num_workers: int, loading: float, computing: float) -> float:
    """The fraction of waiting in a simulated training: each worker takes `loading` seconds for a batch, the
    network `computing`; two batches a worker are loaded ahead, and without workers none.
    """
    if num_workers == 0:
        return loading / (loading + computing)
    ready = [loading] * num_workers  # when each worker has its next batch
    heapq.heapify(ready)
    now = waited = start = 0.0
    for step in range(2000):
        if step == 1000:
            start, waited = now, 0.0
        batch = heapq.heappop(ready)
        waited += max(0.0, batch - now)
        now = max(now, batch) + computing
        heapq.heappush(ready, max(batch, now - 2 * num_workers * computing) + loading)
    return waited / (now - start)


@pytest.mark.parametrize(
    ("num_workers", "loading", "computing"), [(0, 3, 1), (0, 0.5, 1), (1, 2.5, 1), (4, 8.3, 0.9), (8, 40, 1)]
)
def test_the_workers_named_are_those_that_a_training_needs(
    num_workers: int, loading: float, computing: float
) -> None:
    waiting = waiting_of(num_workers, loading, computing)
    assert waiting > BOUND
    needed = workers_needed(waiting, num_workers)
    assert needed is not None
    assert waiting_of(needed, loading, computing) == pytest.approx(0, abs=1e-9)
    assert needed == 1 or waiting_of(needed - 1, loading, computing) > 0.01


def test_the_verdict_in_words() -> None:
    see = "see tools/benchmark.py data"
    transcoding = "transcoding (data_prep/transcode.py)"
    assert loading_verdict(0.62, 4, 16, transcoding) == (
        f"62 % of the time is spent waiting for data: 11 workers would do, or {transcoding}; {see}"
    )
    assert loading_verdict(0.5, 0, 1, transcoding) == (
        f"50 % of the time is spent waiting for data: 1 worker would do, or {transcoding}; {see}"
    )
    assert loading_verdict(0.9, 8, 16, transcoding) == (
        "90 % of the time is spent waiting for data: a process would need 80 workers, but has 16 cores; try "
        f"{transcoding}, and {see}"
    )
    assert loading_verdict(1.0, 2, 2, transcoding) == (
        "100 % of the time is spent waiting for data: a process would need more workers than its 2 cores; "
        f"try {transcoding}, and {see}"
    )


@pytest.mark.parametrize("fraction", [0.0, 0.05, BOUND - 1e-9, float("nan")])
def test_a_run_that_does_not_wait_is_not_bound(fraction: float) -> None:
    assert loading_verdict(fraction, 2, 4, "transcoding") is None
