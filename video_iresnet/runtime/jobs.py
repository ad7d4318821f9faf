"""The same work for many items: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from .errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Items that are handed out ahead of the results: enough to keep every process busy, few enough that a stop loses little.
AHEAD = 4


def run_jobs(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, ray_address: str | None = None, description: str
) -> Iterator[tuple[Item, Result]]:
    """Apply `work`, a module-level function, to every item; yields (item, result) as they end, under a progress bar.

    `workers`: processes of this machine; 0 works in this one. `ray_address`: run on that cluster instead ("auto": the one of this machine), one
    item a CPU; files must be reachable under the same paths on every node. `work` reports failures that belong to an item in its result; an
    exception ends everything. Stop by closing the generator, or by Ctrl-C.

    Raises InputError where Ray is missing or its cluster cannot be reached, or where a process of this machine was killed.
    """
    if ray_address is not None:
        results = _on_ray(work, items, ray_address)
    elif workers == 0:
        results = ((item, work(item)) for item in items)
    else:
        results = _in_processes(work, items, workers)
    with tqdm(total=len(items), desc=description, smoothing=0.02) as progress:
        for pair in results:
            progress.update()
            yield pair


def _in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    context = multiprocessing.get_context("spawn")  # forked FFmpeg threads could hang
    remaining = iter(items)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        pending: dict[Any, Item] = {}
        while True:
            for item in remaining:
                pending[pool.submit(work, item)] = item
                if len(pending) >= AHEAD * workers:
                    break
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                item = pending.pop(future)
                yield item, future.result()
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed, perhaps for want of memory; start again with fewer --workers: what is done is kept") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the main one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_ray(work: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[tuple[Item, Result]]:
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs a package that is not here: pip install ray") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--ray {address}: no Ray cluster can be reached there ({str(error).splitlines()[0]}); start one with `ray start --head`"
        ) from error
    try:
        task = ray.remote(work)
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        remaining = iter(items)
        pending: dict[Any, Item] = {}
        while True:
            for item in remaining:
                pending[task.remote(item)] = item
                if len(pending) >= ahead:
                    break
            if not pending:
                break
            for reference in ray.wait(list(pending))[0]:
                item = pending.pop(reference)
                yield item, ray.get(reference)
    finally:
        ray.shutdown()
