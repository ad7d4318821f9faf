"""Apply a function to many items, in local processes or on a Ray cluster."""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from ..runtime.cores import usable_cores
from ..runtime.errors import InputError, missing_extra, reason
from ..runtime.signals import follow_parent, starting_workers

Item = TypeVar("Item")
Result = TypeVar("Result")
# Items submitted ahead of the results, per process: enough to keep all busy, few enough that a stop
# loses little.
AHEAD = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --ray, for `run_jobs`."""
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="processes; 0: this one alone (default: %(default)s, the cores)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='work on the Ray cluster there instead; "auto": the one that this machine belongs to',
    )


def run_jobs(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    ray_address: str | None = None,
    description: str,
    name: Callable[[Item], str] = str,
) -> Generator[tuple[Item, Result], None, None]:
    """Apply `work`, a module-level function, to every item; yields (item, result) in the order of completion,
    with a progress bar.

    `workers`: number of local processes; 0: this process. `ray_address`: the cluster to run on instead
    ("auto": that of this machine), one item per CPU; all nodes need the files under the same paths. `work`
    reports failures of an item in its result; an exception ends everything. Ctrl-C, an exception, or closing
    the generator interrupts running items at once, so `work` must not leave incomplete output that looks
    complete. `name`: how errors name an item.

    Raises InputError for a negative number of workers, if Ray is missing or its cluster cannot be reached, or
    if a process was killed.
    """
    if workers < 0:
        raise InputError(
            f"--workers is {workers}; expected a number of processes, or 0 for none beside this one"
        )
    if not items:
        return
    if ray_address is not None:
        results = _on_ray(work, items, ray_address, name)
    elif workers == 0:
        results = ((item, work(item)) for item in items)
    else:
        results = _in_processes(work, items, min(workers, len(items)), name)
    with tqdm(total=len(items), desc=description, smoothing=0.02, disable=None) as progress:
        for pair in results:
            progress.update()
            yield pair


def _in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, name: Callable[[Item], str]
) -> Iterator[tuple[Item, Result]]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # forked FFmpeg threads could hang
    remaining = iter(items)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent)
    pending: dict[Future[Result], Item] = {}
    try:
        while True:
            for item in remaining:
                with starting_workers():
                    pending[pool.submit(work, item)] = item
                if len(pending) >= AHEAD * workers:
                    break
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield pending.pop(future), result
    except BrokenProcessPool as error:
        for future in [future for future in pending if future.done() and not future.exception()]:
            yield pending.pop(future), future.result()
        under_way = [name(item) for item in pending.values()][:workers]  # they started in this order
        place = f" while at {' or '.join(under_way)}" if under_way else ""
        raise InputError(
            f"a worker process was killed{place}, perhaps for lack of memory; start again with fewer "
            "--workers, or without that file: what is done is kept"
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _on_ray(
    work: Callable[[Item], Result], items: Sequence[Item], address: str, name: Callable[[Item], str]
) -> Iterator[tuple[Item, Result]]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise missing_extra("--ray", "ray", error) from error
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray installs its own
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError is an OSError
        raise InputError(
            f"--ray {address}: no Ray cluster can be reached there ({reason(error)}); start one with "
            "`ray start --head`"
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
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what `work` raised
    except ray.exceptions.RayError as error:
        raise InputError(
            f"--ray {address}: the cluster lost {name(item)} ({reason(error)}); start again: what is done is "
            "kept"
        ) from error
    finally:
        ray.shutdown()
