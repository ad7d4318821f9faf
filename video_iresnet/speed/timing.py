"""Times and memory of calls, compared within one run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from ..runtime.devices import peak_memory, synchronize

Call = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """The median seconds of a call, and the peak memory of tensors in bytes (0 on a CPU)."""

    seconds: float
    memory: int


def measure(makers: Mapping[str, Callable[[], Call]], device: torch.device, repeats: int) -> dict[str, Cost]:
    """Return what each call costs, except those for which the memory does not suffice.

    On a GPU one after the other, so that each has the memory to itself. On a CPU they take turns, so that
    changes of the machine's speed affect all alike.
    """
    if device.type == "cpu":
        calls = {name: make() for name, make in makers.items()}
        return _in_turns(calls, device, repeats)
    costs: dict[str, Cost] = {}
    for name, make in makers.items():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        with suppress(torch.OutOfMemoryError):
            costs |= _in_turns({name: make()}, device, repeats)
    return costs


def _in_turns(calls: Mapping[str, Call], device: torch.device, repeats: int) -> dict[str, Cost]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    warm_up = 10 if device.type == "cuda" else 1
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Cost(statistics.median(values), peak_memory(device)) for name, values in seconds.items()}


def peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the floating-point operations per second of a large matrix product: the yardstick for all shares
    of the peak in one run.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    cost = _in_turns({"product": lambda: a @ b}, device, repeats)["product"]
    return 2 * size**3 / cost.seconds
