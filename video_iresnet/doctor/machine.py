"""Python, versions, cores, memory, disk, shared memory and open files."""

from __future__ import annotations

import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ..runtime.cores import processor, usable_cores
from .finding import OK, PROBLEM, WARNING, Check, Finding

PYTHON = (3, 10), (3, 14)  # the oldest and the newest that are tested
GIB = 2**30
# GiB below which there is a warning, and a problem. A checkpoint of iR3D-50 is 0.4 GB; views of a test of
# Kinetics-400 are 1 GB.
FREE_DISK = 10, 1
FREE_MEMORY = 4, 1
# A batch of 16 clips of 16 x 224 x 224 is 39 MB, and a worker keeps two of them.
SHARED_MEMORY = 1, 0.125
SHM = Path("/dev/shm")
OPEN_FILES = 1024  # every batch that waits in a worker is an open file
CGROUP = Path("/sys/fs/cgroup")


def python(folder: Path) -> Iterator[Finding]:
    """The version of Python."""
    oldest, newest = (".".join(map(str, version)) for version in PYTHON)
    version = sys.version_info[:2]
    status = OK if PYTHON[0] <= version <= PYTHON[1] else WARNING if version > PYTHON[1] else PROBLEM
    remedy = "" if status == OK else f"use Python {oldest} to {newest}"
    yield Finding("Python", status, f"{platform.python_version()}, {sys.executable}", remedy)


def torch_versions(folder: Path) -> Iterator[Finding]:
    """Whether torch is the one that torchvision was built for."""
    torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    wanted = re.findall(r"^torch\s*\(?==\s*([\w.]+)", "\n".join(metadata.requires("torchvision") or []), re.M)
    fits = not wanted or wanted[0] == torch.partition("+")[0]
    remedy = "" if fits else f"pip install torch=={wanted[0]} torchvision=={torchvision}"
    needs = "" if fits else f", which needs torch {wanted[0]}"
    yield Finding("torch, torchvision", OK if fits else PROBLEM, f"{torch}, {torchvision}{needs}", remedy)


def cores(folder: Path) -> Iterator[Finding]:
    """The cores that this process may use, and how much of their time."""
    number, quota = usable_cores(), cpu_quota()
    found = f"{number} x {processor()}"
    if quota is not None and quota < number:
        remedy = f"set DATA_LOADER.NUM_WORKERS to {max(1, int(quota))} at most, and OMP_NUM_THREADS too"
        yield Finding("cores", WARNING, f"{found}, but a limit of {quota:g} of them in time", remedy)
    elif number == 1:
        yield Finding("cores", WARNING, found, "use a machine with 2 or more: decoding needs its own")
    else:
        yield Finding("cores", OK, found)


def cpu_quota() -> float | None:
    """Return the number of cores whose time a container may use; None: no limit."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # of version 2 and 1
        path = CGROUP / name
        if path.exists():
            words = path.read_text().split()
            if name != "cpu.max":
                words.append(path.with_name("cpu.cfs_period_us").read_text())
            return int(words[0]) / int(words[1]) if words[0].isdigit() else None
    return None


def memory(folder: Path) -> Iterator[Finding]:
    """The memory that is there and available, to a container too."""
    text = Path("/proc/meminfo").read_text()
    total, free = (
        int(re.findall(rf"{name}:\s*(\d+) kB", text)[0]) / 2**20 for name in ("MemTotal", "MemAvailable")
    )
    limit = memory_limit()
    if limit is not None and limit < total:
        total, free = limit, min(free, limit)
    remedy = "use fewer DATA_LOADER.NUM_WORKERS and a smaller TRAIN.BATCH_SIZE, or end other programs"
    yield _sized("memory", free, total, FREE_MEMORY, remedy)


def memory_limit() -> float | None:
    """Return the memory that a container may use, in GiB; None: no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = CGROUP / name
        if path.exists():
            text = path.read_text().strip()
            return int(text) / GIB if text.isdigit() else None
    return None


def disk(folder: Path) -> Iterator[Finding]:
    """The disk of the runs: whether it can be written, and what is free."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")
    except OSError as error:
        found = f"{existing} cannot be written ({error.strerror})"
        yield Finding("disk", PROBLEM, found, "name another OUTPUT_DIR")
        return
    usage = shutil.disk_usage(existing)
    remedy = "free some space, or name an OUTPUT_DIR on another disk"
    yield _sized("disk", usage.free / GIB, usage.total / GIB, FREE_DISK, remedy, f" at {existing}")


def shared_memory(folder: Path) -> Iterator[Finding]:
    """The shared memory through which batches come from workers."""
    if not SHM.is_dir():
        yield Finding(str(SHM), OK, "not on this system")
        return
    usage = shutil.disk_usage(SHM)
    remedy = "in Docker, add --shm-size 8g; elsewhere remount it larger, or use DATA_LOADER.NUM_WORKERS 0"
    yield _sized(str(SHM), usage.free / GIB, usage.total / GIB, SHARED_MEMORY, remedy)


def open_files(folder: Path) -> Iterator[Finding]:
    """How many files a process may have open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES:
        yield Finding("open files", OK, "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}")
    elif most == resource.RLIM_INFINITY or most > limit:
        yield Finding(
            "open files", WARNING, f"up to {limit}", f"ulimit -n {OPEN_FILES}, or up to the hard limit"
        )
    else:
        yield Finding("open files", WARNING, f"up to {limit}", "ask for a higher limit (nofile)")


def _sized(
    name: str, free: float, total: float, limits: tuple[float, float], remedy: str, where: str = ""
) -> Finding:
    """Judge free space. `limits`: GiB below which there is a warning, and a problem."""
    status = PROBLEM if free < limits[1] else WARNING if free < limits[0] else OK
    return Finding(name, status, f"{free:.2f} GiB free of {total:.2f}{where}", "" if status == OK else remedy)


CHECKS: tuple[Check, ...] = (python, torch_versions, cores, memory, disk, shared_memory, open_files)
