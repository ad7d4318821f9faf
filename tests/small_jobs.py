"""Jobs for tests, in a module that processes import without torch."""

from __future__ import annotations

import os
import signal
import time

from video_iresnet.runtime.errors import InputError


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise InputError("three is refused")
    return number


def die(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def where(number: int) -> tuple[int, str]:
    import ray

    time.sleep(0.2)
    return number * number, ray.get_runtime_context().get_node_id()
