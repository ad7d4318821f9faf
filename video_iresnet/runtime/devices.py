"""Devices: copies beside a GPU's computations, settings of the process, memory."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

from .cores import usable_cores


class Copies:
    """Copies tensors to a device. On a GPU they travel on a stream of their own, beside the computations that
    were launched before: as nothing in a step waits for the GPU, the copy of the next batch begins while the
    GPU still computes the current one. Pinned memory is needed for that.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        is_real = device.type == "cuda" and torch.cuda.is_available()
        self.stream = torch.cuda.Stream(device) if is_real else None  # type: ignore[no-untyped-call]

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.stream is None:
            return tensor.to(self.device, non_blocking=True)
        with torch.cuda.stream(self.stream):
            copy = tensor.to(self.device, non_blocking=True)
        computations = torch.cuda.current_stream(self.device)
        computations.wait_stream(self.stream)
        copy.record_stream(computations)
        return copy


# glibc's malloc.h: bytes that are free at the end of the heap before they are returned to the system, and the
# size from which a block has pages of its own (32 MB is the most that glibc takes).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free for the next ones, if it is glibc. Otherwise each step gives
    most of its memory back to the system, and takes it again page by page, which costs time.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 2**25)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def allow_tf32(allowed: bool) -> None:
    """Let GPUs compute float32 convolutions and matrix products in TF32, which has 10 bits of mantissa
    instead of 23, or forbid it.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def prepare(device: torch.device, tf32: bool, local_processes: int) -> None:
    """Set what torch keeps for the whole process: TF32 and the choice of kernels on a GPU, threads on a CPU,
    which `local_processes` share, and its memory.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        allow_tf32(tf32)
    else:
        torch.set_num_threads(max(1, usable_cores() // local_processes))
        keep_freed_memory()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of tensors on a GPU in bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
