"""Processes and devices. Each process uses one device; torchrun, or anything that sets its variables, starts
them.
"""

from __future__ import annotations

import functools
import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from .errors import InputError, LostProcessError, reason
from .meeting import PATIENCE, Meeting, open_store, set_timeout

# After the first step; the processes begin each step together, so this bounds a step and the update.
STEP_TIMEOUT = timedelta(minutes=5)
Made = TypeVar("Made")


class Processes:
    """The processes of a run. Without torchrun there is one, and all methods are local.

    Small messages use gloo even if gradients use nccl, so that they never wait for the GPU. `patience`: how
    long the processes wait for each other at the start.
    """

    def __init__(self, use_gpu: bool, patience: timedelta = PATIENCE) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if use_gpu and torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if self.local_size > torch.cuda.device_count():
                raise InputError(
                    f"{self.local_size} processes, but {torch.cuda.device_count()} GPUs; start one process "
                    "for each GPU, or set NUM_GPUS 0"
                )
            torch.cuda.set_device(self.device)
        self._messages: Any = None
        self._groups: dict[int, Any] = {}
        self._has_stepped = False
        if self.size > 1:
            if not dist.is_initialized():
                store = PrefixStore(f"group {next(_groups)}", _store(self.rank, patience))
                backend = "nccl" if self.device.type == "cuda" else "gloo"
                Meeting(store, self.rank, self.size, patience).form_group(backend, self.device)
            self._messages = dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def group(self, size: int) -> Any:
        """Return the group of `size` consecutive processes that includes this one; None is that of all. All
        processes must call it alike. Raises ValueError if `size` does not divide their number.
        """
        if size == self.size:
            return None
        if size not in self._groups:
            self._groups[size], _ = dist.new_subgroups(size)
        return self._groups[size]

    def expect_the_next_step(self) -> None:
        """Shorten the timeout of the collectives of training after the first step, which also compiles and
        tunes kernels: a process that hangs then ends the run within minutes. Messages (sum, gather) still
        wait for slow data and checkpoints.
        """
        if self.size > 1 and not self._has_stepped:
            self._has_stepped = True
            set_timeout(STEP_TIMEOUT)

    def sum(self, numbers: list[int]) -> list[int]:
        """Return the sum of each number over all processes."""
        if self.size == 1:
            return numbers
        total = torch.tensor(numbers)
        dist.all_reduce(total, group=self._messages)
        return [int(n) for n in total]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._messages)
        return values

    def raise_first(self, error: Exception | None) -> None:
        """Raise an error of one process on all of them: its own if a process has one, or else an InputError
        with the text of the first.
        """
        if not self.sum([int(error is not None)])[0]:
            return
        texts = self.gather("" if error is None else str(error) or repr(error))
        raise error or InputError(next(text for text in texts if text))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all processes at the end of the block; an error of one is raised on all.

        Processes must not communicate in the block.
        """
        caught: Exception | None = None
        try:
            yield
        except Exception as error:
            caught = error
        self.raise_first(caught)

    def from_main(self, make: Callable[[], Made]) -> Made:
        """Call `make` on the main process alone, and return its value on all; its error is raised on all.

        The value is pickled, its arrays as bytes. `make` must not communicate.
        """
        values: list[Any] = [None]
        with self.together():
            if self.is_main:
                values = [make()]
        if self.size > 1:
            dist.broadcast_object_list(values, 0, group=self._messages)
        made: Made = values[0]
        return made


_groups = itertools.count()  # each group has its own name


_store = functools.cache(open_store)  # one for all groups
FAILED = "failed"  # in the store of a group: why the first process that failed did


@contextmanager
def group_of_run() -> Iterator[None]:
    """Leave the process group at the end of the block, so that the next run can form its own.

    Raises LostProcessError if communication fails because another process ended, with the error of that one
    if it could tell.
    """
    try:
        yield
    except Exception as error:
        if not dist.is_initialized():
            raise
        is_lost = isinstance(error, RuntimeError) and "gloo" in str(error)
        if not is_lost and not isinstance(error, dist.DistError):
            _within_seconds(functools.partial(_tell_why, error))
            raise
        why = _within_seconds(_told) or "another one of this run did"
        raise LostProcessError(
            f"process {dist.get_rank()} ends because {why}; the last checkpoint is intact"
        ) from error
    if dist.is_initialized():
        dist.destroy_process_group()


def _tell_why(error: Exception) -> str:
    """Leave the error of this process to those that will lose it, unless another one failed before."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    why = f"process {dist.get_rank()} on {platform.node()} did ({kind}{reason(error)})"
    return str(_get_default_store().compare_set(FAILED, "", why).decode())


def _told() -> str:
    """Return why the first process that failed did, if it has told."""
    store = _get_default_store()
    return str(store.get(FAILED).decode()) if store.check([FAILED]) else ""


def _within_seconds(talk: Callable[[], str]) -> str:
    """Return what a talk with the store gives; nothing if the store is gone or does not answer."""
    answers = [""]

    def listen() -> None:
        with suppress(RuntimeError):
            answers.append(talk())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    thread.join(5)
    return answers[-1]
