"""Processes and devices. One process drives one device; torchrun (or anything that sets its variables) starts
them.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from .errors import InputError


class Processes:
    """The processes of a run. Without torchrun there is one, and every method below is then local and free.

    Small messages travel over gloo even where gradients use nccl, so that they never wait for the GPU.
    """

    def __init__(self, use_gpu: bool) -> None:
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
        if self.size > 1:
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._messages = dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def usable_cores(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def sum(self, numbers: list[int]) -> list[int]:
        """The sums of each number over all processes."""
        if self.size == 1:
            return numbers
        total = torch.tensor(numbers)
        dist.all_reduce(total, group=self._messages)
        return [int(n) for n in total]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._messages)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._messages)


def close_processes() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a run can save and end in order; a second one
    ends it at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self.signal != 0
